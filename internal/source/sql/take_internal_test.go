package sql

import (
	"context"
	"errors"
	"testing"

	"github.com/renewd/renewd/internal/lease"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/publishers"
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

// refusing is a publisher that must not be called.
type refusing struct{ t *testing.T }

func (r refusing) Login(context.Context, string, string, publishers.Tokens,
	...publishers.EventOption) (publishers.Receipt, error) {
	r.t.Error("a login is published without the lease")
	return publishers.Receipt{}, nil
}

// A process that stood still past its lease publishes no row that it read before: the process that
// has the lease may have published a newer sign-in of that row.
func TestNoLoginWithoutTheLease(t *testing.T) {
	over, lose := context.WithCancelCause(t.Context())
	lose(lease.ErrLost)
	_, err := fenced{refusing{t}, over}.Login(t.Context(), "p", "u", publishers.Tokens{})
	if !errors.Is(err, lease.ErrLost) {
		t.Error(err)
	}
}
