package stream_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

// Every login that waits is shown, wherever it waits, and so is what each parcel holds.
func TestWhatWaitsIsShown(t *testing.T) {
	for _, prefix := range []string{"", "test"} {
		js := start(t, natsd.Config{})
		want := wanted(t, prefix)
		ensure(t, js, want)
		e := engine(t, js, stream.Config{Subjects: want.Subjects})
		ctx := t.Context()
		body := func(jwe string) []byte { return []byte(`{"tokens":"` + jwe + `"}`) }
		header := schema.Header{
			"ce-specversion": {"1.0"},
			"ce-id":          {"1"},
			"ce-source":      {"/x"},
			"ce-type":        {"user.login"},
			"ce-subject":     {"bob"},
			"ce-time":        {"2026-01-01T00:00:00Z"},
		}
		login := schema.Address{Type: schema.UserLogin, Provider: "propelauth", User: "alice"}
		_, err := js.Publish(ctx, want.Subjects.Of(login), body("fresh"))
		must(t, err)
		login.User, login.Sender = "zoe", "shop"
		_, err = js.Publish(ctx, want.Subjects.Of(login), body("by a sender"))
		must(t, err)
		_, err = js.Publish(ctx, strings.TrimPrefix(prefix+".user.login.no.user.at.all", "."), nil)
		must(t, err)
		bob := grant.Key{Provider: "propelauth", User: "bob"}
		eve := grant.Key{Provider: "propelauth", User: "eve"}
		must(t, e.DeferLogin(ctx, loginOf(bob), time.Now().Add(time.Hour), place(1), 1, header,
			body("put off")))
		header.Set("ce-subject", "eve")
		must(t, e.DeferLogin(ctx, loginOf(eve), time.Now().Add(-time.Second), place(2), 1, header,
			body("due")))
		park(t, e, alice, grant.Parcel{Sealed: []byte("a pair")})
		var logins []string
		must(t, e.EachLogin(ctx, func(event schema.Event, err error) {
			if err != nil {
				logins = append(logins, "unclear")
				return
			}
			data, err := schema.Data[schema.Login](event)
			must(t, err)
			logins = append(logins, event.User+": "+data.Tokens)
		}))
		slices.Sort(logins)
		if !slices.Equal(logins, []string{
			"alice: fresh", "bob: put off", "eve: due", "unclear", "zoe: by a sender",
		}) {
			t.Errorf("logins %q", logins)
		}
		var parked []string
		must(t, e.EachParked(ctx, func(sealed []byte) { parked = append(parked, string(sealed)) }))
		if !slices.Equal(parked, []string{"a pair"}) {
			t.Errorf("parked %q", parked)
		}
		kept, err := e.LoginsKept(ctx)
		if err != nil || kept != 7*24*time.Hour {
			t.Errorf("logins are kept %v, %v", kept, err)
		}
	}
}

// A key is retired once it was noted.
func TestRetiredKeysAreNoted(t *testing.T) {
	_, e := fresh(t)
	must(t, e.NoteRetired(t.Context(), "login-a_b-", "odd id/"))
	for id, want := range map[string]bool{"login-a_b-": true, "odd id/": true, "other": false} {
		if got, err := e.Retired(t.Context(), id); err != nil || got != want {
			t.Errorf("%s is retired: %v, %v", id, got, err)
		}
	}
	if workers, err := e.Workers(t.Context()); err != nil || len(workers) != 0 {
		t.Errorf("workers %v, %v", workers, err)
	}
}
