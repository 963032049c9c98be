package consumers_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/schema"
)

// A durable that vanishes is recreated at its place: nothing is missed without a restart, and no
// handled event comes again.
func TestVanishedDurableIsHeardAgain(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	js := outcomes(t, nc)
	say(t, js, "before", schema.UserSynced, "u17", struct{}{})
	var logged logs
	ids, _ := subscribe(t, nc, consumers.Subscription{Durable: "place", Logger: logged.Logger()},
		nil)
	subscribed(t, js, 1)
	vanish := func(id string) {
		t.Helper()
		if err := js.DeleteConsumer(t.Context(), "OUTCOMES", "place"); err != nil {
			t.Fatal(err)
		}
		say(t, js, id, schema.UserReauthRequired, "u17", struct{}{})
		wantIDs(t, ids, id)
	}
	vanish("nothing was handled yet")
	say(t, js, "2", schema.UserSynced, "u17", struct{}{})
	wantIDs(t, ids, "2")
	vanish("after the second")
	vanish("and the third")
	if !logged.Has("vanished") || !logged.Has("events may come again") {
		t.Error("made anew in silence")
	}
}

// An event that was being handled, or failed, when the durable vanished comes again.
func TestVanishedDurableBringsBackWhatWasInHand(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	js := outcomes(t, nc)
	for _, id := range []string{"1", "2", "3"} {
		say(t, js, id, schema.UserSynced, "u17", struct{}{})
	}
	vanished := false
	place := consumers.Subscription{Durable: "place", StartAll: true}
	ids, _ := subscribe(t, nc, place, func(e schema.Event) error {
		if e.ID != "2" || vanished {
			return nil
		}
		vanished = true
		if err := js.DeleteConsumer(t.Context(), "OUTCOMES", "place"); err != nil {
			t.Error(err)
		}
		return errFlaky
	})
	wantIDs(t, ids, "1", "2", "2", "3")
}

// A recreated stream is read from its beginning, by subscriptions with a durable and without.
func TestSubscriptionOutlivesItsStream(t *testing.T) {
	for _, durable := range []string{"", "place"} {
		t.Run("durable="+durable, func(t *testing.T) {
			t.Parallel()
			nc := connect(t, start(t, false))
			js := outcomes(t, nc)
			var logged logs
			ids, _ := subscribe(t, nc,
				consumers.Subscription{Durable: durable, Logger: logged.Logger()}, nil)
			subscribed(t, js, 1)
			for _, id := range []string{"1", "2", "3"} {
				say(t, js, id, schema.UserSynced, "u17", struct{}{})
			}
			wantIDs(t, ids, "1", "2", "3")
			for _, round := range []string{"a", "b"} {
				if err := js.DeleteStream(t.Context(), "OUTCOMES"); err != nil {
					t.Fatal(err)
				}
				outcomes(t, nc)
				say(t, js, "first "+round, schema.UserReauthRequired, "u17", struct{}{})
				wantIDs(t, ids, "first "+round)
				say(t, js, "second "+round, schema.UserSynced, "u17", struct{}{})
				wantIDs(t, ids, "second "+round)
			}
			if !logged.Has("created again") {
				t.Error("read from its beginning in silence")
			}
		})
	}
}

// What is stored while a subscription waits for its stream is heard, too.
func TestWhatComesWithTheStreamIsHeard(t *testing.T) {
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
			say(t, outcomes(t, nc), "1", schema.UserSynced, "u17", struct{}{})
			wantIDs(t, ids, "1")
		})
	}
}

// Who may not make the durable reads what to do.
func TestMissingRightSaysWhatToDo(t *testing.T) {
	t.Parallel()
	s := startWith(t, &server.Options{Users: []*server.User{
		{Username: "admin", Password: "x"},
		{
			Username: "reader",
			Password: "x",
			Permissions: &server.Permissions{
				Publish: &server.SubjectPermission{Deny: []string{"$JS.API.CONSUMER.CREATE.>"}},
			},
		},
	}})
	as := func(user string) *nats.Conn {
		t.Helper()
		nc, err := nats.Connect("", nats.InProcessServer(s), nats.UserInfo(user, "x"),
			nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	js := outcomes(t, as("admin"))
	place := func() {
		t.Helper()
		if _, err := js.CreateConsumer(t.Context(), "OUTCOMES", jetstream.ConsumerConfig{
			Durable:       "place",
			AckPolicy:     jetstream.AckExplicitPolicy,
			MaxAckPending: 1,
			AckWait:       30 * time.Second,
		}); err != nil {
			t.Fatal(err)
		}
	}
	var logged logs
	ids, _ := subscribe(t, as("reader"),
		consumers.Subscription{Durable: "place", Logger: logged.Logger()}, nil)
	eventually(t, "it says what to do", func() bool {
		return logged.Has("$JS.API.CONSUMER.CREATE.OUTCOMES.place.>")
	})
	place()
	say(t, js, "1", schema.UserSynced, "u17", struct{}{})
	wantIDs(t, ids, "1")
	if err := js.DeleteConsumer(t.Context(), "OUTCOMES", "place"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it says so again", func() bool {
		return logged.Has("nothing is heard until it is back")
	})
	place()
	say(t, js, "2", schema.UserSynced, "u17", struct{}{})
	wantIDs(t, ids, "1", "2") // made by hand, from the beginning
	if logged.Has("is missed") {
		t.Error("nothing was")
	}

	// Made by hand again, too late: what is missed is told, and how to have it.
	say(t, js, "3", schema.UserSynced, "u17", struct{}{})
	wantIDs(t, ids, "3")
	again := func(s consumers.Subscription) {
		t.Helper()
		if err := js.DeleteConsumer(t.Context(), "OUTCOMES", "place"); err != nil {
			t.Fatal(err)
		}
		say(t, js, "4", schema.UserReauthRequired, "u17", struct{}{})
		if err := consumers.Prepare(t.Context(), js.Conn(), s); err != nil {
			t.Fatal(err)
		}
	}
	again(consumers.Subscription{Durable: "place"})
	eventually(t, "it says what is missed", func() bool {
		return logged.Has("is missed") && logged.Has("from sequence 4 on")
	})
	again(consumers.Subscription{Durable: "place", StartAt: 4})
	wantIDs(t, ids, "4") // said twice, stored once
}

// A durable is for the events of those that share it: another instance neither widens nor narrows
// it in silence.
func TestDurableIsNotChangedInSilence(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	js := outcomes(t, nc)
	narrow := consumers.Subscription{
		Durable: "place",
		Types:   []schema.Type{schema.UserReauthRequired},
	}
	subscribe(t, nc, narrow, nil)
	subscribed(t, js, 1)
	for name, change := range map[string]func(*consumers.Subscription){
		"more types": func(s *consumers.Subscription) {
			s.Types = append(s.Types[:1:1], schema.UserSynced)
		},
		"all types": func(s *consumers.Subscription) { s.Types = nil },
		"other types": func(s *consumers.Subscription) {
			s.Types = []schema.Type{schema.UserSynced}
		},
		"one provider": func(s *consumers.Subscription) { s.Provider = "propelauth" },
		"one user":     func(s *consumers.Subscription) { s.User = "u17" },
	} {
		s := narrow
		change(&s)
		// A subscription that is taken goes on.
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err := consumers.Subscribe(ctx, nc, s, func(context.Context, schema.Event) error {
			return nil
		})
		cancel()
		if err == nil || !strings.Contains(err.Error(), "UpdateFilter") ||
			!strings.Contains(err.Error(), "another Durable") {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, err := js.Consumer(t.Context(), "OUTCOMES", "place")
	if err != nil || c.CachedInfo().Config.FilterSubjects[0] != "user.reauth_required.*.*" {
		t.Errorf("%+v, %v", c.CachedInfo().Config, err)
	}
}

// An instance never handles what it did not ask for. Where another instance was told to widen the
// durable, that instance gets the event, and the first ends with an error.
func TestEventsNobodyAskedForReachWhoWantsThem(t *testing.T) {
	t.Parallel()
	s := start(t, false)
	js := outcomes(t, connect(t, s))
	narrow := consumers.Subscription{
		Durable: "place",
		Types:   []schema.Type{schema.UserReauthRequired},
	}
	logouts, ended := subscribe(t, connect(t, s), narrow, nil)
	subscribed(t, js, 1)
	say(t, js, "1", schema.UserReauthRequired, "u17", struct{}{})
	wantIDs(t, logouts, "1")
	wide := narrow
	wide.Types, wide.UpdateFilter = append(wide.Types[:1:1], schema.UserSynced), true
	all, _ := subscribe(t, connect(t, s), wide, nil)
	eventually(t, "the durable is wider", func() bool {
		c, err := js.Consumer(t.Context(), "OUTCOMES", "place")
		return err == nil && len(c.CachedInfo().Config.FilterSubjects) == 2
	})
	heard := 0
	// Until the narrow one was asked, or refused to be.
	for ; len(logouts) == 0 && heard < 1000; heard++ {
		id := fmt.Sprint("synced ", heard)
		say(t, js, id, schema.UserSynced, "u17", struct{}{})
		wantIDs(t, all, id)
		c, err := js.Consumer(t.Context(), "OUTCOMES", "place")
		if err != nil {
			t.Fatal(err)
		}
		if c.CachedInfo().NumWaiting <= 1 && heard > 10 {
			break // only the wide one still asks
		}
	}
	if len(logouts) > 0 {
		t.Errorf("the narrow one handled %s", <-logouts)
	}
	if err := ended(); err == nil || !strings.Contains(err.Error(), "user.synced.propelauth.u17") {
		t.Errorf("the narrow one ended with %v", err)
	}
}

// A durable for everything is the same durable for a later version, which knows more types, and was
// for an earlier one.
func TestDurableForEverythingStaysTheSame(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	js := outcomes(t, nc)
	var listed []string
	for _, of := range schema.Outcomes()[:7] {
		listed = append(listed, schema.Subjects{}.Filter(of, "propelauth", ""))
	}
	if _, err := js.CreateConsumer(t.Context(), "OUTCOMES", jetstream.ConsumerConfig{
		Durable:        "place",
		AckPolicy:      jetstream.AckExplicitPolicy,
		MaxAckPending:  1,
		FilterSubjects: listed,
	}); err != nil {
		t.Fatal(err)
	}
	ids, _ := subscribe(t, nc, consumers.Subscription{Durable: "place", Provider: "propelauth"},
		nil)
	say(t, js, "1", schema.UserSynced, "u17", struct{}{})
	say(t, js, "2", schema.ProviderDegraded, "", struct{}{})
	wantIDs(t, ids, "1", "2")
	c, err := js.Consumer(t.Context(), "OUTCOMES", "place")
	if err != nil || len(c.CachedInfo().Config.FilterSubjects) != 2 {
		t.Errorf("%v, %v", c.CachedInfo().Config.FilterSubjects, err)
	}
}

// A durable for several providers gets theirs and no other, and is the same in whichever order they
// are named.
func TestADurableOfSeveralProviders(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	js := outcomes(t, nc)
	shop := consumers.Subscription{
		Durable:   "shop",
		Providers: []string{"globex", "acme"},
		StartAll:  true,
	}
	typed := consumers.Subscription{
		Durable:   "typed",
		Providers: shop.Providers,
		Types:     []schema.Type{schema.UserSynced},
	}
	for _, s := range []consumers.Subscription{shop, typed} {
		if err := consumers.Prepare(t.Context(), nc, s); err != nil {
			t.Fatal(err)
		}
		s.Providers = []string{"acme", "globex"}
		if err := consumers.Prepare(t.Context(), nc, s); err != nil {
			t.Errorf("%s: named in another order: %v", s.Durable, err)
		}
		s.Providers = []string{"acme"}
		if err := consumers.Prepare(t.Context(), nc, s); err == nil {
			t.Errorf("%s is the durable of one of its providers, too", s.Durable)
		}
	}
	for name, s := range map[string]consumers.Subscription{
		"both":     {Durable: "x", Provider: "acme", Providers: []string{"acme"}},
		"no id":    {Durable: "x", Providers: []string{"acme", "a.b"}},
		"an empty": {Durable: "x", Providers: []string{"acme", ""}},
	} {
		if err := consumers.Prepare(t.Context(), nc, s); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	for _, provider := range []string{"acme", "globex", "initech"} {
		_, err := js.Publish(t.Context(), "user.synced."+provider+".u17", []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, durable := range []string{"shop", "typed"} {
		eventually(t, durable+" has two outcomes", func() bool { // the server's count lags behind
			c, err := js.Consumer(t.Context(), "OUTCOMES", durable)
			return err == nil && c.CachedInfo().NumPending == 2
		})
	}
}
