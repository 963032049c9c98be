package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/seal"
)

// testUnreadable holds f against the contract for an unreadable record. All calls report the record
// as unreadable. The record does not hinder other users' records, holds no claim, and is
// overwritten and deleted like any other record.
func testUnreadable(t *testing.T, f Fixture, d Damage) {
	want := insert(t, f, Full(jane))
	if f.SealsProfiles {
		want.Profile = ""
	}
	well := grant.Key{Provider: jane.Provider, User: "zoe"}
	insert(t, f, Full(well))
	f.Damage(t, jane, d)

	got, err := f.Load(t.Context(), jane)
	wantUnreadable(t, want, got, err, d)
	got, prior, err := f.Claim(t.Context(), jane, grant.ClaimRequest{
		Nonce:     "a",
		For:       time.Hour,
		Presented: true,
	})
	wantUnreadable(t, want, got, err, d)
	revision := got.Revision
	if prior != nil {
		t.Errorf("it was claimed, after %+v", prior)
	}
	got, err = f.Load(t.Context(), jane)
	wantUnreadable(t, want, got, err, d)
	if got.Revision != revision || got.Claim != nil && got.Claim.Nonce == "a" {
		t.Errorf("the refused claim stays: %+v at revision %d, told %d", got.Claim, got.Revision,
			revision)
	}
	if d == LostKey &&
		(got.Claim == nil || got.Claim.Nonce != want.Claim.Nonce ||
			!got.Claim.Until.Equal(want.Claim.Until) || !got.Claim.Presented) {
		t.Errorf("the claim before it is %+v, was %+v", got.Claim, want.Claim)
	}
	testUnreadableListed(t, f, well)
	testUnreadableSealed(t, f, well, d)
	if err := f.Reseal(t.Context(), jane, got.Revision); d == LostKey {
		wantErr(t, err, grant.ErrUnreadable)
	}
	got, err = f.Load(t.Context(), jane) // of a broken record the tokens may be whole
	wantErr(t, err, grant.ErrUnreadable)

	healed := want
	healed.Revision, healed.Version, healed.Claim = got.Revision, want.Version+1, nil
	healed.Revision, err = f.Save(t.Context(), healed)
	must(t, err)
	if _, _, err := f.Claim(t.Context(), jane, grant.ClaimRequest{
		Nonce: "b",
		For:   time.Hour,
	}); err != nil {
		t.Errorf("a save did not heal it: %v", err)
	}

	f.Damage(t, jane, d)
	got, err = f.Load(t.Context(), jane)
	wantErr(t, err, grant.ErrUnreadable)
	wantErr(t, f.Delete(t.Context(), jane, got.Revision+1), grant.ErrConflict)
	must(t, f.Delete(t.Context(), jane, got.Revision))
	_, err = f.Load(t.Context(), jane)
	wantErr(t, err, grant.ErrNotFound)
}

// wantUnreadable wants the error, and the rest of the record if only the tokens cannot be read.
func wantUnreadable(t *testing.T, want, got grant.Grant, err error, d Damage) {
	t.Helper()
	wantErr(t, err, grant.ErrUnreadable)
	if got.Key != want.Key || got.Revision == 0 || !got.Pair.Refresh.IsZero() {
		t.Fatalf("of the record is left %s at revision %d, with a refresh token: %v", got.Key,
			got.Revision, !got.Pair.Refresh.IsZero())
	}
	if d != LostKey {
		return
	}
	wantErr(t, err, seal.ErrUnknownKey)
	if got.Version != want.Version || got.Status != want.Status || got.Login != want.Login ||
		!got.NextDueAt.Equal(want.NextDueAt) || got.Profile != want.Profile {
		t.Errorf("of the record is left %d, %s, %+v, %v, %s", got.Version, got.Status, got.Login,
			got.NextDueAt, got.Profile)
	}
}

// testUnreadableListed wants jane's record in both lists as unreadable, and the record of well
// beside jane's.
func testUnreadableListed(t *testing.T, f Fixture, well grant.Key) {
	t.Helper()
	found := map[grant.Key]error{}
	for cursor, more := "", true; more; more = cursor != "" {
		page, next, err := f.List(t.Context(), cursor, 10)
		must(t, err)
		for _, l := range page {
			found[l.Key] = l.Err
		}
		cursor = next
	}
	if err, ok := found[well]; len(found) != 2 || !ok || err != nil ||
		!errors.Is(found[jane], grant.ErrUnreadable) {
		t.Errorf("listed %v", found)
	}
	due := map[grant.Key]bool{}
	for cursor, more := "", true; more; more = cursor != "" {
		page, next, err := f.ListDue(t.Context(), cursor, 10)
		must(t, err)
		for _, d := range page {
			due[d.Key] = true
		}
		cursor = next
	}
	if len(due) != 2 || !due[jane] || !due[well] {
		t.Errorf("listed as due: %v", due)
	}
}

// testUnreadableSealed wants jane's record in the list of the records' keys, and the record of well
// too. If the key is lost, the list must name the lost key.
func testUnreadableSealed(t *testing.T, f Fixture, well grant.Key, d Damage) {
	t.Helper()
	heads := map[grant.Key]string{}
	for cursor, more := "", true; more; more = cursor != "" {
		page, next, err := f.ListSealed(t.Context(), cursor, 10)
		must(t, err)
		for _, l := range page {
			heads[l.Key] = string(l.Head)
		}
		cursor = next
	}
	lost := string(grant.HeadOf(LostPair))
	if len(heads) != 2 || heads[well] == "" || d == LostKey && heads[jane] != lost {
		t.Errorf("listed as sealed: %q", heads)
	}
}
