package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/idp/idptest"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// demo is an app whose users sign in at a stand-in: it tells renewd of each login, as any service
// would, and has those sign in again who must. Now and then the provider ends somebody's session,
// or a user changes something.
type demo struct {
	standIn             *idptest.Server
	provider            string // renewd's id of it
	prefix              string // of renewd's subjects and streams
	api                 string // where JetStream is imported; empty: renewd's account is the app's
	durable             string // that the outcomes are read from; empty: a consumer of its own
	users               int
	endEvery, editEvery time.Duration
	say                 func(text string)        // what happens at the provider
	seen                func(schema.Event) error // each outcome
}

func demoUser(n int) string { return fmt.Sprintf("user-%02d", n+1) }

// demoPatience is how long a user who was signed out takes to sign in again.
const demoPatience = time.Second

// run lets things happen until ctx ends.
func (d demo) run(ctx context.Context, nc *nats.Conn) error {
	pub, err := publishers.New(nc,
		publishers.WithPrefix(d.prefix), publishers.WithAPIPrefix(d.api), publishers.WithSource("/demo-app"))
	if err != nil {
		return err
	}
	again := make(chan string, d.users)
	watched := consumers.Subscription{Prefix: d.prefix, Provider: d.provider, Since: time.Now()}
	if d.durable != "" { // the operator made it, and said for what
		watched = consumers.Subscription{Prefix: d.prefix, APIPrefix: d.api, Durable: d.durable}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return consumers.Subscribe(ctx, nc, watched, func(ctx context.Context, e schema.Event) error {
			if e.Provider != d.provider {
				return nil
			}
			if e.Type == schema.UserReauthRequired {
				select {
				case again <- e.User:
				case <-ctx.Done():
				}
			}
			return d.seen(e)
		})
	})
	group.Go(func() error {
		for n := range d.users {
			// Who is signed in still goes on with the grant that renewd has.
			if name := demoUser(n); !d.standIn.Live(name) {
				d.login(ctx, pub, name)
			}
		}
		d.play(ctx, pub, again)
		return nil
	})
	return group.Wait()
}

func (d demo) play(ctx context.Context, pub *publishers.Publisher, again <-chan string) {
	end, edit := time.NewTicker(d.endEvery), time.NewTicker(d.editEvery)
	defer end.Stop()
	defer edit.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case name := <-again:
			pause(ctx, demoPatience)
			d.login(ctx, pub, name)
		case <-end.C:
			name := demoUser(rand.IntN(d.users))
			d.standIn.EndSessions(name)
			d.say("the provider ends the session of " + name)
		case <-edit.C:
			d.standIn.Edit(demoUser(rand.IntN(d.users)), func(p map[string]any) { p["mfa_enabled"] = p["mfa_enabled"] != true })
		}
	}
}

// login signs the user in and tells renewd, until it is told.
func (d demo) login(ctx context.Context, pub *publishers.Publisher, name string) {
	for ctx.Err() == nil {
		t := d.standIn.Login(name)
		_, err := pub.Login(ctx, d.provider, name, publishers.Tokens{
			AccessToken: t.Access, RefreshToken: t.Refresh, ExpiresIn: time.Duration(t.ExpiresIn) * time.Second,
		})
		if err == nil || ctx.Err() != nil {
			return
		}
		d.say(fmt.Sprintf("%s cannot sign in, and tries again: %v", name, err))
		pause(ctx, demoPatience)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
