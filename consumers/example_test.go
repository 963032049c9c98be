package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/oauth2"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/schema"
)

// A service ends a user's sessions when the user must sign in again. docs/examples/force-logout is
// the whole program.
func ExampleSubscribe() {
	type signOut func(user, reason string) error
	watch := func(ctx context.Context, nc *nats.Conn, signOut signOut) error {
		s := consumers.Subscription{
			Types:   []schema.Type{schema.UserReauthRequired},
			Durable: "shop-sessions",
		}
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

// A service calls an API in a user's name. Each request goes out with a token that renewd keeps
// fresh.
func ExampleTokenSource() {
	files := func(ctx context.Context, nc *nats.Conn, user string) (*http.Response, error) {
		client := oauth2.NewClient(ctx, consumers.TokenSource(nc, "propelauth", user))
		answer, err := client.Get("https://api.example.com/files")
		var no *schema.NoToken
		if errors.As(err, &no) && no.SignInAgain() {
			return nil, fmt.Errorf("%s must sign in again: %s since %v", user, no.Reason, no.Since)
		}
		return answer, err
	}
	_ = files
}
