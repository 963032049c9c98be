package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/postgres"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/testkit/proc"
	"github.com/renewd/renewd/internal/testkit/storetest"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// natsCommand is a NATS server in a separate process.
type natsCommand struct {
	Listen string `required:""`
	Dir    string `required:""`
}

// Run serves until it is killed.
func (c natsCommand) Run(ctx context.Context) error {
	s, err := natsd.Start(ctx, natsd.Config{StoreDir: c.Dir, Listen: c.Listen})
	if err != nil {
		return err
	}
	defer s.Shutdown()
	fmt.Println("ready")
	<-ctx.Done()
	return nil
}

// startNATS starts a natsCommand with its streams below the benchmark's folder.
func (b *bench) startNATS(folder string) (server *process, url string, err error) {
	addr, err := proc.FreeAddr()
	if err != nil {
		return nil, "", err
	}
	server, err = launch(b.dir, "nats", exec.Command(b.self, "nats", "--listen", addr, "--dir",
		filepath.Join(b.dir, folder)))
	if err != nil {
		return nil, "", err
	}
	_, err = server.line()
	return server, "nats://" + addr, err
}

// jetStreamCommand does the stream's part of a renewal. It takes a due message, publishes the
// outcome and the next timer, and acknowledges the message. No provider, no store.
type jetStreamCommand struct{ peerOptions }

// Run does this for all users, then waits to be killed.
func (c jetStreamCommand) Run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := natsd.Start(ctx, natsd.Config{StoreDir: dir})
	if err != nil {
		return err
	}
	defer s.Shutdown()
	nc, err := s.Connect()
	if err != nil {
		return err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	if _, err := topology.Ensure(
		ctx, js,
		topology.Topology{
			Providers: []topology.Provider{{ID: providerID, Concurrency: c.Workers}},
		}.WithDefaults(),
	); err != nil {
		return err
	}
	e, err := stream.NewEngine(js, stream.Config{})
	if err != nil {
		return err
	}
	err = parallel(256, c.Users, func(n int) error {
		return e.Wake(ctx, keyOf(n), grant.Work{
			Cause: schema.Cause{ID: "c", Type: schema.CauseTimer, Source: "/bench"},
		})
	})
	if err != nil {
		return err
	}
	return race(ctx, func(ctx context.Context) error { return c.consume(ctx, js, e) })
}

func keyOf(n int) grant.Key { return grant.Key{Provider: providerID, User: userName(n)} }

func (c jetStreamCommand) consume(
	ctx context.Context, js jetstream.JetStream, e *stream.Engine,
) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var done atomic.Int64
	r, err := runner.New(runner.Config{
		JetStream: js,
		Stream:    topology.Renewals,
		Durable:   topology.ConsumerRenew(providerID),
		Slots:     c.Workers,
		Handler: func(ctx context.Context, m *runner.Message) error {
			k, w, err := e.ParseWork(m.Subject, m.Header)
			if err != nil {
				return err
			}
			armed := make(chan error, 1)
			go func() { armed <- e.Arm(ctx, k, time.Now().Add(time.Hour), w) }()
			if err := e.Publish(ctx, outcome(k, w.Cause, 1, time.Now())); err != nil {
				return err
			}
			if err := <-armed; err != nil {
				return err
			}
			if done.Add(1) == int64(c.Users) {
				stop()
			}
			return nil
		},
	})
	if err != nil {
		return err
	}
	return r.Run(ctx)
}

// outcome is a user.synced as renewd publishes it.
func outcome(k grant.Key, cause schema.Cause, version int64, now time.Time) schema.Event {
	g := grant.Grant{
		Key:       k,
		Version:   version,
		Cause:     cause,
		Status:    grant.Live,
		BeganAt:   now,
		Refreshed: true,
		NextDueAt: now.Add(lifetime),
		Pair: grant.Pair{
			Access:    secret.New("a"),
			Refresh:   secret.New("r"),
			ExpiresAt: now.Add(lifetime),
			Lifetime:  lifetime,
		},
	}
	profile, err := grant.NewProfile(schema.Profile{
		ID:        k.User,
		Email:     k.User + "@example.org",
		FirstName: "Ines",
		LastName:  "Moreau",
		Name:      "Ines Moreau",
		Username:  "ines",
	})
	if err != nil {
		panic(err) // made of our own structs
	}
	g, _ = g.WithProfile(grant.Turn{
		Work:    grant.Work{Cause: cause},
		Nonce:   "n",
		BeganAt: now,
		Now:     now,
		Policy:  new(grant.Policy{}.WithDefaults()),
	}, profile)
	return g.Event("/renewd", now, grant.ShowMapped)
}

// storeCommand does the store's part of a renewal: load, claim, save.
type storeCommand struct{ peerOptions }

// Run does this for all users, then waits to be killed.
func (c storeCommand) Run(ctx context.Context) error {
	keys, err := seal.NewKeyring(time.Now())
	if err != nil {
		return err
	}
	s, err := postgres.Open(ctx, postgres.Config{URL: secret.New(c.Database), Cipher: keys})
	if err != nil {
		return err
	}
	defer s.Close()
	now := time.Now()
	if err := parallel(256, c.Users, func(n int) error {
		pair := grant.Pair{
			Access:    secret.New("a"),
			Refresh:   secret.New(userName(n)),
			ExpiresAt: now,
			Lifetime:  lifetime,
			SentAt:    now,
		}
		position := grant.Position{Stream: now, Sequence: 1}
		turn := grant.Turn{Now: now, Policy: new(grant.Policy{}.WithDefaults())}
		g := storetest.SignedIn(keyOf(n), pair, position, turn)
		_, err := s.Save(ctx, g)
		return err
	}); err != nil {
		return err
	}
	return race(ctx, func(ctx context.Context) error {
		return parallel(c.Workers, c.Users, func(n int) error {
			work := grant.Work{
				Cause: schema.Cause{ID: "c", Type: schema.CauseTimer, Source: "/bench"},
			}
			if _, err := s.Load(ctx, keyOf(n)); err != nil {
				return err
			}
			g, _, err := s.Claim(ctx, keyOf(n), grant.ClaimRequest{
				Nonce:     "n",
				For:       10 * time.Second,
				Cause:     work.Cause,
				Presented: true,
			})
			if err != nil {
				return err
			}
			_, err = s.Save(ctx, g.Rotated(grant.Turn{
				Work:    work,
				Nonce:   "n",
				BeganAt: now,
				Now:     time.Now(),
				Policy:  new(grant.Policy{}.WithDefaults()),
			},
				grant.Tokens{
					Access:    secret.New("b"),
					Refresh:   secret.New("r" + userName(n)),
					ExpiresIn: lifetime,
					SentAt:    time.Now(),
				}, g.Fingerprint()))
			return err
		})
	})
}
