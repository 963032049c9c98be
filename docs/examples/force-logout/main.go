// Command force-logout ends a user's sessions in this service when the user must sign in again.
//
// The program is a complete subscriber. Its place is kept under a durable name, so no event is
// missed while the program is down. Versions are compared, since an event may come twice. The
// program asks neither a provider nor a database.
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

	// sessions are the newest versions this service has acted on, by user.
	sessions := map[schema.Address]int64{}

	err = consumers.Subscribe(ctx, nc, consumers.Subscription{
		Types:   []schema.Type{schema.UserReauthRequired},
		Durable: "shop-sessions",
	}, func(ctx context.Context, e schema.Event) error {
		d, err := schema.Data[schema.ReauthRequired](e)
		if err != nil {
			return nil // another type of event, or no event: never a reason to sign a user out
		}
		if d.Version <= sessions[e.Address()] {
			return nil // delivered again, or older than the version acted on
		}
		// Here: delete the user's sessions that began before d.BeganAt.
		log.Printf("sign %s out: %s", e.User, d.Reason)
		sessions[e.Address()] = d.Version
		return nil // an error instead would bring the event again
	})
	if err != nil {
		log.Print(err)
	}
}
