package demo

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// App is an app whose users sign in at a stand-in. It tells renewd of each login, as any service
// would, and signs a user in again after a user.reauth_required. Now and then the provider ends a
// user's session, or a user changes something.
type App struct {
	StandIn             *standin.Server
	Provider            string // renewd's id of the provider
	Prefix              string // of renewd's subjects and streams
	API                 string // where JetStream is imported; empty: renewd's account is the app's
	Durable             string // to read the outcomes from; empty: the app makes its own consumer
	Users               int
	EndEvery, EditEvery time.Duration
	Say                 func(text string)        // what happens at the provider
	Seen                func(schema.Event) error // each outcome
}

// User is the id of the app's user number n, from 0 on.
func User(n int) string { return fmt.Sprintf("user-%02d", n+1) }

// demoPatience is how long a user who was signed out takes to sign in again.
const demoPatience = time.Second

// Run lets things happen until ctx ends.
func (d App) Run(ctx context.Context, nc *nats.Conn) error {
	pub, err := publishers.New(nc,
		publishers.WithPrefix(d.Prefix), publishers.WithAPIPrefix(d.API),
		publishers.WithSource("/demo-app"))
	if err != nil {
		return err
	}
	again := make(chan string, d.Users)
	watched := consumers.Subscription{Prefix: d.Prefix, Provider: d.Provider, Since: time.Now()}
	if d.Durable != "" { // the operator made the durable, with its subscription
		watched = consumers.Subscription{Prefix: d.Prefix, APIPrefix: d.API, Durable: d.Durable}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return consumers.Subscribe(ctx, nc, watched,
			func(ctx context.Context, e schema.Event) error {
				if e.Provider != d.Provider {
					return nil
				}
				if e.Type == schema.UserReauthRequired {
					select {
					case again <- e.User:
					case <-ctx.Done():
					}
				}
				return d.Seen(e)
			})
	})
	group.Go(func() error {
		for n := range d.Users {
			// A user who is still signed in goes on with the grant that renewd has.
			if name := User(n); !d.StandIn.Live(name) {
				d.login(ctx, pub, name)
			}
		}
		d.play(ctx, pub, again)
		return nil
	})
	return group.Wait()
}

func (d App) play(ctx context.Context, pub *publishers.Publisher, again <-chan string) {
	end, edit := time.NewTicker(d.EndEvery), time.NewTicker(d.EditEvery)
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
			name := User(rand.IntN(d.Users))
			d.StandIn.EndSessions(name)
			d.Say("the provider ends the session of " + name)
		case <-edit.C:
			d.StandIn.Edit(User(rand.IntN(d.Users)), func(p map[string]any) {
				p["mfa_enabled"] = p["mfa_enabled"] != true
			})
		}
	}
}

// login signs the user in and tells renewd, and tries again until renewd has the login.
func (d App) login(ctx context.Context, pub *publishers.Publisher, name string) {
	for ctx.Err() == nil {
		t := d.StandIn.Login(name)
		_, err := pub.Login(ctx, d.Provider, name, publishers.Tokens{
			AccessToken:  t.Access,
			RefreshToken: t.Refresh,
			ExpiresIn:    time.Duration(t.ExpiresIn) * time.Second,
		})
		if err == nil || ctx.Err() != nil {
			return
		}
		d.Say(fmt.Sprintf("%s cannot sign in, and tries again: %v", name, err))
		pause(ctx, demoPatience)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
