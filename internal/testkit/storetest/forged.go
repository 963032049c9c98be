package storetest

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// Forgery is an attacker's access to a store's records. The attacker reads and writes all records,
// and has no key.
type Forgery struct {
	// Fields returns the fields of k's record, by the store's own names. Write replaces all fields.
	Fields func(t *testing.T, k grant.Key) map[string]string
	Write  func(t *testing.T, k grant.Key, fields map[string]string)
	// Sealed names the fields of the sealed tokens and their binding. Free names the unbound
	// fields.
	Sealed, Free []string
	// Unbind writes k's record as an old version did, without a binding.
	Unbind func(t *testing.T, k grant.Key)
	// Strict is the same store, and reads only bound records.
	Strict grant.Store
}

// Forged holds a store against its promise after any attack: a record is read as written, or not at
// all.
func Forged(t *testing.T, open func(t *testing.T) (Fixture, Forgery)) {
	for name, test := range map[string]func(*testing.T, Fixture, Forgery){
		"no field can be another's":         testForgedFields,
		"nothing that is decided":           testForgedTexts,
		"no two records can be mixed":       testMixed,
		"a record of before is bound later": testUnbound,
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			f, by := open(t)
			test(t, f, by)
		})
	}
}

// plainest is a record that differs from Full in every field.
func plainest(k grant.Key) grant.Grant {
	return grant.Grant{Key: k, Version: 5, Status: grant.Suspended}
}

// wantAltered wants each call that reads k's record to report the record as unreadable. It then
// heals the record by a save, as a login does.
func wantAltered(t *testing.T, f Fixture, k grant.Key, what string) {
	t.Helper()
	got, err := f.Load(t.Context(), k)
	if !errors.Is(err, grant.ErrUnreadable) || !got.Pair.Refresh.IsZero() || got.Revision == 0 {
		t.Errorf("%s: loaded at revision %d with %v", what, got.Revision, err)
	}
	_, _, err = f.Claim(t.Context(), k, grant.ClaimRequest{Nonce: "x", For: time.Hour})
	if !errors.Is(err, grant.ErrUnreadable) {
		t.Errorf("%s: claimed with %v", what, err)
	}
	for cursor, more := "", true; more; more = cursor != "" {
		page, next, err := f.List(t.Context(), cursor, 10)
		must(t, err)
		for _, l := range page {
			if l.Key == k && !errors.Is(l.Err, grant.ErrUnreadable) {
				t.Errorf("%s: listed with %v", what, l.Err)
			}
		}
		cursor = next
	}
	got, _ = f.Load(t.Context(), k)
	if err := f.Reseal(t.Context(), k, got.Revision); !errors.Is(err, grant.ErrUnreadable) {
		t.Errorf("%s: re-sealed with %v", what, err)
	}
	healed := Full(k)
	healed.Revision = got.Revision
	_, err = f.Save(t.Context(), healed)
	must(t, err)
	_, err = f.Load(t.Context(), k)
	must(t, err)
}

// testForgedFields puts each field of another record into jane's, one at a time.
func testForgedFields(t *testing.T, f Fixture, by Forgery) {
	zoe := grant.Key{Provider: jane.Provider, User: "zoe"}
	other := insert(t, f, plainest(zoe))
	insert(t, f, Full(jane))
	theirs := by.Fields(t, zoe)
	names := slices.Collect(maps.Keys(by.Fields(t, jane)))
	if len(names) < 10 {
		t.Fatalf("a record of few fields: %q", names)
	}
	for _, name := range names {
		fields := by.Fields(t, jane)
		value, there := theirs[name]
		if slices.Contains(by.Free, name) || there && value == fields[name] {
			continue
		}
		if fields[name] = value; !there {
			delete(fields, name)
		}
		by.Write(t, jane, fields)
		wantAltered(t, f, jane, "with another's "+name)
	}
	if got, err := f.Load(t.Context(), zoe); err != nil || got.Version != other.Version {
		t.Errorf("the other record: %v", err)
	}
}

// testForgedTexts changes the fields that decisions and events depend on.
func testForgedTexts(t *testing.T, f Fixture, by Forgery) {
	insert(t, f, Full(jane))
	for what, change := range map[string]*strings.Replacer{
		"another status":          strings.NewReplacer("live", "reauth_required"),
		"another pending outcome": strings.NewReplacer("user.synced", "user.reauth_required"),
		"another place of login":  strings.NewReplacer("1099511627776", "1099511627777"),
		"another due time":        strings.NewReplacer("12:00:09", "12:00:19"),
		"another profile":         strings.NewReplacer("jane@example.com", "ceo@example.com"),
		"an unconfirmed verdict":  strings.NewReplacer(`"confirmed":true`, `"confirmed":null`),
		"no mark of the binding":  strings.NewReplacer(`"bound":true,`, "", `"Bound":true,`, ""),
	} {
		was := by.Fields(t, jane)
		fields := maps.Clone(was)
		for name, value := range fields {
			if !slices.Contains(by.Sealed, name) && name != "user_id" {
				fields[name] = change.Replace(value)
			}
		}
		if what == "no mark of the binding" {
			delete(fields, "Bound")
		}
		if maps.Equal(fields, was) {
			if what != "another profile" || !f.SealsProfiles {
				t.Errorf("%s: nothing was changed of %q", what, fields)
			}
			continue
		}
		by.Write(t, jane, fields)
		_, err := f.Load(t.Context(), jane)
		wantErr(t, err, grant.ErrAltered)
		wantAltered(t, f, jane, what)
	}
}

// testMixed joins the sealed part of one state of a record and the rest of another state.
func testMixed(t *testing.T, f Fixture, by Forgery) {
	g := insert(t, f, Full(jane))
	older := by.Fields(t, jane)
	g.Pending, g.Status, g.Attempts = nil, grant.Suspended, 1 // at the same version
	_, err := f.Save(t.Context(), g)
	must(t, err)
	newer := by.Fields(t, jane)
	mix := func(sealed, rest map[string]string) map[string]string {
		mixed := maps.Clone(rest)
		for _, name := range by.Sealed {
			mixed[name] = sealed[name]
		}
		return mixed
	}
	by.Write(t, jane, mix(newer, older))
	wantAltered(t, f, jane, "an older record around newer tokens")
	by.Write(t, jane, mix(older, newer))
	wantAltered(t, f, jane, "a newer record around older tokens")

	zoe := grant.Key{Provider: jane.Provider, User: "zoe"}
	insert(t, f, plainest(zoe))
	by.Write(t, jane, by.Fields(t, zoe))
	wantAltered(t, f, jane, "another user's record")
	fields := by.Fields(t, jane)
	by.Write(t, jane, mix(fields, by.Fields(t, zoe)))
	wantAltered(t, f, jane, "another user's record around its own tokens")
}

// testUnbound has a record that an old version wrote unbound. The record is read unchanged, bound
// by a walk, and from then on treated like any other record.
func testUnbound(t *testing.T, f Fixture, by Forgery) {
	want := insert(t, f, Full(jane))
	by.Unbind(t, jane)
	before := by.Fields(t, jane)
	found := sealedAs(t, f, jane)
	if found.Bound {
		t.Error("a record of before says that it is bound")
	}
	got, err := f.Load(t.Context(), jane)
	must(t, err)
	want.Revision, want.StoredProfile = got.Revision, got.StoredProfile
	if is, was := flat(t, got), flat(t, want); is != was {
		t.Errorf("of before it is\n%s\nwas\n%s", is, was)
	}
	_, err = by.Strict.Load(t.Context(), jane)
	wantErr(t, err, grant.ErrUnreadable)
	wantErr(t, err, grant.ErrUnbound)
	wantErr(t, by.Strict.Reseal(t.Context(), jane, found.Revision), grant.ErrUnbound)

	must(t, f.Reseal(t.Context(), jane, found.Revision))
	if !sealedAs(t, f, jane).Bound {
		t.Error("re-sealed it does not say that it is bound")
	}
	for _, s := range []grant.Store{f, by.Strict} {
		got, err = s.Load(t.Context(), jane)
		must(t, err)
		want.Revision, want.StoredProfile = got.Revision, got.StoredProfile
		if is, was := flat(t, got), flat(t, want); is != was {
			t.Errorf("bound it is\n%s\nwas\n%s", is, was)
		}
	}
	testForgedOnce(t, f, by)
	// An unbound record can be put back, because it looks like a record an old version has just
	// written. Only a strict store refuses the record.
	by.Write(t, jane, before)
	_, err = f.Load(t.Context(), jane)
	must(t, err)
	_, err = by.Strict.Load(t.Context(), jane)
	wantErr(t, err, grant.ErrUnbound)
}

// testForgedOnce forges the status of jane's record and wants the record refused.
func testForgedOnce(t *testing.T, f Fixture, by Forgery) {
	t.Helper()
	was := by.Fields(t, jane)
	forged := maps.Clone(was)
	for name, value := range forged {
		if strings.EqualFold(name, "status") {
			forged[name] = strings.Replace(value, "live", string(grant.Suspended), 1)
		}
	}
	by.Write(t, jane, forged)
	_, err := f.Load(t.Context(), jane)
	wantErr(t, err, grant.ErrAltered)
}

// sealedAs is the list entry of k's record.
func sealedAs(t *testing.T, s grant.Store, k grant.Key) (found grant.Sealed) {
	t.Helper()
	page, _, err := s.ListSealed(t.Context(), "", 10)
	must(t, err)
	for _, l := range page {
		if l.Key == k {
			found = l
		}
	}
	return found
}
