package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

type doctorCommand struct {
	clientFlags
	Grants int    `default:"1000" help:"How many grants' timers are looked at; 0: all of them."`
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// state is how one thing stands.
type condition string

const (
	fine    condition = "ok"
	warning condition = "warn"
	broken  condition = "FAIL"
	skipped condition = "skipped" // something it stands on is broken
)

// finding is the answer to one question.
type finding struct {
	Check  string    `json:"check"`
	State  condition `json:"state"`
	Found  string    `json:"found"`
	Advice string    `json:"advice,omitempty"` // what to do next
}

// checkLimit bounds one check, but for the walk over the grants.
const checkLimit = 15 * time.Second

// Run looks at everything, also where some of it is down, and changes nothing.
func (d doctorCommand) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	tel, err := newTelemetry(ctx, nil, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return err
	}
	conf.DatabaseMigrate = false // a look makes no tables
	x := &examination{app: a, plant: &plant{conf: conf, log: slog.New(slog.DiscardHandler), tel: tel}, grants: d.Grants}
	if d.Output == "text" {
		x.tell = a.stdout
	}
	defer x.plant.close()
	x.examine(ctx, d.Server)
	if d.Output == "json" {
		if err := json.NewEncoder(a.stdout).Encode(x.findings); err != nil {
			return err
		}
	}
	for _, f := range x.findings {
		if f.State == broken {
			return errSilent
		}
	}
	return nil
}

// examination is one run of the doctor.
type examination struct {
	app      *app
	plant    *plant
	grants   int
	tell     io.Writer // gets each finding as it comes; nil: none is told
	waiting  uint64    // messages in queues that no provider's pause holds
	idle     bool      // no worker was heard of lately
	findings []finding
}

// examine asks one question after the other. What stands on something broken is skipped.
func (x *examination) examine(ctx context.Context, server string) {
	p := x.plant
	keys := x.ask(ctx, "keyring", x.keyring)
	x.ask(ctx, "links", x.links)
	connected := x.ask(ctx, "NATS", func(context.Context) finding { return x.connect(server) })
	streams := connected
	for _, q := range []struct {
		name string
		ask  func(context.Context) finding
	}{{"streams", x.streams}, {"clock", x.clock}, {"public key", x.publicKey}, {"queues", x.queues}, {"room", x.room}, {"workers", x.workers}, {"parked pairs", x.parked}} {
		if !connected || q.name == "public key" && !keys {
			x.skip(q.name)
			continue
		}
		if ok := x.ask(ctx, q.name, q.ask); q.name == "streams" {
			streams = ok
		}
	}
	for _, s := range p.conf.Providers {
		x.ask(ctx, "provider "+s.ID, func(ctx context.Context) finding { return x.provider(ctx, s, connected) })
	}
	if !keys || !connected && p.conf.DatabaseURL.IsZero() {
		x.skip("store")
		x.skip("grants")
		return
	}
	if !x.ask(ctx, "store", x.store) {
		x.skip("grants")
		return
	}
	x.add("grants", x.walk(ctx, streams))
}

// ask has one question answered, and reports whether what stands on it can be asked about too.
func (x *examination) ask(ctx context.Context, name string, q func(context.Context) finding) bool {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	f := q(ctx)
	x.add(name, f)
	return f.State != broken
}

func (x *examination) skip(name string) { x.add(name, finding{State: skipped, Found: "see above"}) }

func (x *examination) add(name string, f finding) {
	f.Check = name
	x.findings = append(x.findings, f)
	if x.tell == nil {
		return
	}
	w := tabwriter.NewWriter(x.tell, 24, 8, 2, ' ', 0)
	fmt.Fprintf(w, "%s\t%s\n", fmt.Sprintf("%-8s%s", f.State, name), printable(f.Found))
	if f.Advice != "" {
		fmt.Fprintf(w, "\t→ %s\n", printable(f.Advice))
	}
	_ = w.Flush() // to a terminal: nobody to tell
}

func failed(err error, advice string) finding {
	return finding{State: broken, Found: strings.ReplaceAll(err.Error(), "\n", " "), Advice: advice}
}

func (x *examination) keyring(ctx context.Context) finding {
	file := x.plant.conf.keyFile()
	path := file.path
	ring, err := file.load(ctx)
	if err != nil {
		return failed(err, "without the keyring nothing can be opened: restore it from its backup, or set RENEWD_KEYS_FILE to where it is")
	}
	x.plant.keys = newLiveKeys(file, ring, nil)
	if len(file.unwrap) > 0 {
		found := fmt.Sprintf("%d keys in %s, encrypted", len(ring.Keys()), path)
		return finding{State: fine, Found: found}
	}
	if info, err := os.Stat(path); err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o004 != 0 {
		return finding{State: warning, Found: "everybody on this machine may read " + path, Advice: "chmod o-r, and its folder too if others are in it"}
	}
	if inside, err := filepath.Rel(x.plant.conf.DataDir, path); x.plant.conf.embedded() && err == nil && filepath.IsLocal(inside) {
		return finding{
			State: warning, Found: fmt.Sprintf("%d keys in %s, beside what they protect", len(ring.Keys()), path),
			Advice: "whoever copies data_dir has all tokens: move the file elsewhere, and set RENEWD_KEYS_FILE",
		}
	}
	return finding{State: fine, Found: fmt.Sprintf("%d keys in %s", len(ring.Keys()), path)}
}

func (x *examination) connect(server string) finding {
	p := x.plant
	if p.conf.embedded() && p.conf.NATSListen == "" && server == "" {
		server = natsDefault
	}
	nc, err := x.app.connect(p.conf, server)
	if err != nil {
		return failed(err, "start it, or correct RENEWD_NATS_URL; a renewd with an embedded server shows it to others on RENEWD_NATS_LISTEN")
	}
	p.nc = nc
	if p.js, err = jetstream.New(nc); err == nil {
		p.engine, err = clientEngine(nc, p.conf)
	}
	if err != nil {
		return failed(err, "correct the settings of the connection")
	}
	return finding{State: fine, Found: fmt.Sprintf("%s, version %s", nc.ConnectedAddr(), nc.ConnectedServerVersion())}
}

// counted puts a number before the thing it counts.
func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

var errNoTimer = errors.New("no timer")
