package refresh_test

import (
	"context"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// idTokens is what the ID tokens of a provider without userinfo say, by the access token that they
// came with. An ID token of another access token proves nothing.
type idTokens map[string]error

func (i idTokens) Identify(
	_ context.Context, _, access secret.Value, _ bool, user string,
) (schema.Profile, error) {
	err, there := i[access.Reveal()]
	if !there {
		err = grant.ErrAccessRefused
	}
	return schema.Profile{ID: user, Email: "jane@id.example"}, err
}

// withoutUserinfo fails the test when a userinfo endpoint is asked.
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
	s := data[schema.Synced](t, w.last(schema.UserSynced))
	if !s.Refreshed || len(s.Changed) != 0 || s.Profile == nil || s.Profile.Email != p.Email {
		t.Errorf("%+v", s)
	}
}

// A login without an ID token, or with the ID token of another access token, is proven by what its
// refresh token brings, or not at all.
func TestALoginWithAnIDTokenThatProvesNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		said   error
		proven bool
	}{
		"the refresh brings one": {nil, true},
		"it is another user's":   {grant.ErrSubjectMismatch, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := withoutUserinfo(t, idTokens{"access-a-1": nil})
			w.prove(w.candidate("a", 200*time.Second))
			named := idTokens{"access-a-1": nil, "access-b-2": grant.ErrAccessRefused}
			w.idTokens = anyOther{named, tt.said}
			g := w.prove(w.candidate("b", 90*time.Second))
			proven := g.Pair.Refresh.Reveal()[0] == 'b'
			if proven != tt.proven || g.Status != grant.Live {
				t.Errorf("%s with %s", g.Status, g.Pair.Refresh.Reveal())
			}
			rejected := w.told()[schema.MessageRejected]
			if (rejected == 0) != tt.proven || w.told()[schema.UserReauthRequired] != 0 {
				t.Errorf("told %v", w.told())
			}
		})
	}
}

// Where no refresh brings an ID token either, the login stays a candidate. It is tried ever more
// seldom, and harms no session.
func TestALoginThatNoIDTokenNames(t *testing.T) {
	w := withoutUserinfo(t, idTokens{"access-a-1": nil})
	w.prove(w.candidate("a", 200*time.Second))
	w.settle(loginWork(w.candidate("b", 90*time.Second)), 1)
	for range 9 {
		w.fire()
	}
	g := mustStored(w)
	if g.Candidate == nil || g.Pair.Refresh.Reveal()[0] != 'a' || g.Status != grant.Live ||
		!w.accepted(g) {
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

func (o anyOther) Identify(
	ctx context.Context, id, access secret.Value, answered bool, user string,
) (schema.Profile, error) {
	if _, there := o.known[access.Reveal()]; there {
		return o.known.Identify(ctx, id, access, answered, user)
	}
	return schema.Profile{ID: user}, o.err
}
