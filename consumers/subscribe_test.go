package consumers_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/testkit/link"
	"github.com/renewd/renewd/schema"
)

// subscribe runs a subscription that passes on the ids of its events; stop waits for its end and
// returns its error.
func subscribe(
	t *testing.T, nc *nats.Conn, s consumers.Subscription, fn func(schema.Event) error,
) (ids <-chan string, stop func() error) {
	t.Helper()
	seen := make(chan string, 10_000)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- consumers.Subscribe(ctx, nc, s, func(_ context.Context, e schema.Event) error {
			seen <- e.ID
			if fn != nil {
				return fn(e)
			}
			return nil
		})
	}()
	stop = sync.OnceValue(func() error { cancel(); return receive(t, ended) })
	t.Cleanup(func() { _ = stop() })
	return seen, stop
}

// subscribed waits until a subscription has found its place in OUTCOMES.
func subscribed(t *testing.T, js jetstream.JetStream, n int) {
	t.Helper()
	eventually(t, "a subscription", func() bool {
		s, err := js.Stream(t.Context(), "OUTCOMES")
		return err == nil && s.CachedInfo().State.Consumers == n
	})
}

func wantIDs(t *testing.T, ids <-chan string, want ...string) {
	t.Helper()
	for _, w := range want {
		if got := receive(t, ids); got != w {
			t.Fatalf("event %s, want %s", got, w)
		}
	}
}

func TestSubscribeFromNowOn(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	js := outcomes(t, nc)
	say(t, js, "old", schema.UserSynced, "u17", schema.Synced{})
	ids, stop := subscribe(t, nc, consumers.Subscription{}, nil)
	subscribed(t, js, 1)
	for i, of := range schema.Outcomes() {
		user := "u17"
		if !of.PerUser() {
			user = ""
		}
		say(t, js, fmt.Sprint("e", i), of, user, struct{}{})
	}
	wantIDs(t, ids, "e0", "e1", "e2", "e3", "e4", "e5", "e6", "e7", "e8")
	if err := stop(); err != nil {
		t.Errorf("at its end: %v", err)
	}
	subscribed(t, js, 0) // it leaves nothing behind
}

func TestSubscribeFilters(t *testing.T) {
	for name, c := range map[string]struct {
		s    consumers.Subscription
		want []string
	}{
		"all": {consumers.Subscription{}, []string{"1", "2", "3", "4"}},
		"type": {
			consumers.Subscription{Types: []schema.Type{schema.UserReauthRequired}}, []string{"2"},
		},
		"user": {
			consumers.Subscription{Provider: "propelauth", User: "jane@example.com"}, []string{"3"},
		},
		"provider": {consumers.Subscription{Provider: "okta"}, nil},
	} {
		for _, durable := range []string{"", "place"} {
			t.Run(name+durable, func(t *testing.T) {
				t.Parallel()
				nc := connect(t, start(t, false))
				js := outcomes(t, nc)
				say(t, js, "1", schema.UserSynced, "u17", struct{}{})
				say(t, js, "2", schema.UserReauthRequired, "u17", struct{}{})
				say(t, js, "3", schema.UserSynced, "jane@example.com", struct{}{})
				say(t, js, "4", schema.ProviderDegraded, "", struct{}{})
				s := c.s
				s.StartAll, s.Durable = true, durable
				ids, _ := subscribe(t, nc, s, nil)
				wantIDs(t, ids, c.want...)
				subscribed(t, js, 1)
				if len(ids) > 0 {
					t.Errorf("also %s", <-ids)
				}
			})
		}
	}
}

func TestSubscribeSince(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	js := outcomes(t, nc)
	say(t, js, "old", schema.UserSynced, "u17", struct{}{})
	say(t, js, "new", schema.UserSynced, "u17", struct{}{})
	s, _ := js.Stream(t.Context(), "OUTCOMES")
	msg, err := s.GetMsg(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	ids, _ := subscribe(t, nc, consumers.Subscription{Since: msg.Time}, nil)
	wantIDs(t, ids, "new")
}

// A subscription to one user asks the server for one pattern of subjects: with several the server
// would look through all of them.
func TestSubscribeToOneUserHasOneFilter(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	js := outcomes(t, nc)
	say(t, js, "other", schema.UserSynced, "u18", struct{}{})
	say(t, js, "synced", schema.UserSynced, "u17", struct{}{})
	say(t, js, "ended", schema.UserReauthRequired, "u17", struct{}{})
	ids, _ := subscribe(t, nc, consumers.Subscription{
		Provider: "propelauth", User: "u17", StartAll: true,
	}, nil)
	wantIDs(t, ids, "synced", "ended")
	s, err := js.Stream(t.Context(), "OUTCOMES")
	if err != nil {
		t.Fatal(err)
	}
	for i := range s.ListConsumers(t.Context()).Info() {
		if several := i.Config.FilterSubjects; len(several) > 1 {
			t.Errorf("it has the filters %q", several)
		}
	}
}

func TestSubscribePassesOverWhatIsNoEvent(t *testing.T) {
	for _, durable := range []string{"", "place"} {
		t.Run("durable="+durable, func(t *testing.T) {
			t.Parallel()
			nc := connect(t, start(t, false))
			js := outcomes(t, nc)
			for _, m := range []*nats.Msg{
				{Subject: "user.synced.propelauth.u17", Data: []byte("<html>")},
				{Subject: "user.synced.propelauth.jane@example.com", Data: []byte("{}")},
				{
					Subject: "user.synced.propelauth.u17",
					Header:  nats.Header{"ce-specversion": {"9.9"}},
				},
				// Without an envelope: only commands may.
				{Subject: "user.synced.propelauth.u17", Data: []byte("{}")},
				{Subject: "message.rejected.a.b.c.d.e"},
			} {
				if _, err := js.PublishMsg(t.Context(), m); err != nil {
					t.Fatal(err)
				}
			}
			say(t, js, "good", schema.UserSynced, "u17", struct{}{})
			var logged logs
			ids, _ := subscribe(t, nc,
				consumers.Subscription{StartAll: true, Durable: durable, Logger: logged.Logger()},
				nil)
			wantIDs(t, ids, "good")
			if !logged.Has("no event") {
				t.Error("passed over in silence")
			}
		})
	}
}

func TestSubscribeEndsWithTheErrorOfItsFunction(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	js := outcomes(t, nc)
	say(t, js, "1", schema.UserSynced, "u17", struct{}{})
	err := consumers.Subscribe(t.Context(), nc, consumers.Subscription{StartAll: true},
		func(context.Context, schema.Event) error { return errFlaky })
	if !errors.Is(err, errFlaky) {
		t.Errorf("%v", err)
	}
}

func TestDurableGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	js := outcomes(t, nc)
	s := consumers.Subscription{Durable: "place"}
	ids, stop := subscribe(t, nc, s, nil)
	subscribed(t, js, 1)
	say(t, js, "1", schema.UserSynced, "u17", struct{}{})
	wantIDs(t, ids, "1")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	say(t, js, "2", schema.UserSynced, "u17", struct{}{})
	s.Types, s.UpdateFilter = []schema.Type{schema.UserSynced}, true // what is asked for may change
	ids, _ = subscribe(t, nc, s, nil)
	wantIDs(t, ids, "2")
	say(t, js, "3", schema.UserReauthRequired, "u17", struct{}{})
	say(t, js, "4", schema.UserSynced, "u17", struct{}{})
	wantIDs(t, ids, "4")
}

func TestDurableRetriesInOrder(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	js := outcomes(t, nc)
	for _, id := range []string{"1", "2", "3"} {
		say(t, js, id, schema.UserSynced, "u17", struct{}{})
	}
	failed := false
	place := consumers.Subscription{Durable: "place", StartAll: true}
	ids, _ := subscribe(t, nc, place, func(e schema.Event) error {
		if e.ID == "2" && !failed {
			failed = true
			return errFlaky
		}
		return nil
	})
	wantIDs(t, ids, "1", "2", "2", "3")
}

func TestDurableIsShared(t *testing.T) {
	t.Parallel()
	s := start(t, false)
	js := outcomes(t, connect(t, s))
	sub := consumers.Subscription{Durable: "place", StartAll: true, Concurrency: 4}
	var want []string
	for i := range 100 {
		want = append(want, fmt.Sprintf("%03d", i))
		say(t, js, want[i], schema.UserSynced, "u17", struct{}{})
	}
	a, _ := subscribe(t, connect(t, s), sub, nil)
	b, _ := subscribe(t, connect(t, s), sub, nil)
	var got []string
	for range want {
		select {
		case id := <-a:
			got = append(got, id)
		case id := <-b:
			got = append(got, id)
		case <-time.After(patience):
			t.Fatalf("only %d came", len(got))
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

// What is published while the connection is gone is read when it is back, in order.
func TestSubscribeMissesNothingOverACut(t *testing.T) {
	t.Parallel()
	s := start(t, true)
	js := outcomes(t, connect(t, s))
	wire := link.For(t, s.Addr().String())
	ids, stop := subscribe(t, through(t, wire), consumers.Subscription{}, nil)
	subscribed(t, js, 1)
	var want []string
	for i := range 300 {
		want = append(want, fmt.Sprint(i))
		say(t, js, want[i], schema.UserSynced, "u17", struct{}{})
		if i%100 == 50 {
			wire.HangUp()
		}
	}
	wantIDs(t, ids, want...)
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestSubscribeWaitsForTheStream(t *testing.T) {
	for _, durable := range []string{"", "place"} {
		t.Run("durable="+durable, func(t *testing.T) {
			t.Parallel()
			nc := connect(t, start(t, false))
			var logged logs
			ids, _ := subscribe(t, nc,
				consumers.Subscription{Durable: durable, Logger: logged.Logger()}, nil)
			eventually(t, "the missing stream is reported", func() bool {
				return logged.Has("trying again")
			})
			js := outcomes(t, nc)
			subscribed(t, js, 1)
			say(t, js, "1", schema.UserSynced, "u17", struct{}{})
			wantIDs(t, ids, "1")
		})
	}
}

func TestSubscriptionNamesTheField(t *testing.T) {
	nc := connect(t, start(t, false))
	for field, s := range map[string]consumers.Subscription{
		"prefix": {Prefix: "a b"},
		"Types":  {Types: []schema.Type{schema.UserLogin}},
		"Types: none": {
			Types:    []schema.Type{schema.OperatorActed},
			Provider: "propelauth",
			Durable:  "place",
		},
		"Provider":    {Provider: ">"},
		"User":        {User: "a\nb"},
		"Durable":     {Durable: "a.b"},
		"Concurrency": {Concurrency: 2},
		"Since":       {Since: time.Now(), StartAll: true},
		"StartAt":     {StartAt: 5, StartAll: true},
		"APIPrefix":   {APIPrefix: "$JS.renewd.API"},
	} {
		err := consumers.Subscribe(t.Context(), nc, s, nil)
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
