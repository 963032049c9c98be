package storetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// Fixture is an empty store under test, with ways around the store to its data.
type Fixture struct {
	grant.Store
	// Damage damages the stored record of k as d says. The record itself stays in the store.
	Damage func(t *testing.T, k grant.Key, d Damage)
	// Traces counts the traces of k in the store's own files and tables, whatever the store says.
	Traces func(t *testing.T, k grant.Key) int
	// SealsProfiles: profiles are sealed with the tokens, and removed with the tokens.
	SealsProfiles bool
}

// Damage is the reason why a record cannot be read.
type Damage string

// The damages a store must live with.
const (
	LostKey Damage = "no key opens it" // its pair is LostPair
	Broken  Damage = "it is damaged"   // only a part of it decodes
	Altered Damage = "another hand"    // in a Memory only; Forged covers the other stores
)

// LostPair is a sealed pair for which Cipher has lost the key.
var LostPair = []byte("sealed with a key that is gone")

// Cipher is a stand-in for a keyring. It binds to the associated data and hides the plaintext from
// a search, no more.
type Cipher struct{}

// Seal implements grant.Cipher.
func (Cipher) Seal(plain, associated []byte) ([]byte, error) {
	out := append([]byte(fmt.Sprintf("%d:", len(associated))), associated...)
	for _, b := range plain {
		out = append(out, b^0x5a)
	}
	return out, nil
}

// Open implements grant.Cipher.
func (Cipher) Open(sealed, associated []byte) ([]byte, error) {
	if bytes.Equal(sealed, LostPair) {
		return nil, seal.ErrUnknownKey
	}
	rest, ok := bytes.CutPrefix(sealed, append([]byte(fmt.Sprintf("%d:", len(associated))),
		associated...))
	if !ok {
		return nil, errors.New("sealed for something else")
	}
	out := make([]byte, len(rest))
	for i, b := range rest {
		out[i] = b ^ 0x5a
	}
	return out, nil
}

// SameTokens reports whether two blobs of Cipher's hold the same tokens, whatever data the blobs
// are bound to.
func SameTokens(a, b []byte) bool {
	return reflect.DeepEqual(unbound(a), unbound(b))
}

// unbound is the content of a blob of Cipher's, without the digest.
func unbound(sealed []byte) map[string]any {
	length, rest, _ := bytes.Cut(sealed, []byte(":"))
	n, err := strconv.Atoi(string(length))
	if err != nil || n > len(rest) {
		return nil
	}
	plain, err := Cipher{}.Open(sealed, rest[:n])
	var all map[string]any
	if err != nil || json.Unmarshal(plain, &all) != nil {
		return nil
	}
	delete(all, "b")
	return all
}

// at is a time with a store's precision: UTC, microseconds.
func at(n int) time.Time { return time.Date(2026, 3, 1, 12, 0, n, 123456000, time.UTC) }

// Full is a grant with every field set. An empty field in Full fails Run, so that no new field is
// forgotten here.
func Full(k grant.Key) grant.Grant {
	yes, no := true, false
	cause := schema.Cause{
		ID:     "c\"1",
		Type:   schema.UserRefreshDue,
		Source: "/billing ü",
		Time:   at(1),
		Reason: "why \u0000 not",
		Sender: "shop",
	}
	return grant.Grant{
		Key:     k,
		Version: 1_700_000_000_123,
		Status:  grant.Live,
		Pair: grant.Pair{
			Access:    secret.New("acc-" + k.User),
			Refresh:   secret.New("ref-" + k.User),
			ID:        secret.New("id-" + k.User),
			Scope:     "openid email",
			ExpiresAt: at(2),
			Lifetime:  30 * time.Minute,
			SentAt:    at(3),
			Parent:    "parent",
		},
		Verdict: &grant.Verdict{
			Reason:      schema.ReasonRevoked,
			Code:        "invalid_grant",
			Fingerprint: "f",
			At:          at(4),
			Confirmed:   true,
			Unsure:      true,
		},
		Claim: &grant.Claim{
			Nonce:       "n",
			Until:       at(5),
			For:         time.Millisecond,
			Fingerprint: "f",
			Cause:       cause,
			Presented:   true,
		},
		Doubt:    &grant.Doubt{Fingerprint: "f", Since: at(6)},
		SavedBy:  "nonce",
		Cause:    cause,
		BeganAt:  at(7),
		Progress: grant.Synced,
		Pending: &grant.Pending{
			ID:      "o1",
			Type:    schema.UserSynced,
			Version: 8,
			Data:    json.RawMessage(`{"a":[1,2,{"b":null}]}`),
			Stale:   true,
		},
		Refreshed:    true,
		Recovered:    true,
		Attempts:     3,
		Outages:      4,
		LastError:    "provider_unavailable",
		FailingSince: at(17),
		ToldAlone:    true,
		Hold:         grant.Position{Stream: at(1), Sequence: 18, Time: at(18)},
		Profile: Profile(schema.Profile{
			ID:            k.User,
			Email:         "jane@example.com",
			EmailVerified: &yes,
			Name:          "Jane Döe",
			FirstName:     "Jane",
			LastName:      "Döe",
			Username:      "jane",
			Picture:       "https://x/y.png",
			Enabled:       &yes,
			Locked:        &no,
			MFAEnabled:    &no,
			HasPassword:   &yes,
			Organisations: []schema.Organisation{
				{
					ID:          "o",
					Name:        "O",
					Role:        "Admin",
					Roles:       []string{"Admin", "Member"},
					Permissions: []string{"p"},
				},
			},
			Raw: json.RawMessage(`{"user_id":"x","properties":{"n":1.50,"odd":"\u0000é"}}`),
		}),
		Candidate: candidate(k, cause),
		Owed: []grant.Pending{
			{ID: "o0", Type: schema.UserReauthRequired, Version: 7, Data: json.RawMessage(`{}`)},
		},
		Login: grant.Position{
			Stream:   at(8),
			Sequence: 1 << 40,
			Time:     at(15),
			SealedAt: at(16),
			Token:    "t",
			Event:    "e",
		},
		Disproven:   grant.Position{Stream: at(30), Sequence: 10, Time: at(31)},
		NextDueAt:   at(9),
		LoginAt:     at(10),
		RefreshedAt: at(11),
		SyncedAt:    at(12),
		FailedAt:    at(13),
		ActiveAt:    at(14),
	}
}

// candidate is a login with every field set, due before its grant.
func candidate(k grant.Key, cause schema.Cause) *grant.Candidate {
	c := &grant.Candidate{
		Pair: grant.Pair{
			Access:    secret.New("c-acc-" + k.User),
			Refresh:   secret.New("c-ref-" + k.User),
			ID:        secret.New("c-id"),
			Scope:     "openid",
			ExpiresAt: at(20),
			Lifetime:  time.Minute,
			SentAt:    at(21),
			Parent:    "c-parent",
		},
		Cause:    cause,
		Answered: true,
		Login: grant.Position{
			Stream:   at(22),
			Sequence: 9,
			Time:     at(23),
			SealedAt: at(24),
			Token:    "u",
			Event:    "f",
		},
	}
	c.Status, c.Attempts, c.Outages, c.LastError = grant.Live, 1, 2, "x"
	c.Verdict, c.Doubt = &grant.Verdict{Reason: "r", Fingerprint: "c", At: at(25), Again: at(26)},
		&grant.Doubt{Fingerprint: "c", Since: at(27)}
	c.FailedAt, c.RefreshedAt, c.NextDueAt = at(28), at(29), at(5)
	c.Next = &grant.Candidate{
		Pair:  grant.Pair{Access: secret.New("n-acc"), Refresh: secret.New("n-ref")},
		Cause: cause,
	}
	return c
}

// Profile encodes p, whose Raw must be JSON.
func Profile(p schema.Profile) grant.Profile {
	encoded, err := grant.NewProfile(p)
	if err != nil {
		panic(err)
	}
	return encoded
}

// Run holds a store against the contract. open returns a new, empty store for each call. The test's
// cleanup closes the store.
func Run(t *testing.T, open func(t *testing.T) Fixture) {
	for name, test := range map[string]func(*testing.T, grant.Store){
		"every field comes back":                       testRoundTrip,
		"odd ids are kept apart":                       testIDs,
		"a profile stays, changes and goes":            testProfile,
		"only revision zero inserts":                   testInsert,
		"a save needs the newest revision":             testSave,
		"a save never brings an erased grant back":     testErased,
		"a claim is exclusive until it runs out":       testClaim,
		"a claim makes an older save conflict":         testClaimFences,
		"a claim on what was loaded sees what changed": testClaimLoaded,
		"an extension never takes a claim":             testExtension,
		"a claim names the token about to be sent":     testClaimFingerprint,
		"100 goroutines lose nothing":                  testContention,
		"one of many inserts wins":                     testInsertRace,
		"a walk meets every grant":                     testList,
		"a walk tells when every grant is due":         testListDue,
		"a walk tells what every grant is sealed with": testListSealed,
		"re-sealing changes nothing else":              testReseal,
		"an ended context ends the call":               testContext,
		"a second delete says so, a stale one refuses": testDelete,
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			test(t, open(t).Store)
		})
	}
	t.Run("nothing-stays-of-an-erased-grant", func(t *testing.T) {
		t.Parallel()
		testTraces(t, open(t))
	})
	for _, d := range []Damage{LostKey, Broken} {
		t.Run("unreadable-since-"+strings.ReplaceAll(string(d), " ", "-"), func(t *testing.T) {
			t.Parallel()
			testUnreadable(t, open(t), d)
		})
	}
}

var jane = grant.Key{Provider: "propelauth", User: "jane@example.com"}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

// insert stores g as new and returns it as stored.
func insert(t *testing.T, s grant.Store, g grant.Grant) grant.Grant {
	t.Helper()
	g.Revision = 0
	rev, err := s.Save(t.Context(), g)
	must(t, err)
	g.Revision = rev
	return g
}

func testRoundTrip(t *testing.T, s grant.Store) {
	want := Full(jane)
	for v, i := reflect.ValueOf(want), 0; i < v.NumField(); i++ {
		if f := v.Type().Field(i); v.Field(i).IsZero() && f.IsExported() && f.Name != "Revision" &&
			f.Name != "StoredProfile" {
			name := f.Name
			t.Errorf("Full leaves %s empty: set it there, and keep it in every store", name)
		}
	}
	for c, i := reflect.ValueOf(*want.Candidate), 0; i < c.NumField(); i++ {
		if c.Field(i).IsZero() {
			t.Errorf("Full leaves the candidate's %s empty", c.Type().Field(i).Name)
		}
	}
	want = insert(t, s, want)
	got, err := s.Load(t.Context(), jane)
	must(t, err)
	if a, b := flat(t, want), flat(t, got); a != b {
		t.Errorf("stored\n%s\nloaded\n%s", a, b)
	}
	bare := grant.Grant{
		Key:     grant.Key{Provider: "propelauth", User: "bare"},
		Version: 1,
		Status:  grant.ReauthRequired,
	}
	bare = insert(t, s, bare)
	got, err = s.Load(t.Context(), bare.Key)
	must(t, err)
	if a, b := flat(t, bare), flat(t, got); a != b {
		t.Errorf("stored\n%s\nloaded\n%s", a, b)
	}
	_, err = s.Load(t.Context(), grant.Key{Provider: "propelauth", User: "nobody"})
	wantErr(t, err, grant.ErrNotFound)
}

func testProfile(t *testing.T, s grant.Store) {
	insert(t, s, Full(jane))
	save := func(change func(*grant.Grant), want string) {
		t.Helper()
		g, err := s.Load(t.Context(), jane)
		must(t, err)
		g.Version++
		change(&g)
		_, err = s.Save(t.Context(), g)
		must(t, err)
		got, err := s.Load(t.Context(), jane)
		must(t, err)
		email := ""
		if p, err := got.Profile.Decode(); err != nil {
			t.Error(err)
		} else if p != nil {
			email = p.Email
		}
		if email != want || got.Version != g.Version {
			t.Errorf("profile of %q, want %q", email, want)
		}
	}
	const before = "jane@example.com"
	save(func(*grant.Grant) {}, before)
	save(func(g *grant.Grant) {
		g.Profile = Profile(schema.Profile{
			ID:    "x",
			Email: "other@example.com",
		})
	}, "other@example.com")
	save(func(*grant.Grant) {}, "other@example.com")
	save(func(g *grant.Grant) { g.Profile = "" }, "")
	save(func(g *grant.Grant) { g.Profile = Full(jane).Profile }, before)
}

// flat writes a grant, tokens revealed, in a form that compares.
func flat(t *testing.T, g grant.Grant) string {
	t.Helper()
	raw, err := json.MarshalIndent(g, "", " ")
	must(t, err)
	p := g.Pair
	text := fmt.Sprintf("%s\n%s %s %s", raw, p.Access.Reveal(), p.Refresh.Reveal(), p.ID.Reveal())
	for c := g.Candidate; c != nil; c = c.Next {
		text += fmt.Sprintf("\n%s %s %s", c.Pair.Access.Reveal(), c.Pair.Refresh.Reveal(),
			c.Pair.ID.Reveal())
	}
	return text
}

func testIDs(t *testing.T, s grant.Store) {
	ids := []string{
		"auth0|abc", "auth0=7Cabc", "a.b", "a b", "ümlaut", "*", ">", "a/b\\c", "100%", "A", "a",
		"'; drop table x; --", strings.Repeat("x", 256), strings.Repeat("é", 128),
	}
	for _, provider := range []string{"p", "p-2"} {
		for _, id := range ids {
			insert(t, s, Full(grant.Key{Provider: provider, User: id}))
		}
	}
	for _, provider := range []string{"p", "p-2"} {
		for _, id := range ids {
			g, err := s.Load(t.Context(), grant.Key{Provider: provider, User: id})
			must(t, err)
			if g.Provider != provider || g.User != id || g.Pair.Refresh.Reveal() != "ref-"+id {
				t.Errorf("%s/%q came back as %s with another pair", provider, id, g.Key)
			}
		}
	}
}

func testInsert(t *testing.T, s grant.Store) {
	g := Full(jane)
	g.Revision = 5
	_, err := s.Save(t.Context(), g)
	wantErr(t, err, grant.ErrConflict)
	insert(t, s, g)
	g.Revision = 0
	_, err = s.Save(t.Context(), g)
	wantErr(t, err, grant.ErrConflict)
}

func testSave(t *testing.T, s grant.Store) {
	old := insert(t, s, Full(jane))
	next := old
	next.Version++
	next.Claim = nil
	rev, err := s.Save(t.Context(), next)
	must(t, err)
	if rev == old.Revision {
		t.Fatal("a save left the revision as it was")
	}
	_, err = s.Save(t.Context(), old)
	wantErr(t, err, grant.ErrConflict)
	got, err := s.Load(t.Context(), jane)
	must(t, err)
	if got.Revision != rev || got.Version != next.Version || got.Claim != nil {
		t.Errorf("loaded %+v", got)
	}
}

func testErased(t *testing.T, s grant.Store) {
	old := insert(t, s, Full(jane))
	must(t, s.Delete(t.Context(), jane, old.Revision))
	_, err := s.Save(t.Context(), old)
	wantErr(t, err, grant.ErrConflict)
	_, _, err = s.Claim(t.Context(), jane, grant.ClaimRequest{Nonce: "n", For: time.Minute})
	wantErr(t, err, grant.ErrNotFound)
	again := insert(t, s, Full(jane))
	if again.Revision == old.Revision {
		t.Error("a new record has the revision of the erased one")
	}
	for range 3 {
		_, err = s.Save(t.Context(), old)
		wantErr(t, err, grant.ErrConflict)
		rev, err := s.Save(t.Context(), again)
		must(t, err)
		again.Revision = rev
	}
}

// eventually waits until ok is true, for a change by the store's own clock.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	end := time.Now().Add(10 * time.Second)
	for ; time.Now().Before(end); <-time.After(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("never came true")
}

func testInsertRace(t *testing.T, s grant.Store) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var won []int64
	for n := range 100 {
		wg.Go(func() {
			g := Full(jane)
			g.Version = int64(n)
			_, err := s.Save(t.Context(), g)
			if err == nil {
				mu.Lock()
				won = append(won, g.Version)
				mu.Unlock()
			} else if !errors.Is(err, grant.ErrConflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got, err := s.Load(t.Context(), jane)
	must(t, err)
	if len(won) != 1 || got.Version != won[0] {
		t.Errorf("winners %v, stored %d", won, got.Version)
	}
}

func testList(t *testing.T, s grant.Store) {
	testWalk(t, s, func(cursor string) (keys []grant.Key, next string, err error) {
		page, next, err := s.List(t.Context(), cursor, 10)
		for _, l := range page {
			must(t, l.Err)
			keys = append(keys, l.Key)
		}
		return keys, next, err
	})
}

func testListDue(t *testing.T, s grant.Store) {
	testWalk(t, s, func(cursor string) (keys []grant.Key, next string, err error) {
		page, next, err := s.ListDue(t.Context(), cursor, 10)
		for _, d := range page {
			g, err := s.Load(t.Context(), d.Key)
			must(t, err)
			if want := g.Due(); d.Version != want.Version || d.Status != want.Status ||
				!d.At.Equal(want.At) || !d.ClaimedUntil.Equal(want.ClaimedUntil) {
				t.Errorf("listed %+v, want %+v", d, want)
			}
			keys = append(keys, d.Key)
		}
		return keys, next, err
	})
}

func testListSealed(t *testing.T, s grant.Store) {
	testWalk(t, s, func(cursor string) (keys []grant.Key, next string, err error) {
		page, next, err := s.ListSealed(t.Context(), cursor, 10)
		for _, l := range page {
			g, err := s.Load(t.Context(), l.Key)
			must(t, err)
			whole, err := grant.SealTokens(Cipher{}, &g, false, nil)
			must(t, err)
			want := grant.Sealed{
				Due:      g.Due(),
				Revision: g.Revision,
				Head:     whole[:grant.SealedHead],
				Bound:    true,
			}
			if !reflect.DeepEqual(l, want) {
				t.Errorf("listed %+v, want %+v", l, want)
			}
			keys = append(keys, l.Key)
		}
		return keys, next, err
	})
}

func testReseal(t *testing.T, s grant.Store) {
	wantErr(t, s.Reseal(t.Context(), jane, 1), grant.ErrNotFound)
	was := insert(t, s, Full(jane))
	wantErr(t, s.Reseal(t.Context(), jane, was.Revision+1), grant.ErrConflict)
	must(t, s.Reseal(t.Context(), jane, was.Revision))
	got, err := s.Load(t.Context(), jane)
	must(t, err)
	if got.Revision == was.Revision {
		t.Error("the revision stays, so that another write does not notice")
	}
	wantErr(t, s.Reseal(t.Context(), jane, was.Revision), grant.ErrConflict)
	_, err = s.Save(t.Context(), was)
	wantErr(t, err, grant.ErrConflict)
	want := Full(jane)
	want.Revision, want.StoredProfile = got.Revision, got.StoredProfile
	if !reflect.DeepEqual(got, want) {
		t.Errorf("re-sealed it is\n%+v\nwas\n%+v", got, want)
	}
}

// testWalk has list return every grant, ten at a time, while another writer writes.
func testWalk(
	t *testing.T, s grant.Store,
	list func(cursor string) (keys []grant.Key, next string, err error),
) {
	page, next, err := list("")
	if err != nil || len(page) != 0 || next != "" {
		t.Fatalf("an empty store lists %v, %q, %v", page, next, err)
	}
	const n = 57
	for i := range n {
		g := Full(grant.Key{Provider: "p", User: fmt.Sprintf("user/%02d", i)})
		if i < n-1 {
			g.Claim = nil
		}
		insert(t, s, g)
	}
	gone, err := s.Load(t.Context(), grant.Key{Provider: "p", User: "user/03"})
	must(t, err)
	must(t, s.Delete(t.Context(), gone.Key, gone.Revision))
	seen := map[string]bool{}
	for cursor, pages := "", 0; ; pages++ {
		if pages > 200 {
			t.Fatal("the walk does not end")
		}
		page, next, err := list(cursor)
		must(t, err)
		for _, k := range page {
			seen[k.User] = true
			if pages < 5 {
				if _, _, err := s.Claim(t.Context(), k, grant.ClaimRequest{
					Nonce: "x",
					For:   time.Hour,
				}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if next == "" {
			break
		}
		cursor = next
	}
	if len(seen) != n-1 || seen["user/03"] {
		t.Errorf("the walk met %d of %d grants", len(seen), n-1)
	}
}

func testContext(t *testing.T, s grant.Store) {
	insert(t, s, Full(jane))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Load(ctx, jane); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("load: %v", err)
	}
	if _, err := s.Save(ctx, Full(jane)); err == nil {
		t.Error("a save with an ended context went well")
	}
}

func testDelete(t *testing.T, s grant.Store) {
	g := insert(t, s, Full(jane))
	wantErr(t, s.Delete(t.Context(), jane, g.Revision+1), grant.ErrConflict)
	must(t, s.Delete(t.Context(), jane, g.Revision))
	wantErr(t, s.Delete(t.Context(), jane, g.Revision), grant.ErrNotFound)
}

func testTraces(t *testing.T, f Fixture) {
	for range 2 {
		g := insert(t, f, Full(jane))
		if f.Traces(t, jane) == 0 {
			t.Fatal("what Traces counts is not there in the first place")
		}
		must(t, f.Delete(t.Context(), jane, g.Revision))
		if n := f.Traces(t, jane); n != 0 {
			t.Errorf("%d traces of the user stay", n)
		}
	}
}
