package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/stream"
)

// plant is all that the running program stands on, once it is up.
type plant struct {
	conf      *configuration
	log       *slog.Logger
	tel       *telemetry
	server    *natsd.Server // nil: NATS runs elsewhere
	nc        *nats.Conn
	js        jetstream.JetStream
	engine    *stream.Engine
	health    jetstream.KeyValue // of the providers
	keys      *liveKeys
	published publishedKey
	store     store
}

// store is a grant.Store that can be closed.
type store struct {
	grant.Store
	close func()
}

// build brings everything up, in the order in which it stands on one another. It waits for NATS and
// the database as long as the settings say. After an error nothing is left behind.
func build(ctx context.Context, conf *configuration, environ []string, log *slog.Logger, tel *telemetry, say func(string)) (p *plant, err error) {
	p = &plant{conf: conf, log: log, tel: tel}
	defer func() {
		if err != nil {
			p.close()
			p = nil
		}
	}()
	say("the keyring")
	ring, err := p.loadKeys(ctx)
	if err != nil {
		return p, err
	}
	p.keys = newLiveKeys(conf.keyFile(), ring, conf.names)
	say(conf.natsText())
	if err = p.connect(ctx, environ); err != nil {
		return p, err
	}
	if err = p.streams(ctx); err != nil {
		return p, err
	}
	what, setting := "the bucket of grants in NATS", "RENEWD_NATS_URL"
	if !conf.DatabaseURL.IsZero() {
		what, setting = "PostgreSQL at "+databaseHost(conf.DatabaseURL), "RENEWD_DATABASE_URL"
	}
	say(what)
	if err = patiently(ctx, log, conf.StartTimeout, what, setting, p.openStore); err != nil {
		return p, err
	}
	return p, nil
}

// close ends what build brought up, the last first.
func (p *plant) close() {
	if p.store.close != nil {
		p.store.close()
	}
	if p.nc != nil {
		p.nc.Close()
	}
	if p.server != nil {
		p.server.Shutdown()
	}
}

// loadKeys reads the keyring. Only where NATS is embedded, and so this process alone, may it make
// one: two processes that each made their own could not read each other's grants.
func (p *plant) loadKeys(ctx context.Context) (*seal.Keyring, error) {
	file := p.conf.keyFile()
	ring, err := file.load(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist) && p.conf.embedded():
		p.log.Info("made a keyring: back it up, without it the stored tokens are lost", "file", file.path)
		return file.make(ctx, time.Now())
	case errors.Is(err, fs.ErrNotExist):
		return nil, usageError{fmt.Errorf("%w: make it once with `renewd keys new`, and give every renewd of this installation the same (RENEWD_KEYS_FILE)", err)}
	case err != nil:
		return nil, usageError{err}
	}
	return ring, nil
}

// serverGC is how much the heap of a process with a NATS server grows between two collections, in
// percent. The server's index of every grant is most of that heap and lives as long as they do:
// marking it at each doubling would be the dearest part of a renewal (docs/performance.md).
const serverGC = 200

// collectLess applies serverGC, unless GOGC says something else.
func collectLess() {
	const usual = 100
	if was := debug.SetGCPercent(serverGC); was != usual {
		debug.SetGCPercent(was)
	}
}

// connect starts the embedded NATS server, or finds the one of the settings.
func (p *plant) connect(ctx context.Context, environ []string) (err error) {
	events := natsEvents(p.log)
	if p.conf.embedded() {
		config, err := p.natsd()
		if err != nil {
			return usageError{err}
		}
		if p.server, err = natsd.Start(ctx, config); err != nil {
			return err
		}
		collectLess()
		p.nc, err = p.server.Connect(append(events, nats.Name("renewd"))...)
		return err
	}
	url, opts, err := p.conf.natsOptions(environ)
	if err != nil {
		return usageError{err}
	}
	return patiently(ctx, p.log, p.conf.StartTimeout, "NATS at "+hostOf(url), "RENEWD_NATS_URL", func(context.Context) error {
		p.nc, err = nats.Connect(url, append(opts, events...)...)
		return err
	})
}

// natsFolder is where in data_dir the embedded NATS server keeps its files.
const natsFolder = "nats"

func (p *plant) natsd() (natsd.Config, error) {
	c := natsd.Config{
		StoreDir: filepath.Join(p.conf.DataDir, natsFolder), Listen: p.conf.NATSListen, Logger: p.log,
		// Where NATS holds the grants too, an acknowledged write must be on the disk.
		SyncAlways: p.conf.DatabaseURL.IsZero(),
		Auth:       natsd.Auth{Accounts: p.conf.NATSAccounts},
	}
	if p.conf.NATSAccounts == "" {
		c.Auth = natsd.Auth{User: p.conf.NATSUser, Password: p.conf.NATSPassword, Token: p.conf.NATSToken}
	}
	if p.conf.NATSCert == "" {
		return c, nil
	}
	shown, err := loadCertificate(p.conf.NATSCert, p.conf.NATSKey)
	if err != nil {
		return c, fmt.Errorf("nats_cert: %w", err)
	}
	c.TLS = shown.server()
	return c, nil
}

// streams makes sure that the streams are as the settings want them, and publishes the public key.
func (p *plant) streams(ctx context.Context) (err error) {
	if p.js, err = jetstream.New(p.nc); err != nil {
		return err
	}
	if p.server != nil {
		err := stream.CheckFolder(ctx, p.js, filepath.Join(p.conf.DataDir, natsFolder))
		if errors.Is(err, stream.ErrUnreadable) {
			return fmt.Errorf("%w. If nats_accounts was set or unset since: rename the account's folder "+
				"there (jetstream/$G is that without accounts, jetstream/RENEWD that of renewd's account)", err)
		}
		if err != nil {
			return err
		}
	}
	p.engine, err = stream.NewEngine(p.js, stream.Config{
		Subjects: p.conf.subjects(), SyncedTTL: min(p.conf.SyncedAge, p.conf.OutcomeAge), RejectedTTL: min(p.conf.RejectedAge, p.conf.OutcomeAge), Propagator: p.tel.propagator, Meter: p.tel.meter, Logger: p.log,
	})
	if err != nil {
		return err
	}
	return patiently(ctx, p.log, p.conf.StartTimeout, "the streams", "RENEWD_NATS_URL", func(ctx context.Context) error {
		// A request that no leader hears is never answered: short, so that it is asked again as
		// soon as there is one.
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := p.ensureStreams(ctx); err != nil {
			return err
		}
		if err := p.publishKeys(ctx); err != nil {
			return err
		}
		if p.health, err = p.js.KeyValue(ctx, p.conf.subjects().Name(stream.BucketProviders)); err != nil {
			return fmt.Errorf("open bucket %s: %w", stream.BucketProviders, err)
		}
		return p.engine.SyncClock(ctx)
	})
}

func (p *plant) ensureStreams(ctx context.Context) error {
	plan, err := stream.Plan(ctx, p.js, p.conf.topology())
	if err != nil {
		return err
	}
	// A limit for a stream that is there is the operator's to apply.
	plan, unbounded := plan.WithoutBounds(p.conf.StreamsApply)
	if len(unbounded) > 0 {
		p.log.Warn("streams have not the limits of the settings (outcome_bytes, command_bytes): "+
			"see renewd streams plan, then renewd streams apply, or set RENEWD_STREAMS_APPLY=true",
			"streams", unbounded)
	}
	if err := plan.Refusal(); err != nil {
		return usageError{fmt.Errorf("%w\nsee: renewd streams plan", err)}
	}
	rest := unbraked(plan)
	switch {
	case !rest.Pending():
		return nil
	case p.conf.embedded() || p.conf.StreamsApply:
		return stream.Apply(ctx, p.js, plan)
	case rest.OnlySenders():
		p.log.Warn(withoutSenders, "hint", "once no worker of an older version is left run `renewd streams apply`, "+
			"or set RENEWD_STREAMS_APPLY=true")
		return nil
	default:
		return usageError{errors.New("the streams on the NATS server are not as the settings want them:\n" + plan.String() +
			"run `renewd streams apply`, or set RENEWD_STREAMS_APPLY=true to have it done at start")}
	}
}

// withoutSenders is what streams of a version without senders mean.
const withoutSenders = "the streams do not take commands that name their sender yet: " +
	"services with NATS accounts of their own cannot publish"

// unbraked is the plan without what differs in nothing but how many renewals may be in hand: a
// provider in trouble is slowed down by that, and its guard puts it right.
func unbraked(plan stream.Changes) stream.Changes {
	other := func(d stream.Difference) bool { return d.Field != "max_ack_pending" }
	plan.Items = slices.DeleteFunc(slices.Clone(plan.Items), func(i stream.Change) bool {
		return i.Kind == "consumer" && i.Action == stream.Update && !slices.ContainsFunc(i.Differences, other)
	})
	return plan
}

// publishKeys puts the public key where publishers find it, unless another keyring's is there, or
// this one is of before a key was retired: then this process could not open what the others seal,
// nor they what it does.
func (p *plant) publishKeys(ctx context.Context) error {
	for _, id := range sealing(p.keys.ring.Load()) {
		retired, err := p.engine.Retired(ctx, id)
		if err != nil {
			return err
		}
		if retired {
			return usageError{fmt.Errorf("%s is an old keyring: it seals with key %s, which was retired: "+
				"take the file that the other workers have", p.conf.keysFile(), id)}
		}
	}
	there, err := p.engine.Keys(ctx)
	if err != nil {
		return err
	}
	if there != nil && !knows(p.keys.ring.Load(), there) {
		return usageError{fmt.Errorf("%s is not the keyring that this installation uses: its public key in NATS is another one's: set RENEWD_KEYS_FILE to the right file, or, if that is lost for good, run `renewd keys publish`", p.conf.keysFile())}
	}
	return p.engine.PublishKeys(ctx, p.keys.JWKS())
}

// ready lists what /readyz asks.
func (p *plant) ready() []probe {
	return []probe{
		{"nats", func(context.Context) error {
			if !p.nc.IsConnected() {
				return fmt.Errorf("not connected to %s: %s (RENEWD_NATS_URL)", p.conf.natsText(), p.nc.Status())
			}
			return nil
		}},
		{"streams", func(ctx context.Context) error {
			_, err := p.js.Stream(ctx, p.conf.subjects().Name(stream.Renewals))
			return err
		}},
		{"clock", func(context.Context) error { return p.engine.Ready() }},
		{"public key", p.askPublished},
		{"store", p.askStore},
	}
}

// askStore loads a grant that cannot be there: an answer is all that is wanted.
func (p *plant) askStore(ctx context.Context) error {
	_, err := p.store.Load(ctx, grant.Key{Provider: "readyz", User: "nobody"})
	if errors.Is(err, grant.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s does not answer: %w", p.conf.storeText(), err)
	}
	return nil
}

// draw is the randomness of jitter.
func draw() float64 { return rand.Float64() }
