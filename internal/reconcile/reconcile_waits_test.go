package reconcile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	sdk "go.opentelemetry.io/otel/sdk/metric"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natskv"
	"github.com/renewd/renewd/internal/reconcile"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// A pause is longer than any grant may be late: the queue that it makes is no loss.
func TestWhatWaitsBehindAPauseIsNoLoss(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	must(t, e.Pause(ctx, alice.Provider, time.Now().Add(time.Hour)))
	var store listed
	for i := range 6 {
		g := record(fmt.Sprint("u", i), grant.Live, time.Now().Add(-time.Hour))
		store.grants = append(store.grants, g)
		if w := command(fmt.Sprint("r", i)); i%2 == 0 {
			must(t, e.Wake(ctx, g.Key, w)) // due, behind the pause
		} else {
			must(t, e.Arm(ctx, g.Key, time.Now().Add(time.Hour), w)) // put off for a Retry-After
		}
	}
	reader := sdk.NewManualReader()
	r := reconcile.Reconciler{
		Store:  store,
		Engine: e,
		Page:   2,
		Meter:  sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("test"),
	}
	for i, w := range walks(t, r, 3) {
		if w.Overdue != 6 || w.Woken+w.Armed+w.Fired != 0 {
			t.Errorf("walk %d: %+v, want nothing repaired", i, w)
		}
	}
	if n := total(t, reader, "renewd.reconciler.repaired"); n != 0 ||
		messages(t, js, topology.Renewals) != 6 {
		t.Errorf("renewd.reconciler.repaired = %d, %d messages", n,
			messages(t, js, topology.Renewals))
	}
}

// A record that an erasure left is removed when its time is over, with the mark that its removal
// leaves.
func TestWhatAnErasureLeftGoesInItsTime(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	store, err := natskv.Open(ctx, js, natskv.Config{
		Bucket: topology.BucketGrants,
		Cipher: plain{},
		Now:    time.Now,
	})
	must(t, err)
	for user, until := range map[string]time.Duration{"over": -time.Minute, "holds": time.Hour} {
		g := record(user, grant.Forgotten, time.Now().Add(until)).Grant
		_, err := store.Save(ctx, g)
		must(t, err)
	}
	forged := record("forged", grant.Suspended, time.Now().Add(-time.Minute)).Grant
	_, err = store.Save(ctx, forged)
	must(t, err)
	bucket, err := js.KeyValue(ctx, topology.BucketGrants)
	must(t, err)
	kept, err := bucket.Get(ctx, alice.Provider+".forged")
	must(t, err)
	_, err = bucket.Put(ctx, kept.Key(), bytes.Replace(kept.Value(), []byte("suspended"),
		[]byte("forgotten"), 1))
	must(t, err)
	w := walks(t, reconcile.Reconciler{Store: store, Engine: e}, 2)
	if w[0].Expired != 1 || w[1].Expired != 0 || w[0].Due != 0 ||
		messages(t, js, topology.Renewals) != 0 {
		t.Errorf("%+v", w)
	}
	if n := messages(t, js, "KV_"+topology.BucketGrants); n != 2 {
		t.Errorf("%d keys left in the bucket of grants, want that of the erasure that holds, and "+
			"the forged one", n)
	}
}

// A walk meets a grant again that was written meanwhile. This does not make it look as if timers
// were missing.
func TestAGrantMetTwiceIsNoLostTimer(t *testing.T) {
	js, e := fresh(t)
	var store listed
	for i := range 4 {
		g := record(fmt.Sprint("u", i), grant.Live, time.Now().Add(time.Hour))
		must(t, e.Arm(t.Context(), g.Key, g.NextDueAt, work("x")))
		for range 5 {
			store.grants = append(store.grants, g)
		}
	}
	for i := range 3 { // a login that is put off is no timer
		k := grant.Key{Provider: alice.Provider, User: fmt.Sprint("d", i)}
		must(t, e.DeferLogin(t.Context(), loginOf(k), time.Now().Add(time.Hour),
			grant.Position{Sequence: 1}, 1, nil, nil))
	}
	w := walks(t, reconcile.Reconciler{Store: store, Engine: e, Page: 3}, 3)
	if w[1].Live != 4 || w[1].Due != 4 || w[1].Armed+w[2].Armed != 0 {
		t.Errorf("walks %+v", w)
	}
	s, err := js.Stream(t.Context(), topology.Renewals)
	must(t, err)
	must(t, s.Purge(t.Context(), jetstream.WithPurgeSubject("renewal.>")))
	if w := walks(t, reconcile.Reconciler{Store: store, Engine: e, Page: 3}, 1); w[0].Armed == 0 {
		t.Errorf("after a loss %+v", w[0])
	}
}

// A timer whose firing the server had to refuse never fires by itself; what it carries is not lost.
func TestATimerThatNeverFiredIsFired(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	s, err := js.Stream(ctx, topology.Renewals)
	must(t, err)
	config := s.CachedInfo().Config
	r1 := command("r1")
	must(t, e.Arm(ctx, alice, time.Now().Add(2*time.Second), r1))
	small := config
	small.MaxMsgSize = 64 // too small for what fires
	_, err = js.UpdateStream(ctx, small)
	must(t, err)
	late := record(alice.User, grant.Live, time.Now().Add(-time.Hour))
	r := reconcile.Reconciler{
		Store:   listed{grants: []grant.ListEntry{late}},
		Engine:  e,
		Overdue: time.Second,
	}
	eventually(t, "the timer is late", func() bool {
		w := walks(t, r, 1)[0]
		return w.Fired+w.Woken == 0 && timerIsLate(t, js, alice, 1500*time.Millisecond)
	})
	_, err = js.UpdateStream(ctx, config)
	must(t, err)
	// Two walks by two workers: each remembers what the other saw.
	a, b := walks(t, r, 1)[0], walks(t, r, 1)[0]
	if a.Fired != 0 && b.Fired != 0 || a.Fired+b.Fired != 1 {
		t.Errorf("walks %+v, %+v", a, b)
	}
	m := renewal(t, js)
	if _, w, err := e.ParseWork(m.Subject(), schema.Header(m.Headers())); err != nil || w != r1 {
		t.Errorf("fired %+v, %v", w, err)
	}
	ack(t, m)
}

// A due message that the server's consumer has passed over is delivered to no worker. It is put
// behind the others again, and the timer that was set since stays as it is.
func TestADueMessageThatTheServerForgotIsDelivered(t *testing.T) {
	t.Run("of a command", func(t *testing.T) {
		js, e := fresh(t)
		forgotten(t, js, e, command("r1"), func() {
			must(t, e.Wake(t.Context(), alice, command("r1")))
		})
	})
	t.Run("of a timer", func(t *testing.T) {
		js, e := fresh(t)
		forgotten(t, js, e, work("t1"), func() {
			must(t, e.Arm(t.Context(), alice, time.Now().Add(time.Second), work("t1")))
			eventually(t, "the timer has fired", func() bool {
				return messages(t, js, topology.Renewals) == 1 && !hasTimer(t, js, alice)
			})
			must(t, e.Arm(t.Context(), alice, time.Now().Add(time.Hour), work("t2")))
		})
		if !hasTimer(t, js, alice) {
			t.Error("the timer that was set since is gone")
		}
	})
}

func hasTimer(t *testing.T, js jetstream.JetStream, k grant.Key) bool {
	t.Helper()
	s, err := js.Stream(t.Context(), topology.Renewals)
	must(t, err)
	_, err = s.GetLastMsgForSubject(t.Context(),
		"renewal.timer."+k.Provider+"."+schema.EscapeUser(k.User))
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

// forgotten has the consumer pass over what due brings, and the reconciler bring it back.
func forgotten(
	t *testing.T, js jetstream.JetStream, e *stream.Engine, want grant.Work, due func(),
) {
	t.Helper()
	ctx := t.Context()
	c, err := js.Consumer(ctx, topology.Renewals, topology.ConsumerRenew("propelauth"))
	must(t, err)
	config := c.CachedInfo().Config
	elsewhere := config
	elsewhere.FilterSubject = "renewal.due.propelauth.bob.>"
	_, err = js.UpdateConsumer(ctx, topology.Renewals, elsewhere)
	must(t, err)
	due()
	must(t, e.Wake(ctx, grant.Key{Provider: "propelauth", User: "bob"}, command("r2")))
	ack(t, renewal(t, js))
	_, err = js.UpdateConsumer(ctx, topology.Renewals, config)
	must(t, err)
	eventually(t, "bob's is acknowledged", func() bool {
		c, err := js.Consumer(ctx, topology.Renewals, topology.ConsumerRenew("propelauth"))
		return err == nil && c.CachedInfo().AckFloor.Stream > 1
	})

	late := record(alice.User, grant.Live, time.Now().Add(-time.Hour))
	r := reconcile.Reconciler{
		Store:   listed{grants: []grant.ListEntry{late}},
		Engine:  e,
		Overdue: time.Second,
	}
	if a, b := walks(t, r, 1)[0], walks(t, r, 1)[0]; a.Fired != 0 || b.Fired != 1 {
		t.Errorf("walks %+v, %+v", a, b)
	}
	m := renewal(t, js)
	if k, w, err := e.ParseWork(m.Subject(), schema.Header(m.Headers())); err != nil ||
		k != alice || w.Cause.ID != want.Cause.ID {
		t.Errorf("delivered %v %+v, %v", k, w, err)
	}
	ack(t, m)
}

func timerIsLate(t *testing.T, js jetstream.JetStream, k grant.Key, by time.Duration) bool {
	t.Helper()
	s, err := js.Stream(t.Context(), topology.Renewals)
	must(t, err)
	m, err := s.GetLastMsgForSubject(t.Context(),
		"renewal.timer."+k.Provider+"."+schema.EscapeUser(k.User))
	must(t, err)
	at, err := time.Parse(time.RFC3339Nano,
		strings.TrimPrefix(m.Header.Get(jetstream.ScheduleHeader), "@at "))
	must(t, err)
	return time.Since(at) > by
}

func (s unreadable) Load(ctx context.Context, k grant.Key) (grant.Grant, error) {
	if k.User == s.user {
		return grant.Grant{Key: k, Revision: 1}, fmt.Errorf("load %s: %w", k, grant.ErrUnreadable)
	}
	return s.listed.Load(ctx, k)
}

// unreadable is a store that cannot read one user's record.
type unreadable struct {
	listed
	user string
}

// One bad parcel or record does not keep the others, nor the grants of the store, from being looked
// at.
func TestTheWalkNeverEndsAtOneBadParcel(t *testing.T) {
	js, e := fresh(t)
	later := time.Now().Add(time.Hour)
	stored := secret.New("token")
	waits, same, lost := record("waits", grant.Live, later), record("same", grant.Live, later),
		record("lost", grant.Live, time.Now().Add(-time.Hour))
	waits.Pair.Refresh, same.Pair.Refresh = stored, stored
	// same: refreshed since, with the same token
	waits.RefreshedAt, same.RefreshedAt = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	_, err := js.Publish(t.Context(), "parked.propelauth.foreign", []byte("?"))
	must(t, err)
	_, err = js.Publish(t.Context(), "parked.PropelAuth.x=y", []byte("?"))
	must(t, err)
	for _, user := range []string{"unreadable", "waits", "same"} {
		park(t, e, grant.Key{Provider: alice.Provider, User: user}, grant.Parcel{
			Version: 1,
			Parent:  stored.Fingerprint(),
			Sealed:  []byte("x"),
		})
	}
	store := unreadable{listed{grants: []grant.ListEntry{waits, same, lost}}, "unreadable"}
	got := walks(t, reconcile.Reconciler{Store: store, Engine: e, Overdue: -time.Minute}, 1)[0]
	if got.Foreign != 3 || got.Parked != 1 || got.Unparked != 1 || got.Woken == 0 {
		t.Errorf("%+v", got)
	}
	if n := messages(t, js, topology.Parked); n != 4 {
		t.Errorf("%d parcels left, want all but the one of a token that was used since", n)
	}
}

// PARKED is looked at before the store: a walk may take long.
func TestPARKEDIsLookedAtFirst(t *testing.T) {
	js, e := fresh(t)
	park(t, e, alice, grant.Parcel{Version: 1, Parent: "x", Sealed: []byte("x")})
	walking := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- reconcile.Reconciler{
			Engine:  e,
			Store:   gone{blocking{walking, nil}},
			Overdue: -time.Minute,
		}.Run(ctx)
	}()
	<-walking
	if n := messages(t, js, topology.Parked); n != 0 {
		t.Errorf("%d parcels when the walk over the store begins", n)
	}
	cancel()
	must(t, <-done)
}

// gone has no grant.
type gone struct{ blocking }

func (gone) Load(context.Context, grant.Key) (grant.Grant, error) {
	return grant.Grant{}, grant.ErrNotFound
}

// PARKED is looked at while a walk goes on, too.
func TestPARKEDIsLookedAtDuringALongWalk(t *testing.T) {
	js, e := fresh(t)
	var store listed
	for i := range 3 {
		store.grants = append(store.grants, record(fmt.Sprint("u", i), grant.Live,
			time.Now().Add(time.Hour)))
	}
	var left []uint64
	during := paged{store, func(cursor string) {
		if cursor == "1" { // after the first look
			park(t, e, alice, grant.Parcel{Version: 1, Parent: "x", Sealed: []byte("x")})
		}
		left = append(left, messages(t, js, topology.Parked))
	}}
	walks(t,
		reconcile.Reconciler{
			Store:       during,
			Engine:      e,
			Page:        1,
			Overdue:     -time.Minute,
			ParkedEvery: time.Nanosecond,
		}, 1)
	if !slices.Equal(left, []uint64{0, 1, 0}) {
		t.Errorf("parcels at each page: %v, want the one that came with the second gone by "+
			"the third", left)
	}
}

// paged tells of each page that is asked for.
type paged struct {
	listed
	asked func(cursor string)
}

func (p paged) ListDue(ctx context.Context, cursor string, limit int) ([]grant.Due, string, error) {
	p.asked(cursor)
	return p.listed.ListDue(ctx, cursor, limit)
}
