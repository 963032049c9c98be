package reconcile_test

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/metric"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/reconcile"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/testkit/storetest"
)

// turning is a keyring that is changed while it is used.
type turning struct{ atomic.Pointer[seal.Keyring] }

func (k *turning) Seal(plain, associated []byte) ([]byte, error) {
	return k.Load().Seal(plain, associated)
}

func (k *turning) Open(blob, associated []byte) ([]byte, error) {
	return k.Load().Open(blob, associated)
}

func (k *turning) old() []string { return k.Load().Old() }

// turn adds a key and lets it seal.
func (k *turning) turn(t *testing.T) {
	t.Helper()
	next, err := k.Load().Rotate(time.Now())
	must(t, err)
	next, err = next.Promote()
	must(t, err)
	k.Store(next)
}

func newTurning(t *testing.T) *turning {
	t.Helper()
	ring, err := seal.NewKeyring(time.Now())
	must(t, err)
	k := new(turning)
	k.Store(ring)
	return k
}

// under counts the records of a store by the key that they are sealed with.
func under(t *testing.T, s grant.Store) map[string]int {
	t.Helper()
	n := map[string]int{}
	for cursor, more := "", true; more; more = cursor != "" {
		page, next, err := s.ListSealed(t.Context(), cursor, 3)
		must(t, err)
		for _, l := range page {
			n[seal.StoreKeyOf(l.Head)]++
		}
		cursor = next
	}
	return n
}

// reseals runs r until it has finished n walks.
func reseals(t *testing.T, r reconcile.Resealer, n int) (got []reconcile.Resealed) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	r.KeyOf, r.Every, r.Rest, r.Idle = seal.StoreKeyOf, time.Millisecond, time.Millisecond,
		time.Millisecond
	r.Poll, r.Pause = 5*time.Millisecond, -1
	r.OnWalk = func(w reconcile.Resealed) {
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

// A record under an old key comes under the present key, and nothing else of it changes. A record
// that is claimed, about to be looked at, or cannot be read stays as it is.
func TestResealerTakesRecordsFromOldKeys(t *testing.T) {
	_, e := fresh(t)
	keys, now := newTurning(t), time.Now()
	store := storetest.NewMemoryWith(keys, time.Now)
	before := map[string]grant.Grant{}
	add := func(user string, change func(*grant.Grant)) {
		t.Helper()
		g := storetest.Full(grant.Key{Provider: "p", User: user})
		g.Claim, g.Candidate.NextDueAt, g.NextDueAt = nil, now.Add(time.Hour), now.Add(time.Hour)
		change(&g)
		var err error
		g.Revision, err = store.Save(t.Context(), g)
		must(t, err)
		before[user] = g
	}
	claimed := func(until time.Time) func(*grant.Grant) {
		return func(g *grant.Grant) {
			g.Claim = &grant.Claim{Nonce: "n", Until: until, Fingerprint: "f", Presented: true}
		}
	}
	add("live", func(*grant.Grant) {})
	add("suspended", func(g *grant.Grant) {
		g.Status, g.NextDueAt, g.Candidate = grant.Suspended, time.Time{}, nil
	})
	add("signed-out", func(g *grant.Grant) {
		g.Status, g.Pair, g.NextDueAt = grant.ReauthRequired, grant.Pair{}, time.Time{}
	})
	add("erased", func(g *grant.Grant) {
		g.Status, g.Pair, g.Candidate = grant.Forgotten, grant.Pair{}, nil
	})
	add("paused", func(g *grant.Grant) { g.NextDueAt = now.Add(-time.Hour) })
	add("dead-claim", claimed(now.Add(-time.Hour)))
	left := []string{"claimed", "lately-claimed", "due-soon", "due", "lost"}
	add("claimed", claimed(now.Add(time.Hour)))
	add("lately-claimed", claimed(now.Add(-time.Minute)))
	add("due-soon", func(g *grant.Grant) { g.NextDueAt = now.Add(30 * time.Second) })
	add("due", func(g *grant.Grant) { g.Candidate.NextDueAt = now.Add(-time.Minute) })
	add("lost", func(*grant.Grant) {})
	store.Damage(grant.Key{Provider: "p", User: "lost"}, storetest.Broken)
	first := keys.Load().Keys()[1].ID
	head, err := keys.Seal(nil, nil)
	must(t, err)
	keys.turn(t)

	reader := sdk.NewManualReader()
	r := reconcile.Resealer{
		Store: unheaded{store, head}, Engine: e, Old: keys.old, Page: 4, PerSecond: 1000,
		Meter: sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("test"),
	}
	got := reseals(t, r, 2)
	if want := []reconcile.Resealed{{Sealed: 6, Left: 5}, {Left: 5}}; !slices.Equal(got, want) {
		t.Errorf("walks %+v, want %+v", got, want)
	}
	if n := total(t, reader, "renewd.grants.resealed"); n != 6 {
		t.Errorf("counted %d", n)
	}
	if n := total(t, reader, "renewd.grants.old_key"); n != 5 {
		t.Errorf("the gauge shows %d", n)
	}
	for user, want := range before {
		g, err := store.Load(t.Context(), want.Key)
		if user == "lost" {
			if !errors.Is(err, grant.ErrUnreadable) || g.Revision != want.Revision {
				t.Errorf("what cannot be read was written: %v", err)
			}
			continue
		}
		must(t, err)
		if touched := g.Revision != want.Revision; touched == slices.Contains(left, user) {
			t.Errorf("%s: written: %v", user, touched)
		}
		g.Revision = want.Revision
		if !reflect.DeepEqual(g, want) {
			t.Errorf("%s: is\n%+v\nwas\n%+v", user, g, want)
		}
	}
	if n := under(t, store); n[first] != 4 || n[keys.Load().Keys()[3].ID] != 6 {
		t.Errorf("records by key: %v", n)
	}
}

// unheaded is a store whose damaged records still show the key that they are under.
type unheaded struct {
	grant.Store
	head []byte
}

func (s unheaded) ListSealed(
	ctx context.Context, cursor string, limit int,
) ([]grant.Sealed, string, error) {
	page, next, err := s.Store.ListSealed(ctx, cursor, limit)
	for i := range page {
		if page[i].Head == nil {
			page[i].Head = s.head
		}
	}
	return page, next, err
}

// A worker that writes the record meanwhile wins, and what it wrote stays.
func TestResealerYields(t *testing.T) {
	_, e := fresh(t)
	keys := newTurning(t)
	memory := storetest.NewMemoryWith(keys, time.Now)
	k := grant.Key{Provider: "p", User: "u"}
	g := storetest.Full(k)
	g.Claim, g.Candidate = nil, nil
	_, err := memory.Save(t.Context(), g)
	must(t, err)
	keys.turn(t)
	race := racing{memory, func() {
		_, _, err := memory.Claim(t.Context(), k, grant.ClaimRequest{
			Nonce: "worker",
			For:   time.Hour,
		})
		must(t, err)
	}}
	got := reseals(t, reconcile.Resealer{Store: race, Engine: e, Old: keys.old}, 1)[0]
	if got != (reconcile.Resealed{Left: 1}) {
		t.Errorf("walk %+v", got)
	}
	g, err = memory.Load(t.Context(), k)
	if err != nil || g.Claim == nil || g.Claim.Nonce != "worker" {
		t.Errorf("the claim is %+v, %v", g.Claim, err)
	}
}

// racing lets a worker in between the look at a record and the write after it.
type racing struct {
	grant.Store
	between func()
}

func (s racing) Reseal(ctx context.Context, k grant.Key, revision uint64) error {
	s.between()
	return s.Store.Reseal(ctx, k, revision)
}

// A record of a version that bound no record is bound, and nothing else of it changes. A record
// that cannot be read, or that a worker has, stays as it is and is counted.
func TestResealerBindsRecordsOfBefore(t *testing.T) {
	_, e := fresh(t)
	keys, now := newTurning(t), time.Now()
	store := storetest.NewMemoryWith(keys, time.Now)
	before := map[string]grant.Grant{}
	for _, user := range []string{"suspended", "claimed", "altered", "bound"} {
		g := storetest.Full(grant.Key{Provider: "p", User: user})
		g.Claim, g.Candidate, g.NextDueAt = nil, nil, time.Time{}
		if user == "claimed" {
			g.Claim = &grant.Claim{Nonce: "n", Until: now.Add(time.Hour)}
		}
		var err error
		g.Revision, err = store.Save(t.Context(), g)
		must(t, err)
		before[user] = g
		if user != "bound" {
			store.Unbind(g.Key)
		}
	}
	store.Damage(before["altered"].Key, storetest.Altered)
	reader := sdk.NewManualReader()
	r := reconcile.Resealer{
		Store: store, Engine: e, Old: keys.old,
		Meter: sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("test"),
	}
	got := reseals(t, r, 2)
	if want := []reconcile.Resealed{
		{Sealed: 1, Unbound: 2},
		{Unbound: 2},
	}; !slices.Equal(got, want) {
		t.Errorf("walks %+v, want %+v", got, want)
	}
	if n := total(t, reader, "renewd.grants.unbound"); n != 2 {
		t.Errorf("the gauge shows %d", n)
	}
	if n := total(t, reader, "renewd.grants.old_key"); n != 0 {
		t.Errorf("the gauge of old keys shows %d", n)
	}
	for user, want := range before {
		g, _ := store.Load(t.Context(), want.Key)
		if touched := g.Revision != want.Revision; touched != (user == "suspended") {
			t.Errorf("%s: written: %v", user, touched)
		}
	}
}

// A key that becomes old does not wait for the pause after the last walk. Without an old key the
// walks are far apart.
func TestResealerWalksWhenAKeyBecomesOld(t *testing.T) {
	_, e := fresh(t)
	keys := newTurning(t)
	store := storetest.NewMemoryWith(keys, time.Now)
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	walks := make(chan reconcile.Resealed, 1)
	ended := make(chan error, 1)
	var looked atomic.Int64
	r := reconcile.Resealer{
		Store:  store,
		Engine: e,
		KeyOf:  seal.StoreKeyOf,
		Poll:   5 * time.Millisecond,
	}
	r.OnWalk = func(w reconcile.Resealed) { walks <- w }
	r.Old = func() []string { looked.Add(1); return keys.old() }
	go func() { ended <- r.Run(ctx) }()
	walked := func() {
		t.Helper()
		select {
		case <-walks:
		case <-ctx.Done():
			t.Fatal("no walk")
		}
	}
	walked() // for records that are not bound
	at := looked.Load()
	eventually(t, "it looks again", func() bool { return looked.Load() > at+3 })
	if len(walks) > 0 {
		t.Error("walked again at once, without an old key")
	}
	for range 2 { // the second within Rest of the first
		keys.turn(t)
		walked()
	}
	cancel()
	must(t, <-ended)
}
