package reconcile_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/metric"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/reconcile"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// listed is a store that only lists, two grants a page.
type listed struct {
	grant.Store
	grants []grant.ListEntry
}

func (l listed) List(
	_ context.Context, cursor string, limit int,
) ([]grant.ListEntry, string, error) {
	at := 0
	if cursor != "" {
		if _, err := fmt.Sscan(cursor, &at); err != nil {
			return nil, "", err
		}
	}
	end := min(at+limit, len(l.grants))
	if end == len(l.grants) {
		return l.grants[at:end], "", nil
	}
	return l.grants[at:end], fmt.Sprint(end), nil
}

func (l listed) ListDue(
	ctx context.Context, cursor string, limit int,
) (page []grant.Due, next string, err error) {
	all, next, err := l.List(ctx, cursor, limit)
	for _, g := range all {
		page = append(page, g.Due())
	}
	return page, next, err
}

func record(user string, status grant.Status, due time.Time) grant.ListEntry {
	return grant.ListEntry{
		Grant: grant.Grant{
			Key:       grant.Key{Provider: alice.Provider, User: user},
			Status:    status,
			NextDueAt: due,
			Version:   3,
		},
	}
}

// walks runs r until it has finished n walks.
func walks(t *testing.T, r reconcile.Reconciler, n int) []reconcile.Walk {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	var got []reconcile.Walk
	r.Every, r.Poll, r.Pause = time.Millisecond, 5*time.Millisecond, -1
	r.OnWalk = func(w reconcile.Walk) {
		if got = append(got, w); len(got) == n {
			cancel()
		}
	}
	must(t, r.Run(ctx))
	if len(got) < n {
		t.Fatalf("%d walks of %d", len(got), n)
	}
	return got
}

func TestReconcilerRepairs(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	now := time.Now()
	claimed := record("claimed", grant.Live, now.Add(-time.Hour))
	claimed.Claim = &grant.Claim{Until: now.Add(time.Hour)}
	stale := record("stale-claim", grant.Live, now.Add(-time.Hour))
	stale.Claim = &grant.Claim{Until: now.Add(-time.Minute)}
	store := listed{grants: []grant.ListEntry{
		record("lost", grant.Live, now.Add(-time.Hour)),
		record("on-time", grant.Live, now.Add(time.Hour)),
		record("just-late", grant.Live, now.Add(-time.Second)),
		record("signed-out", grant.ReauthRequired, now.Add(-time.Hour)),
		record("suspended", grant.Suspended, now.Add(-time.Hour)),
		record("untimed", grant.Live, time.Time{}),
		record("dormant", grant.Dormant, time.Time{}),
		record("dormant-till-the-end", grant.Dormant, now.Add(time.Hour)),
		claimed, stale,
		{Grant: grant.Grant{Key: grant.Key{Provider: alice.Provider, User: "damaged"}}},
	}}
	reader := sdk.NewManualReader()
	r := reconcile.Reconciler{
		Store:  store,
		Engine: e,
		Page:   2,
		Meter:  sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("test"),
	}

	// The first walk has not seen this RENEWALS before, so it arms what is not overdue as well.
	first := walks(t, r, 1)[0]
	want := reconcile.Walk{Live: 6, Dormant: 2, Due: 8, Overdue: 4, Woken: 4, Armed: 3}
	if first != want {
		t.Errorf("first walk %+v, want %+v", first, want)
	}
	if n := messages(t, js, topology.Renewals); n != 7 {
		t.Errorf("%d messages in RENEWALS, want 7", n)
	}
	got := map[string]grant.Work{}
	for range 5 { // the four overdue ones, and just-late's timer, which is due at once
		m := renewal(t, js)
		k, w, err := e.ParseWork(m.Subject(), schema.Header(m.Headers()))
		must(t, err)
		got[k.User] = w
		ack(t, m)
	}
	if w := got["lost"]; w.Cause.Type != schema.CauseRepair ||
		!w.Cause.Time.Equal(store.grants[0].NextDueAt) ||
		w.Cause.ID == got["stale-claim"].Cause.ID {
		t.Errorf("cause of a repair: %+v", w.Cause)
	}

	// An overdue grant for which nothing waits is woken by the next walk, under the same cause id;
	// those that wait are left alone, whether their time is to come or they are due behind others.
	for range 8 { // enough messages that nothing looks lost
		must(t, e.Arm(ctx,
			grant.Key{
				Provider: alice.Provider,
				User:     fmt.Sprint("other", messages(t, js, topology.Renewals)),
			}, now.Add(time.Hour), work("x")))
	}
	putOff := work("put off")
	putOff.Deferrals = 1
	must(t, e.Arm(ctx, stale.Key, now.Add(time.Hour), putOff))
	must(t, e.Wake(ctx, grant.Key{Provider: alice.Provider, User: "signed-out"}, command("r")))
	must(t, e.Wake(ctx, grant.Key{Provider: alice.Provider, User: "suspended"}, command("r")))
	second := walks(t, r, 1)[0]
	want = reconcile.Walk{Live: 6, Dormant: 2, Due: 8, Overdue: 4, Woken: 1}
	if second != want {
		t.Errorf("second walk %+v, want %+v", second, want)
	}
	for range 3 {
		m := renewal(t, js)
		k, w, err := e.ParseWork(m.Subject(), schema.Header(m.Headers()))
		if k.User == "lost" && w != got["lost"] || k.User != "lost" && w.Cause.ID != "r" ||
			err != nil {
			t.Errorf("%s is woken for %+v, %v; it was for %+v", k, w, err, got[k.User])
		}
		ack(t, m)
	}
	if n := total(t, reader, "renewd.reconciler.repaired"); n != 8 {
		t.Errorf("renewd.reconciler.repaired = %d, want 8", n)
	}
	if n := total(t, reader, "renewd.grants.live"); n != 6 {
		t.Errorf("renewd.grants.live = %d, want 6", n)
	}
	if n := total(t, reader, "renewd.grants.dormant"); n != 2 {
		t.Errorf("renewd.grants.dormant = %d, want 2", n)
	}
}

func TestReconcilerArmsAllAfterALoss(t *testing.T) {
	js, e := fresh(t)
	var store listed
	for i := range 40 {
		store.grants = append(store.grants, record(fmt.Sprint("u", i), grant.Live,
			time.Now().Add(time.Hour)))
	}
	r := reconcile.Reconciler{Store: store, Engine: e, Page: 7}
	if w := walks(t, r, 2); w[0].Armed != 40 || w[1].Armed != 0 {
		t.Errorf("first two walks %+v, want all armed once", w)
	}
	s, err := js.Stream(t.Context(), topology.Renewals)
	must(t, err)
	must(t, s.Purge(t.Context()))
	if w := walks(t, r, 1); w[0].Armed != 40 || w[0].Overdue != 0 {
		t.Errorf("walk after the loss %+v", w)
	}
	if n := messages(t, js, topology.Renewals); n != 40 {
		t.Errorf("%d timers after the repair", n)
	}
}

func (l listed) Load(_ context.Context, k grant.Key) (grant.Grant, error) {
	for _, g := range l.grants {
		if g.Key == k {
			return g.Grant, nil
		}
	}
	return grant.Grant{}, grant.ErrNotFound
}

// A pair that no worker came back for: its grant is woken, unless the store has gone on without the
// pair.
func TestReconcilerLooksAfterParkedPairs(t *testing.T) {
	js, e := fresh(t)
	later := time.Now().Add(time.Hour)
	waits, saved := record("waits", grant.Live, later), record("saved", grant.Live, later)
	waits.Pair.Refresh, saved.Pair.Refresh = secret.New("parent"), secret.New("newer")
	for _, user := range []string{"waits", "saved", "gone"} {
		parent := secret.New("parent").Fingerprint()
		park(t, e, grant.Key{Provider: alice.Provider, User: user}, grant.Parcel{
			Version: 1,
			Parent:  parent,
			Sealed:  []byte("x"),
		})
	}
	// The store was restored: what it has is older than the pair's parent.
	restored := record("restored", grant.Live, later)
	restored.Pair.Refresh = secret.New("older")
	park(t, e, restored.Key, grant.Parcel{
		Version: restored.Version + 5,
		Parent:  secret.New("parent").Fingerprint(),
		Sealed:  []byte("x"),
	})
	r := reconcile.Reconciler{
		Store:   listed{grants: []grant.ListEntry{waits, saved, restored}},
		Engine:  e,
		Overdue: -time.Minute,
	}
	got := walks(t, r, 1)[0]
	if got.Parked != 2 || got.Unparked != 2 || messages(t, js, topology.Parked) != 2 {
		t.Errorf("%+v, %d left", got, messages(t, js, topology.Parked))
	}
	if m := renewal(t, js); m.Subject() != "renewal.due."+alice.Provider+".waits" {
		t.Errorf("woken: %s", m.Subject())
	}
}

func TestOneReconcilerWalksAtATime(t *testing.T) {
	_, e := fresh(t)
	walking, leave := make(chan struct{}), make(chan struct{})
	first := reconcile.Reconciler{
		Engine: e,
		Holder: "first",
		Store:  blocking{walking, leave},
		Every:  time.Millisecond,
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	finished := make(chan reconcile.Walk, 1)
	first.OnWalk = func(w reconcile.Walk) { finished <- w; cancel() }
	go func() { done <- first.Run(ctx) }()
	<-walking

	// While the first walker walks, a second finds the lease taken however often it looks.
	second := reconcile.Reconciler{
		Engine: e,
		Holder: "second",
		Store:  listed{},
		Poll:   time.Millisecond,
	}
	second.OnWalk = func(reconcile.Walk) { t.Error("two walk at once") }
	looked, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer stop()
	must(t, second.Run(looked))
	close(leave)
	<-finished
	must(t, <-done)

	// A walker that died is replaced when its lease has run out.
	walking = make(chan struct{})
	dead := reconcile.Reconciler{
		Engine: e,
		Holder: "dead",
		Store:  blocking{walking, nil},
		Lease:  200 * time.Millisecond,
		Poll:   time.Millisecond,
	}
	ctx, cancel = context.WithCancel(t.Context())
	go func() { done <- dead.Run(ctx) }()
	<-walking
	cancel()
	must(t, <-done)
	second.OnWalk = nil
	walks(t, second, 1)
}

// blocking says that a walk began and waits, forever if leave is nil.
type blocking struct {
	walking chan<- struct{}
	leave   <-chan struct{}
}

func (b blocking) ListDue(ctx context.Context, _ string, _ int) ([]grant.Due, string, error) {
	b.walking <- struct{}{}
	select {
	case <-b.leave:
		return nil, "", nil
	case <-ctx.Done():
		return nil, "", ctx.Err()
	}
}

func (blocking) Load(context.Context, grant.Key) (grant.Grant, error) { panic("not asked") }
func (blocking) Claim(
	context.Context, grant.Key, grant.ClaimRequest,
) (grant.Grant, *grant.Claim, error) {
	panic("not asked")
}
func (blocking) Save(context.Context, grant.Grant) (uint64, error) { panic("not asked") }
func (blocking) Reseal(context.Context, grant.Key, uint64) error   { panic("not asked") }
func (blocking) Delete(context.Context, grant.Key, uint64) error   { panic("not asked") }
func (blocking) List(context.Context, string, int) ([]grant.ListEntry, string, error) {
	panic("not asked")
}

func (blocking) ListSealed(context.Context, string, int) ([]grant.Sealed, string, error) {
	panic("not asked")
}
