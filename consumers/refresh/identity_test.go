package refresh_test

import (
	"context"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// idTokens is what the ID tokens of a provider without userinfo say, by the access token that they
// came with. One of another access token proves nothing.
type idTokens map[string]error

func (i idTokens) Identify(_ context.Context, _, access grant.Secret, _ bool, user string) (schema.Profile, error) {
	err, there := i[access.Reveal()]
	if !there {
		err = grant.ErrAccessRefused
	}
	return schema.Profile{ID: user, Email: "jane@id.example"}, err
}

// withoutUserinfo has nobody asked for a userinfo.
func withoutUserinfo(t *testing.T, said idTokens) *world {
	w := newWorld(t)
	w.idTokens = said
	w.point = func(effect string) error {
		if effect == "userinfo" {
			t.Error("userinfo was asked")
		}
		return nil
	}
	return w
}

func TestALoginIsProvenByItsIDToken(t *testing.T) {
	said := idTokens{"access-a-1": nil}
	w := withoutUserinfo(t, said)
	g := w.prove(w.candidate("a", 90*time.Second))
	p, err := g.Profile.Decode()
	if err != nil || g.Status != grant.Live || p.Email != "jane@id.example" || w.refreshed != 0 {
		t.Errorf("%s, %s after %d presentations (%v)", g.Status, g.Profile, w.refreshed, err)
	}
	// Many a refresh answer has no ID token: it says nothing new of a user who was named before.
	w.fire()
	if s := data[schema.Synced](t, w.last(schema.UserSynced)); !s.Refreshed || len(s.Changed) != 0 || s.Profile == nil || s.Profile.Email != p.Email {
		t.Errorf("%+v", s)
	}
}

// A login whose ID token is of another access token, or that has none, is proven by what its refresh
// token brings, or not at all.
func TestALoginWithAnIDTokenThatProvesNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		said   error
		proven bool
	}{"the refresh brings one": {nil, true}, "it is another user's": {grant.ErrSubjectMismatch, false}} {
		t.Run(name, func(t *testing.T) {
			w := withoutUserinfo(t, idTokens{"access-a-1": nil})
			w.prove(w.candidate("a", 200*time.Second))
			w.idTokens = anyOther{idTokens{"access-a-1": nil, "access-b-2": grant.ErrAccessRefused}, tt.said}
			g := w.prove(w.candidate("b", 90*time.Second))
			if proven := g.Pair.Refresh.Reveal()[0] == 'b'; proven != tt.proven || g.Status != grant.Live {
				t.Errorf("%s with %s", g.Status, g.Pair.Refresh.Reveal())
			}
			if rejected := w.told()[schema.MessageRejected]; (rejected == 0) != tt.proven || w.told()[schema.UserReauthRequired] != 0 {
				t.Errorf("told %v", w.told())
			}
		})
	}
}

// Where no refresh brings an ID token either, the login stays a candidate that is tried ever more
// seldom, and costs nobody anything.
func TestALoginThatNoIDTokenNames(t *testing.T) {
	w := withoutUserinfo(t, idTokens{"access-a-1": nil})
	w.prove(w.candidate("a", 200*time.Second))
	w.settle(loginWork(w.candidate("b", 90*time.Second)), 1)
	for range 9 {
		w.fire()
	}
	if g := mustStored(w); g.Candidate == nil || g.Pair.Refresh.Reveal()[0] != 'a' || g.Status != grant.Live || !w.accepted(g) {
		t.Errorf("%s with %s", g.Status, g.Pair.Refresh.Reveal())
	}
	if w.told()[schema.UserReauthRequired] != 0 {
		t.Errorf("told %v", w.told())
	}
}

// anyOther answers for the access tokens that known does not know.
type anyOther struct {
	known idTokens
	err   error
}

func (o anyOther) Identify(ctx context.Context, id, access grant.Secret, answered bool, user string) (schema.Profile, error) {
	if _, there := o.known[access.Reveal()]; there {
		return o.known.Identify(ctx, id, access, answered, user)
	}
	return schema.Profile{ID: user}, o.err
}
