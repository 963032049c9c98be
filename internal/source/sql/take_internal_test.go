package sql

import (
	"testing"

	"github.com/renewd/renewd/internal/secret"
)

// Of two rows with one user id that were read together, one may be gone when the table is asked for
// doubles. Neither is a login before the rest is read again alone.
func TestDoublesThatWereReadTogether(t *testing.T) {
	of := func(user, refresh string) finding {
		return finding{session: session{user: user, refresh: secret.New(refresh)}}
	}
	out := of("jane", "rt-0")
	out.empty = true // signed out in the app: no login, and no double of one
	found := []finding{of("twice", "rt-1"), of("jane", "rt-2"), out, of("twice", "rt-3"),
		of("thrice", "rt-4")}
	refuseDoubles(found, map[string]bool{"thrice": true})
	for i, want := range []Problem{Double, "", "", Double, Double} {
		if found[i].problem != want {
			t.Errorf("row %d has the problem %q, want %q", i, found[i].problem, want)
		}
	}
}
