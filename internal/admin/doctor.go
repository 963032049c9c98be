package admin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/natsconn"
	"github.com/renewd/renewd/internal/settings"
)

// Condition is the state of one checked thing.
type Condition string

const (
	Fine    Condition = "ok"
	Warning Condition = "warn"
	Broken  Condition = "FAIL"
	Skipped Condition = "skipped" // a check it depends on is broken
)

// Finding is the answer to one question.
type Finding struct {
	Check  string    `json:"check"`
	State  Condition `json:"state"`
	Found  string    `json:"found"`
	Advice string    `json:"advice,omitempty"` // what to do next
}

// checkLimit bounds one check, but for the walk over the grants.
const checkLimit = 15 * time.Second

// Look tells Examine where and how to look.
type Look struct {
	Conf    *settings.Settings
	Server  string // NATS server to connect to; empty: the settings' server
	Grants  int    // how many grants' timers are looked at; 0: all
	Program string // how to call renewd, for the advice
	// Connect makes a connection for a command.
	Connect func(server string) (*nats.Conn, error)
	Tell    func(Finding) // gets each finding as it comes; may be nil
}

// Examine looks at an installation as a whole, also where parts are down, and advises on each
// fault. It changes nothing, and shows no token to a provider.
func Examine(ctx context.Context, l Look) []Finding {
	x := &examination{
		on: daemon.Bare(l.Conf), connects: l.Connect, program: l.Program, grants: l.Grants,
		tell: l.Tell,
	}
	defer x.on.Close()
	x.examine(ctx, l.Server)
	return x.findings
}

// examination is one run of the doctor.
type examination struct {
	on       *daemon.Resources
	connects func(server string) (*nats.Conn, error)
	program  string // how to call renewd
	grants   int
	tell     func(Finding) // gets each finding as it comes; may be nil
	waiting  uint64        // messages in queues that no provider's pause holds
	idle     bool          // no worker was heard of lately
	findings []Finding
}

// examine asks one question after the other, and skips questions that depend on something broken.
func (x *examination) examine(ctx context.Context, server string) {
	p := x.on
	logins, store := x.keys(ctx)
	if p.Conf.Embedded() {
		x.ask(ctx, "NATS files", x.natsFiles)
	}
	x.ask(ctx, "links", x.links)
	connected := x.ask(ctx, "NATS", func(context.Context) Finding { return x.connect(server) })
	streams := connected
	for _, q := range []struct {
		name string
		ask  func(context.Context) Finding
	}{
		{"streams", x.streams}, {"clock", x.clock}, {"public key", x.publicKey},
		{"queues", x.queues}, {"room", x.room}, {"subscribers", x.subscribers}, {"sinks", x.sinks},
		{"sources", x.sources}, {"app tables", x.tables}, {"workers", x.workers},
		{"parked pairs", x.parked},
	} {
		if !connected || q.name == "public key" && !logins {
			x.skip(q.name)
			continue
		}
		if ok := x.ask(ctx, q.name, q.ask); q.name == "streams" {
			streams = ok
		}
	}
	for _, s := range p.Conf.Providers {
		x.ask(ctx, "provider "+s.ID, func(ctx context.Context) Finding {
			return x.provider(ctx, s, connected)
		})
	}
	if !store || !connected && p.Conf.DatabaseURL.IsZero() {
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

// ask has one question answered, and reports whether the questions that depend on it can be asked.
func (x *examination) ask(ctx context.Context, name string, q func(context.Context) Finding) bool {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	f := q(ctx)
	x.add(name, f)
	return f.State != Broken
}

func (x *examination) skip(name string) { x.add(name, Finding{State: Skipped, Found: "see above"}) }

func (x *examination) add(name string, f Finding) {
	f.Check = name
	x.findings = append(x.findings, f)
	if x.tell == nil {
		return
	}
	x.tell(f)
}

func failed(err error, advice string) Finding {
	return Finding{State: Broken, Found: strings.ReplaceAll(err.Error(), "\n", " "), Advice: advice}
}

func (x *examination) connect(server string) Finding {
	p := x.on
	if p.Conf.Embedded() && p.Conf.NATSListen == "" && server == "" {
		server = natsconn.DefaultURL
	}
	nc, err := x.connects(server)
	if err != nil {
		return failed(err,
			"start it, or correct RENEWD_NATS_URL; a renewd with an embedded server shows it to "+
				"others on RENEWD_NATS_LISTEN")
	}
	if err := p.Use(nc); err != nil {
		return failed(err, "correct the settings of the connection")
	}
	return Finding{
		State: Fine,
		Found: fmt.Sprintf("%s, version %s", nc.ConnectedAddr(), nc.ConnectedServerVersion()),
	}
}

var errNoTimer = errors.New("no timer")
