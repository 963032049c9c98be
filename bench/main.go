// Command bench measures renewd against a team's own code, on the same machine and in the same run:
// a Go loop over a table, River on PostgreSQL, and the limits set by HTTP, the store and the stream
// alone.
//
// Every contestant runs in a separate process, and so does the provider. PostgreSQL keeps every
// commit (fsync and synchronous_commit on). Runs of the contestants alternate, and medians are
// reported. Bench touches only processes and files of its own, and removes them at the end.
// Measurements run one at a time: nothing here is meant for concurrent use.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/jackc/pgx/v5"

	"github.com/renewd/renewd/internal/testkit/pgtest"
)

// cli is the command line: run, and the programs started by run as separate processes.
type cli struct {
	Run       runCommand       `cmd:"" default:"withargs" help:"Measure."`
	Provider  providerCommand  `cmd:"" hidden:""`
	Loop      loopCommand      `cmd:"" hidden:""`
	River     riverCommand     `cmd:"" hidden:""`
	Limit     limitCommand     `cmd:"" hidden:""`
	JetStream jetStreamCommand `cmd:"" hidden:"" name:"jetstream"`
	NATS      natsCommand      `cmd:"" hidden:""`
	Store     storeCommand     `cmd:"" hidden:""`
	Ask       askCommand       `cmd:"" hidden:""`
}

// runCommand are the settings of a run.
type runCommand struct {
	What        []string        `name:"run" default:"throughput,latency,reads,rss,kill,replay,steady,scale" help:"What to measure: ${default}."`
	Users       int             `default:"20000" help:"Users of the throughput, reads, memory and kill runs."`
	Runs        int             `default:"3" help:"Runs of each contestant in the throughput run; the median counts."`
	Delay       []time.Duration `default:"0s,20ms" help:"Delays of the provider in the throughput run."`
	Only        []string        `placeholder:"LEG" help:"Only these legs of the throughput run, for instance: renewd,loop."`
	Concurrency int             `help:"Renewals at a time, of everybody. Default: 128 without a delay, 256 with one."`
	Kills       int             `default:"3" help:"Kills with each kind of provider in the kill run."`
	Steady      steadyOptions   `embed:"" prefix:"steady-"`
	Scale       scaleOptions    `embed:"" prefix:"scale-"`
	Events      int             `default:"2000000" help:"Outcome events of the replay run."`
	Reads       readsOptions    `embed:"" prefix:"reads-"`
	For         time.Duration   `default:"30s" help:"How long latency and reads are measured."`
	Root        string          `default:".." type:"existingdir" help:"renewd's source."`
	Binary      string          `placeholder:"FILE" help:"The renewd to measure. Default: built from its source."`
	Profile     string          `placeholder:"DIR" help:"Write profiles of renewd there: processor time and allocations."`
	Dir         string          `placeholder:"DIR" help:"Folder to work in. Default: the system's for temporary files."`
	Keep        bool            `help:"Leave logs and data behind."`
	Output      string          `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

func main() {
	var c cli
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	k := kong.Parse(&c, kong.Name("bench"),
		kong.Description("Measure renewd against its peers and its limits."),
		kong.BindTo(ctx, (*context.Context)(nil)))
	if err := k.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run of all chosen measurements.
type bench struct {
	runCommand
	dir    string
	self   string // this program
	renewd string // the measured renewd
	began  time.Time
	server *pgtest.Server
	report report
}

// kind is one kind of measurement.
type kind struct {
	name    string
	measure func(context.Context) error
}

func (b *bench) kinds() []kind {
	return []kind{
		{"throughput", b.throughput}, {"latency", b.latency}, {"reads", b.reads}, {"rss", b.rss},
		{"kill", b.kills}, {"replay", b.replay}, {"steady", b.steady}, {"scale", b.scale},
	}
}

// Run measures the chosen kinds and prints the tables.
func (c runCommand) Run(ctx context.Context) error {
	b := &bench{runCommand: c, began: time.Now(), report: report{Users: c.Users}}
	defer b.close()
	if err := b.open(ctx); err != nil {
		return err
	}
	kinds := b.kinds()
	for _, name := range c.What {
		if !slices.ContainsFunc(kinds, func(k kind) bool { return k.name == name }) {
			return fmt.Errorf("--run %s: no such run; see --help", name)
		}
	}
	var errs []error
	for _, k := range kinds {
		if !slices.Contains(c.What, k.name) || ctx.Err() != nil {
			continue
		}
		if err := k.measure(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", k.name, err)) // the other kinds still count
			b.say("%v", errs[len(errs)-1])
		}
	}
	if c.Output == "json" {
		errs = append(errs, json.NewEncoder(os.Stdout).Encode(b.report))
	} else {
		b.report.print(os.Stdout)
	}
	return errors.Join(errs...)
}

func (b *bench) open(ctx context.Context) (err error) {
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(b.Dir, "bench"); err != nil {
		return err
	}
	b.say("build renewd")
	if err := b.build(ctx); err != nil {
		return err
	}
	b.say("start PostgreSQL")
	if b.server, err = pgtest.Start(pgtest.Options{Durable: true, TCP: true}); err != nil {
		return err
	}
	b.report.Machine, err = b.machine(ctx)
	return err
}

func (b *bench) close() {
	if b.server != nil {
		b.server.Remove()
	}
	if !b.Keep && b.dir != "" {
		_ = os.RemoveAll(b.dir)
	}
}

// say reports progress on standard error.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s %7.1fs  %s\n", time.Now().Format("15:04:05"),
		time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

// newDatabase makes an empty database and returns its address.
func (b *bench) newDatabase(ctx context.Context) (string, error) {
	name, err := b.server.Create(ctx)
	return b.server.URL(name), err
}

// checkpoint writes out the dirty pages of the run before, so no run pays for an earlier run.
func (b *bench) checkpoint(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, b.server.URL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "CHECKPOINT")
	return err
}
