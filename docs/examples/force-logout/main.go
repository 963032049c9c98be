// Command force-logout ends a user's sessions in this service when the user must sign in again.
//
// It is a complete subscriber: it keeps its place under a durable name, so nothing is missed while
// it is down, and it compares versions, since an event may come twice. It never asks a provider or a
// database anything.
package main

import (
	"context"
	"log"
	"os"
	"os/signal"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/schema"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	nc, err := nats.Connect(nats.DefaultURL)
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()

	sessions := map[schema.Address]int64{} // user → the newest version that this service has acted on

	err = consumers.Subscribe(ctx, nc, consumers.Subscription{
		Types:   []schema.Type{schema.UserReauthRequired},
		Durable: "shop-sessions",
	}, func(ctx context.Context, e schema.Event) error {
		d, err := schema.Data[schema.ReauthRequired](e)
		if err != nil {
			return nil // another type of event, or none: never a reason to sign anybody out
		}
		if d.Version <= sessions[e.Address()] {
			return nil // delivered again, or older than what we know
		}
		log.Printf("sign %s out: %s", e.User, d.Reason) // here: delete this user's sessions
		sessions[e.Address()] = d.Version
		return nil // an error instead would bring the event again
	})
	if err != nil {
		log.Print(err)
	}
}
