package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/natsconn"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/reconcile"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
)

// ClientEngine is the engine on a command's own connection.
func ClientEngine(nc *nats.Conn, conf *settings.Settings) (*stream.Engine, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	return stream.NewEngine(js, stream.Config{Subjects: conf.Subjects()})
}

// Resources are the connections and stores of the running program, once up.
type Resources struct {
	Conf       *settings.Settings
	log        *slog.Logger
	tel        *telemetry
	server     *natsd.Server // nil: NATS runs elsewhere
	NC         *nats.Conn
	JS         jetstream.JetStream
	Engine     *stream.Engine
	health     jetstream.KeyValue // of the providers
	Keys       *LiveKeys
	published  publishedKey
	Store      closingStore
	services   http.Handler         // the HTTP interface for services; nil: not wired yet
	version    string               // of this program
	reconciler reconcile.Reconciler // how fast the store is walked
	// erase erases a user, for the CloudEvents source of a client or a source; nil: not over HTTP.
	erase func(ctx context.Context, k grant.Key, source string) error
}

// closingStore is a grant.Store that can be closed.
type closingStore struct {
	grant.Store
	close func()
}

// open brings everything up, each part after the parts it depends on. It waits for NATS and the
// database as long as the settings say. After an error nothing is left behind.
func open(
	ctx context.Context, conf *settings.Settings, environ []string, log *slog.Logger,
	tel *telemetry, say func(string),
) (p *Resources, err error) {
	p = &Resources{Conf: conf, log: log, tel: tel}
	defer func() {
		if err != nil {
			p.Close()
			p = nil
		}
	}()
	collectLess(conf.Embedded(), log)
	say("the keyring")
	ring, err := p.loadKeys(ctx)
	if err != nil {
		return p, err
	}
	p.Keys = NewLiveKeys(keyfile.Of(conf), ring, tel.names)
	p.Keys.before = p.sealFileKey
	say(conf.DescribeNATS())
	if err = p.connect(ctx, environ); err != nil {
		return p, err
	}
	if err = p.streams(ctx); err != nil {
		return p, err
	}
	what, setting := "the bucket of grants in NATS", "RENEWD_NATS_URL"
	if !conf.DatabaseURL.IsZero() {
		what = "PostgreSQL at " + settings.DatabaseHost(conf.DatabaseURL)
		setting = "RENEWD_DATABASE_URL"
	}
	say(what)
	if err = Patiently(ctx, log, conf.StartTimeout, what, setting, p.OpenStore); err != nil {
		return p, err
	}
	return p, nil
}

// Bare are the resources of a command that looks, or changes little, beside the workers: nothing is
// open yet, and opening the store makes and changes no table.
func Bare(conf *settings.Settings) *Resources {
	looking := *conf
	looking.DatabaseMigrate = false
	return &Resources{Conf: &looking, log: slog.New(slog.DiscardHandler), tel: &telemetry{}}
}

// Attach are the resources of a command on its own connection, which the resources take over also
// after an error. keys is nil where there is no keyring: then no token can be opened or sealed.
func Attach(
	ctx context.Context, conf *settings.Settings, nc *nats.Conn, keys *LiveKeys,
) (*Resources, error) {
	p := Bare(conf)
	p.Keys = keys
	err := p.Use(nc)
	if err == nil {
		err = p.OpenStore(ctx)
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Use takes over a command's own connection.
func (p *Resources) Use(nc *nats.Conn) (err error) {
	p.NC = nc
	if p.JS, err = jetstream.New(nc); err != nil {
		return err
	}
	p.Engine, err = ClientEngine(nc, p.Conf)
	return err
}

// Close ends what open brought up, the last first.
func (p *Resources) Close() {
	if p.Store.close != nil {
		p.Store.close()
	}
	if p.NC != nil {
		p.NC.Close()
	}
	if p.server != nil {
		p.server.Shutdown()
	}
}

// loadKeys reads the keyring. Only where NATS is embedded, and so this process alone, may loadKeys
// make a keyring: two processes with a keyring each could not read each other's grants.
func (p *Resources) loadKeys(ctx context.Context) (*seal.Keyring, error) {
	files := keyfile.Of(p.Conf)
	ring, err := files.Load(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist) && p.Conf.Embedded():
		if ring, err = files.Make(ctx, time.Now()); errors.Is(err, fs.ErrExist) {
			return nil, settings.Mistake(fmt.Errorf("%w: of %s some are there and some are not: "+
				"restore what is missing from its backup", err, files))
		}
		p.log.Info("made a keyring: back it up, without it the stored tokens are lost",
			"file", files)
		return ring, err
	case errors.Is(err, fs.ErrNotExist):
		return nil, settings.Mistake(fmt.Errorf("%w: make it once with `renewd keys new`, "+
			"and give every renewd of this installation the same (RENEWD_KEYS_FILE)", err))
	case err != nil:
		return nil, settings.Mistake(err)
	}
	return ring, nil
}

// connect starts the embedded NATS server, or connects to the settings' server.
func (p *Resources) connect(ctx context.Context, environ []string) (err error) {
	events := natsEvents(p.log)
	if p.Conf.Embedded() {
		config, err := p.natsd()
		if err != nil {
			return settings.Mistake(err)
		}
		if p.server, err = natsd.Start(ctx, config); err != nil {
			return err
		}
		p.NC, err = p.server.Connect(append(events, nats.Name("renewd"))...)
		return err
	}
	url, opts, err := natsconn.Options(p.Conf, environ)
	if err != nil {
		return settings.Mistake(err)
	}
	what := "NATS at " + settings.HostOf(url)
	connect := func(context.Context) error {
		p.NC, err = nats.Connect(url, append(opts, events...)...)
		return err
	}
	return Patiently(ctx, p.log, p.Conf.StartTimeout, what, "RENEWD_NATS_URL", connect)
}

// NATSFolder is the folder in data_dir where the embedded NATS server keeps its files.
const NATSFolder = "nats"

func (p *Resources) natsd() (natsd.Config, error) {
	c := natsd.Config{
		StoreDir: filepath.Join(p.Conf.DataDir, NATSFolder),
		Listen:   p.Conf.NATSListen,
		Logger:   p.log,
		// Where NATS holds the grants too, an acknowledged write must be on the disk.
		SyncAlways: p.Conf.DatabaseURL.IsZero(),
		Auth:       natsd.Auth{Accounts: p.Conf.NATSAccounts},
	}
	var err error
	if c.Key, err = p.fileKey(); err != nil {
		return c, err
	}
	if p.Conf.NATSAccounts == "" {
		c.Auth = natsd.Auth{
			User:     p.Conf.NATSUser,
			Password: p.Conf.NATSPassword,
			Token:    p.Conf.NATSToken,
		}
	}
	if p.Conf.NATSCert == "" {
		return c, nil
	}
	shown, err := loadCertificate(p.Conf.NATSCert, p.Conf.NATSKey)
	if err != nil {
		return c, fmt.Errorf("nats_cert: %w", err)
	}
	c.TLS = shown.server()
	return c, nil
}

// streams makes sure that the streams are as the settings want, and publishes the public key.
func (p *Resources) streams(ctx context.Context) (err error) {
	if p.JS, err = jetstream.New(p.NC); err != nil {
		return err
	}
	if p.server != nil {
		err := topology.CheckFolder(ctx, p.JS, filepath.Join(p.Conf.DataDir, NATSFolder))
		if errors.Is(err, topology.ErrUnreadable) {
			return fmt.Errorf("%w. If nats_accounts was set or unset since: "+
				"rename the account's folder there (jetstream/$G is that without accounts, "+
				"jetstream/RENEWD that of renewd's account); files that are encrypted are of the "+
				"account that they were written for", err)
		}
		if err != nil {
			return err
		}
	}
	p.Engine, err = stream.NewEngine(p.JS, stream.Config{
		Subjects:    p.Conf.Subjects(),
		SyncedTTL:   min(p.Conf.SyncedAge, p.Conf.OutcomeAge),
		RejectedTTL: min(p.Conf.RejectedAge, p.Conf.OutcomeAge),
		Propagator:  p.tel.propagator,
		Meter:       p.tel.meter,
		Logger:      p.log,
	})
	if err != nil {
		return err
	}
	prepare := func(ctx context.Context) error {
		// A request that no leader hears is never answered. A short limit lets it be asked again as
		// soon as there is a leader.
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := p.ensureStreams(ctx); err != nil {
			return err
		}
		if err := p.publishKeys(ctx); err != nil {
			return err
		}
		p.health, err = p.JS.KeyValue(ctx, p.Conf.Subjects().Name(topology.BucketProviders))
		if err != nil {
			return fmt.Errorf("open bucket %s: %w", topology.BucketProviders, err)
		}
		return p.Engine.SyncClock(ctx)
	}
	return Patiently(ctx, p.log, p.Conf.StartTimeout, "the streams", "RENEWD_NATS_URL", prepare)
}

func (p *Resources) ensureStreams(ctx context.Context) error {
	plan, err := topology.Plan(ctx, p.JS, Topology(p.Conf))
	if err != nil {
		return err
	}
	// Only the operator may have an existing stream limited.
	plan, unbounded := plan.WithoutBounds(p.Conf.StreamsApply)
	if len(unbounded) > 0 {
		p.log.Warn("streams have not the limits of the settings (outcome_bytes, command_bytes): "+
			"see renewd streams plan, then renewd streams apply, or set RENEWD_STREAMS_APPLY=true",
			"streams", unbounded)
	}
	if err := plan.Refusal(); err != nil {
		return settings.Mistake(fmt.Errorf("%w\nsee: renewd streams plan", err))
	}
	rest := Unbraked(plan)
	switch {
	case !rest.Pending():
		return nil
	case p.Conf.Embedded() || p.Conf.StreamsApply:
		return topology.Apply(ctx, p.JS, plan)
	case rest.OnlySenders():
		p.log.Warn(WithoutSenders, "hint", "once no worker of an older version is left run "+
			"`renewd streams apply`, or set RENEWD_STREAMS_APPLY=true")
		return nil
	default:
		return settings.Mistake(errors.New("the streams on the NATS server are not as " +
			"the settings want them:\n" + plan.String() +
			"run `renewd streams apply`, or set RENEWD_STREAMS_APPLY=true " +
			"to have it done at start"))
	}
}

// WithoutSenders is what streams of a version without senders mean.
const WithoutSenders = "the streams do not take commands that name their sender yet: " +
	"services with NATS accounts of their own cannot publish"

// Unbraked is the plan without the consumers that differ only in how many renewals may be handled
// at once. A provider in trouble is slowed down by this number, and its guard restores it.
func Unbraked(plan topology.Changes) topology.Changes {
	other := func(d topology.Difference) bool { return d.Field != "max_ack_pending" }
	plan.Items = slices.DeleteFunc(slices.Clone(plan.Items), func(i topology.Change) bool {
		return i.Kind == "consumer" && i.Action == topology.Update &&
			!slices.ContainsFunc(i.Differences, other)
	})
	return plan
}

// ready lists the probes of /readyz.
func (p *Resources) ready() []probe {
	return []probe{
		{"nats", func(context.Context) error {
			if !p.NC.IsConnected() {
				return fmt.Errorf("not connected to %s: %s (RENEWD_NATS_URL)",
					p.Conf.DescribeNATS(), p.NC.Status())
			}
			return nil
		}},
		{"streams", func(ctx context.Context) error {
			_, err := p.JS.Stream(ctx, p.Conf.Subjects().Name(topology.Renewals))
			return err
		}},
		{"clock", func(context.Context) error { return p.Engine.Ready() }},
		{"public key", p.askPublished},
		{"store", p.askStore},
	}
}

// askStore loads a grant that cannot exist: any answer will do.
func (p *Resources) askStore(ctx context.Context) error {
	_, err := p.Store.Load(ctx, grant.Key{Provider: "readyz", User: "nobody"})
	if errors.Is(err, grant.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s does not answer: %w", p.Conf.DescribeStore(), err)
	}
	return nil
}

// draw is the randomness of jitter.
func draw() float64 { return rand.Float64() }
