package consumers_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/schema"
)

// A service ends a user's sessions when the user must sign in again. docs/examples/force-logout is
// the whole program.
func ExampleSubscribe() {
	watch := func(ctx context.Context, nc *nats.Conn, signOut func(user, reason string) error) error {
		s := consumers.Subscription{Types: []schema.Type{schema.UserReauthRequired}, Durable: "shop-sessions"}
		return consumers.Subscribe(ctx, nc, s, func(_ context.Context, e schema.Event) error {
			d, err := schema.Data[schema.ReauthRequired](e)
			if err != nil {
				return nil
			}
			return signOut(e.User, d.Reason)
		})
	}
	_ = watch
}

// An auditor asks why one user was signed out.
func ExampleReplay() {
	why := func(ctx context.Context, nc *nats.Conn, provider, user string) {
		q := consumers.Query{Since: time.Now().Add(-24 * time.Hour), Provider: provider, User: user}
		for e, err := range consumers.Replay(ctx, nc, q) {
			if err != nil {
				log.Print(err)
				return
			}
			fmt.Println(e.Time.Format(time.RFC3339), e.Type, string(e.Data))
		}
	}
	_ = why
}
