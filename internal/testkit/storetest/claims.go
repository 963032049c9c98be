package storetest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

func testClaim(t *testing.T, s grant.Store) {
	g := Full(jane)
	g.Claim = nil
	g = insert(t, s, g)
	cause := Full(jane).Cause
	got, prior, err := s.Claim(t.Context(), jane, grant.ClaimRequest{
		Nonce:     "a",
		For:       time.Hour,
		Cause:     cause,
		Presented: true,
	})
	must(t, err)
	if prior != nil || got.Claim.Nonce != "a" || got.Claim.Fingerprint != g.Fingerprint() ||
		got.Claim.Cause != cause || !got.Claim.Presented {
		t.Fatalf("claimed %+v after %+v", got.Claim, prior)
	}
	if got.Pair.Refresh.Reveal() != g.Pair.Refresh.Reveal() || got.Revision == g.Revision {
		t.Error("the claim did not return the record as it is now")
	}
	_, _, err = s.Claim(t.Context(), jane, grant.ClaimRequest{Nonce: "b", For: time.Hour})
	wantErr(t, err, grant.ErrClaimed)
	// The holder may extend its claim, or cut it short. The presentation of the token stays
	// recorded.
	got, prior, err = s.Claim(t.Context(), jane, grant.ClaimRequest{
		Nonce: "a",
		For:   time.Millisecond,
		Cause: cause,
	})
	must(t, err)
	if prior == nil || prior.Nonce != "a" || !got.Claim.Presented {
		t.Errorf("extended %+v after %+v", got.Claim, prior)
	}
	eventually(t, func() bool {
		got, prior, err = s.Claim(t.Context(), jane, grant.ClaimRequest{Nonce: "b", For: time.Hour})
		return err == nil
	})
	if prior == nil || prior.Nonce != "a" || !prior.Presented ||
		prior.Fingerprint != g.Fingerprint() || got.Claim.Nonce != "b" || got.Claim.Presented {
		t.Errorf("after it ran out: %+v, prior %+v", got.Claim, prior)
	}
}

func testClaimFences(t *testing.T, s grant.Store) {
	g := Full(jane)
	g.Claim = nil
	g = insert(t, s, g)
	claimed, _, err := s.Claim(t.Context(), jane, grant.ClaimRequest{Nonce: "a", For: time.Hour})
	must(t, err)
	_, err = s.Save(t.Context(), g)
	wantErr(t, err, grant.ErrConflict)
	claimed.Claim = nil
	_, err = s.Save(t.Context(), claimed)
	must(t, err)
}

func testContention(t *testing.T, s grant.Store) {
	const workers, each = 100, 3
	g := Full(jane)
	g.Claim, g.Version = nil, 0
	insert(t, s, g)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			nonce := fmt.Sprintf("w%d", w)
			for done := 0; done < each; {
				g, _, err := s.Claim(t.Context(), jane, grant.ClaimRequest{
					Nonce: nonce,
					For:   time.Minute,
				})
				if errors.Is(err, grant.ErrClaimed) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				g.Version++
				g.Claim = nil
				if _, err := s.Save(t.Context(), g); err != nil {
					t.Errorf("the holder of the claim could not save: %v", err)
					return
				}
				done++
			}
		})
	}
	wg.Wait()
	got, err := s.Load(t.Context(), jane)
	must(t, err)
	if got.Version != workers*each {
		t.Errorf("%d of %d changes are left", got.Version, workers*each)
	}
}

func testExtension(t *testing.T, s grant.Store) {
	extension := grant.ClaimRequest{Nonce: "a", For: time.Hour, Extend: true, Presented: true}
	_, _, err := s.Claim(t.Context(), jane, extension)
	wantErr(t, err, grant.ErrNotFound)
	g := Full(jane)
	g.Claim = nil
	g = insert(t, s, g)
	refused := func(revision uint64) {
		t.Helper()
		_, _, err := s.Claim(t.Context(), jane, extension)
		wantErr(t, err, grant.ErrClaimed)
		got, err := s.Load(t.Context(), jane)
		must(t, err)
		if got.Revision != revision || got.Claim != nil && got.Claim.Nonce == extension.Nonce {
			t.Errorf("it left revision %d and claim %+v, want %d", got.Revision, got.Claim,
				revision)
		}
	}
	refused(g.Revision)
	_, _, err = s.Claim(t.Context(), jane, grant.ClaimRequest{Nonce: "a", For: time.Hour})
	must(t, err)
	g, prior, err := s.Claim(t.Context(), jane, extension)
	must(t, err)
	if prior == nil || prior.Nonce != "a" || prior.Presented || !g.Claim.Presented {
		t.Errorf("extended %+v after %+v", g.Claim, prior)
	}
	g.Claim = nil
	rev, err := s.Save(t.Context(), g)
	must(t, err)
	refused(rev)
	other, _, err := s.Claim(t.Context(), jane, grant.ClaimRequest{
		Nonce: "b",
		For:   time.Millisecond,
	})
	must(t, err)
	refused(other.Revision) // and still when claim b has run out
	<-time.After(5 * time.Millisecond)
	refused(other.Revision)
}

func testClaimFingerprint(t *testing.T, s grant.Store) {
	g := Full(jane)
	g.Claim = nil
	insert(t, s, g)
	for _, want := range []string{"of another token", g.Fingerprint()} {
		r := grant.ClaimRequest{Nonce: "a", For: time.Hour}
		if want != g.Fingerprint() {
			r.Fingerprint = want
		}
		got, _, err := s.Claim(t.Context(), jane, r)
		must(t, err)
		stored, err := s.Load(t.Context(), jane)
		must(t, err)
		if got.Claim.Fingerprint != want || stored.Claim.Fingerprint != want {
			t.Errorf("claimed for %q, stored %q, want %q", got.Claim.Fingerprint,
				stored.Claim.Fingerprint, want)
		}
	}
}

// testClaimLoaded claims a record that the caller has loaded and a record that the caller has not.
// Both calls must return the present record under the claim.
func testClaimLoaded(t *testing.T, s grant.Store) {
	g := Full(jane)
	g.Claim = nil
	insert(t, s, g)
	load := func() *grant.Grant {
		t.Helper()
		g, err := s.Load(t.Context(), jane)
		must(t, err)
		return &g
	}
	claim := func(nonce string, loaded *grant.Grant) (grant.Grant, *grant.Claim) {
		t.Helper()
		got, prior, err := s.Claim(t.Context(), jane, grant.ClaimRequest{
			Nonce:     nonce,
			For:       time.Hour,
			Presented: true,
			Loaded:    loaded,
		})
		must(t, err)
		if now := load(); flat(t, got) != flat(t, *now) || got.Revision != now.Revision {
			t.Errorf("claimed\n%s\nstored\n%s", flat(t, got), flat(t, *now))
		}
		if got.Claim == nil || got.Claim.Nonce != nonce ||
			got.Claim.Fingerprint != got.Fingerprint() {
			t.Errorf("%s has the claim %+v", nonce, got.Claim)
		}
		return got, prior
	}
	got, prior := claim("unchanged", load())
	if prior != nil {
		t.Errorf("before it there was %+v", prior)
	}
	held := load()
	_, _, err := s.Claim(t.Context(), jane, grant.ClaimRequest{
		Nonce:  "b",
		For:    time.Hour,
		Loaded: held,
	})
	wantErr(t, err, grant.ErrClaimed)

	got.Claim, got.Version = nil, got.Version+1
	got.Pair.Refresh, got.Profile, got.LastError = secret.New("newer"),
		Profile(schema.Profile{ID: "newer"}), "newer"
	_, err = s.Save(t.Context(), got)
	must(t, err)
	got, prior = claim("changed", held)
	if prior != nil || got.Pair.Refresh.Reveal() != "newer" || got.LastError != "newer" {
		t.Errorf("after a change: %+v, prior %+v", got, prior)
	}
	got, prior = claim("changed", load())
	if prior == nil || prior.Nonce != "changed" || !prior.Presented ||
		got.Pair.Refresh.Reveal() != "newer" {
		t.Errorf("once more: prior %+v", prior)
	}
	must(t, s.Delete(t.Context(), jane, got.Revision))
	_, _, err = s.Claim(t.Context(), jane, grant.ClaimRequest{
		Nonce:  "b",
		For:    time.Hour,
		Loaded: &got,
	})
	wantErr(t, err, grant.ErrNotFound)
}
