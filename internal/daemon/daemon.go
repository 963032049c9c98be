package daemon

import (
	"context"
	"log/slog"
	"net"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/pseudonym"
	"github.com/renewd/renewd/internal/reconcile"
	"github.com/renewd/renewd/internal/settings"
)

// Options are what Open takes beside the settings.
type Options struct {
	// Environ is the process's environment: OTEL_ variables, and where the nats CLI keeps contexts.
	Environ []string
	// Version is this program's, for the log and for telemetry.
	Version string
	// Log is where the daemon logs to. Required.
	Log *slog.Logger
	// Reconciler says how fast the store is walked; unset fields keep their defaults. Store,
	// Engine, Meter and Logger are the daemon's.
	Reconciler reconcile.Reconciler
	// Below are services that the daemon depends on. They start first and end last.
	Below []Service
	// Erase erases a user for a client over HTTP, or for a source: the argument source is the
	// CloudEvents source of either. Its errors are the errors of api.Config.Forget. nil: HTTP has
	// no erasure.
	Erase func(ctx context.Context, p *Resources, k grant.Key, source string) error
	// Above are services that depend on the daemon. They start once the daemon is up, and end
	// first.
	Above []func(context.Context, Running) error
}

// Running is the daemon as a service above sees it.
type Running struct {
	HTTPAddr string // where the status server listens, host:port
	NATSURL  string // of the embedded NATS server; empty: NATS runs elsewhere
	// Connect makes a connection to the embedded NATS server, which the caller closes.
	Connect func() (*nats.Conn, error)
}

// Daemon is renewd as a whole: its status server, the streams, the store, and the consumers at
// work. Open makes a Daemon, and Run runs it.
type Daemon struct {
	conf     *settings.Settings
	options  Options
	log      *slog.Logger
	tel      *telemetry
	listener net.Listener
}

// Open sets up telemetry and opens the listener of the status server, so that a port in use is an
// error at once. The caller must run the opened Daemon.
func Open(ctx context.Context, conf *settings.Settings, o Options) (*Daemon, error) {
	names := namesOf(conf)
	d := &Daemon{conf: conf, options: o, log: names.Logger(o.Log)}
	var err error
	if d.tel, err = newTelemetry(ctx, o.Environ, o.Version, d.log, names); err != nil {
		return nil, err
	}
	if d.listener, err = listenTLS(ctx, conf); err != nil {
		d.flush(ctx)
		return nil, err
	}
	return d, nil
}

// Names is how user ids stand in logs and errors; nil: as they are.
func (d *Daemon) Names() *pseudonym.Names { return d.tel.names }

// Run brings everything up and runs until ctx ends or a part fails, then drains. Call Run once.
func (d *Daemon) Run(ctx context.Context) error {
	defer d.flush(ctx)
	// HTTP comes up first, to tell why the start waits, and goes last.
	f := &statusServer{
		conf:    d.conf,
		metrics: d.tel.metrics,
		log:     d.log,
		addr:    d.listener.Addr().String(),
	}
	work := func(ctx context.Context) error { return d.work(ctx, f) }
	err := Supervise(ctx, []Service{f.service(d.listener)}, []Service{work})
	if err == nil {
		d.log.Info("renewd has stopped; nothing is under way")
	}
	return err
}

// flush exports the last figures.
func (d *Daemon) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := d.tel.stop(ctx); err != nil {
		d.log.Warn("the last figures may not have been exported", "error", err)
	}
}

// work opens the resources and runs the services on top.
func (d *Daemon) work(ctx context.Context, f *statusServer) error {
	p, err := open(ctx, d.conf, d.options.Environ, d.log, d.tel, f.waitFor)
	if err != nil {
		return unlessStopped(ctx, err)
	}
	p.version, p.reconciler = d.options.Version, d.options.Reconciler
	if erase := d.options.Erase; erase != nil {
		p.erase = func(ctx context.Context, k grant.Key, source string) error {
			return erase(ctx, p, k, source)
		}
	}
	layers, err := p.layers()
	if err != nil {
		p.Close()
		return unlessStopped(ctx, err)
	}
	layers[0] = append(layers[0], d.options.Below...)
	above := []Service{p.reach}
	for _, run := range d.options.Above {
		above = append(above, func(ctx context.Context) error { return run(ctx, d.running(p)) })
	}
	f.up.Store(p)
	d.log.Info("renewd is up", "version", d.options.Version, "nats", d.conf.DescribeNATS(),
		"store", d.conf.DescribeStore(), "providers", len(d.conf.Providers), "http", f.addr)
	return Supervise(ctx, append(layers, above)...)
}

func (d *Daemon) running(p *Resources) Running {
	r := Running{HTTPAddr: d.listener.Addr().String()}
	if p.server != nil {
		r.NATSURL = p.server.ClientURL()
		r.Connect = func() (*nats.Conn, error) { return p.server.Connect() }
	}
	return r
}

// unlessStopped drops the error of a start that was told to stop.
func unlessStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
