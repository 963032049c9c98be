package systemtest_test

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// While no worker runs, a service publishes a good login and, for the same user, logins that are
// none: with another user's tokens, and with tokens that ended long ago. Each is answered, and the
// user is signed in by the good one.
func TestWorthlessLoginsDisplaceNoGoodOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{concurrency: 4, settings: quick})
	w.follow()
	p := w.publisher()
	const name = "jane"
	ended := w.provider.Login(name)
	w.provider.EndSessions(name)
	of := func(access, refresh string) string {
		t.Helper()
		r, err := p.Login(t.Context(), provider, name, publishers.Tokens{
			AccessToken: access, RefreshToken: refresh, ExpiresIn: time.Hour,
		})
		w.must(err)
		return r.ID
	}
	good := w.login(p, name).ID
	mallory := w.provider.Login("mallory")
	bad := []string{of(mallory.Access, mallory.Refresh), of(ended.Access, ended.Refresh)}
	w.start()
	w.await("each login is answered", time.Minute, func(all map[string][]schema.Event) bool {
		answered := map[string]schema.Type{}
		for _, e := range all[name] {
			answered[decode[struct{ Cause schema.Cause }](t, e).Cause.ID] = e.Type
		}
		return answered[good] == schema.UserSynced && answered[bad[0]] == schema.MessageRejected &&
			answered[bad[1]] == schema.MessageRejected
	})
	g, err := w.store.Load(t.Context(), grant.Key{Provider: provider, User: name})
	w.must(err)
	if g.Status != grant.Live || !w.provider.Valid(g.Pair.Refresh.Reveal()) {
		t.Errorf("the user is %s, with tokens that the provider takes: %t", g.Status,
			w.provider.Valid(g.Pair.Refresh.Reveal()))
	}
}
