package stream_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natskv"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

func TestErase(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	bob := grant.Key{Provider: alice.Provider, User: "bob"}
	subjects := schema.Subjects{}
	names := []string{
		topology.Logins, topology.Requests, topology.Renewals, topology.Parked, topology.Outcomes,
	}
	for _, k := range []grant.Key{alice, bob} {
		for _, of := range []schema.Type{schema.UserLogin, schema.UserRefreshDue} {
			_, err := js.Publish(ctx, subjects.Filter(of, k.Provider, k.User), nil)
			must(t, err)
		}
		must(t, e.Arm(ctx, k, time.Now().Add(time.Hour), work("timer")))
		park(t, e, k, grant.Parcel{Sealed: []byte("x")})
		o := outcome("o-"+k.User, schema.UserSynced)
		o.User = k.User
		must(t, e.Publish(ctx, o))
	}
	newest, err := e.NewestLogin(ctx)
	must(t, err)
	must(t, e.Erase(ctx, alice, newest))
	must(t, e.Erase(ctx, alice, newest))
	for _, name := range names {
		s, err := js.Stream(ctx, name)
		must(t, err)
		if n := messages(t, js, name); n != 1 {
			t.Errorf("%s holds %d messages, want bob's only", name, n)
		}
		if _, err := s.GetMsg(ctx, s.CachedInfo().State.LastSeq); err != nil {
			t.Errorf("%s: bob's message: %v", name, err)
		}
	}
}

// An erasure does not remove a login that is newer than the erasure.
func TestEraseLeavesANewerLogin(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	subject := schema.Subjects{}.Filter(schema.UserLogin, alice.Provider, alice.User)
	newest, err := e.NewestLogin(ctx)
	must(t, err)
	_, err = js.Publish(ctx, subject, nil)
	must(t, err)
	must(t, e.Erase(ctx, alice, newest))
	if n := messages(t, js, topology.Logins); n != 1 {
		t.Errorf("%d logins are left, want the one that came later", n)
	}
}

// AwaitInFlight waits for whatever a worker is handling that could bring the user back.
func TestAwaitInFlightWaitsForWorkers(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	must(t, e.AwaitInFlight(ctx, alice.Provider))
	publish := func(of schema.Type) {
		for _, sender := range []string{"", "shop", "crm"} {
			subject := schema.Subjects{}.Of(schema.Address{
				Type:     of,
				Provider: alice.Provider,
				User:     alice.User,
				Sender:   sender,
			})
			_, err := js.Publish(ctx, subject, nil)
			must(t, err)
		}
	}
	for _, d := range []struct {
		stream, durable string
		put             func()
	}{
		{topology.Logins, topology.ConsumerLogin, func() { publish(schema.UserLogin) }},
		{topology.Requests, topology.ConsumerRequest, func() { publish(schema.UserRefreshDue) }},
		{
			topology.Renewals,
			topology.ConsumerRenew(alice.Provider),
			func() { must(t, e.Wake(ctx, alice, work("x"))) },
		},
		{
			topology.Renewals,
			topology.ConsumerDeferred,
			func() { putOff(t, e, time.Now(), 7, 1, "x") },
		},
	} {
		d.put()
		inHand := next(t, js, d.stream, d.durable, time.Minute)
		impatient, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		if err := e.AwaitInFlight(impatient, alice.Provider); err == nil {
			t.Fatalf("settled while %s had something in hand", d.durable)
		}
		cancel()
		settled := make(chan error, 1)
		go func() { settled <- e.AwaitInFlight(ctx, alice.Provider) }()
		ack(t, inHand)
		must(t, <-settled)
	}
}

// Nothing that names the user is left in any stream or bucket, but for a login that came after the
// erasure.
func TestNothingThatNamesTheUserIsLeft(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	store, err := natskv.Open(ctx, js, natskv.Config{
		Bucket: topology.BucketGrants,
		Cipher: plain{},
		Now:    time.Now,
	})
	must(t, err)
	revision, err := store.Save(ctx, grant.Grant{Key: alice, Status: grant.Live})
	must(t, err)
	for _, of := range schema.Commands() {
		for _, sender := range []string{"", "shop", "crm"} {
			subject := schema.Subjects{}.Of(schema.Address{
				Type:     of,
				Provider: alice.Provider,
				User:     alice.User,
				Sender:   sender,
			})
			_, err := js.Publish(ctx, subject, nil)
			must(t, err)
		}
	}
	must(t, e.Arm(ctx, alice, time.Now().Add(time.Hour), work("timer")))
	must(t, e.Wake(ctx, alice, work("due")))
	must(t, e.Arm(ctx, alice, time.Now().Add(time.Hour), work("timer")))
	newest, err := e.NewestLogin(ctx)
	must(t, err)
	for _, of := range []schema.Address{loginOf(alice), logoutOf(alice)} {
		must(t, e.DeferLogin(ctx, of, time.Now().Add(time.Hour), newest, 1, nil, nil))
	}
	park(t, e, alice, grant.Parcel{Version: 1, Sealed: []byte("x")})
	for _, of := range schema.Outcomes() {
		must(t, e.Publish(ctx, outcome("o-"+string(of), of)))
	}
	must(t, store.Delete(ctx, alice, revision))

	must(t, e.AwaitInFlight(ctx, alice.Provider))
	must(t, e.Erase(ctx, alice, newest))
	must(t, e.EraseTraces(ctx, alice))
	names := js.StreamNames(ctx)
	for name := range names.Name() {
		s, err := js.Stream(ctx, name)
		must(t, err)
		info, err := s.Info(ctx, jetstream.WithSubjectFilter(">"))
		must(t, err)
		for subject := range info.State.Subjects {
			if strings.Contains(subject, schema.EscapeUser(alice.User)) {
				t.Errorf("%s holds %s", name, subject)
			}
		}
	}
	must(t, names.Err())

	later := newest
	later.Sequence++
	must(t, e.DeferLogin(ctx, loginOf(alice), time.Now().Add(time.Hour), later, 1, nil, nil))
	_, err = store.Save(ctx, grant.Grant{Key: alice, Status: grant.Live})
	must(t, err)
	must(t, e.Erase(ctx, alice, newest))
	n, kept := messages(t, js, topology.Renewals), messages(t, js, "KV_"+topology.BucketGrants)
	if n != 1 || kept != 1 {
		t.Errorf("%d logins put off and %d records are left, want those that came later", n, kept)
	}
}
