package hook

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// A message that may be older than a user's newest login, proven or not, ends nothing: the provider
// is asked.
func TestAMessageIsWeighedAgainstTheNewestLogin(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	proven := func(login time.Time) grant.Grant { return grant.Grant{LoginAt: login} }
	waiting := proven(at.Add(-time.Hour))
	waiting.Candidate = &grant.Candidate{
		Login: grant.Position{Time: at.Add(-time.Hour)},
		Next:  &grant.Candidate{Login: grant.Position{Time: at.Add(2 * time.Minute)}},
	}
	for name, tt := range map[string]struct {
		do      Action
		undated bool
		g       grant.Grant
		want    Action
	}{
		"of an old login":             {SignOut, false, proven(at.Add(-time.Hour)), SignOut},
		"of a login just before":      {SignOut, false, proven(at.Add(-30 * time.Second)), SignOut},
		"of a login after it":         {SignOut, false, proven(at.Add(30 * time.Second)), Ask},
		"beside a login that waits":   {SignOut, false, waiting, Ask},
		"sent when is not told":       {SignOut, true, proven(at.Add(-time.Hour)), Ask},
		"undated, of an older login":  {SignOut, true, proven(at.Add(-120 * time.Hour)), SignOut},
		"deleted after the login":     {Forget, true, proven(at.Add(-time.Second)), Forget},
		"deleted, and signed in":      {Forget, false, proven(at.Add(2 * time.Minute)), Ask},
		"deleted, and about to be in": {Forget, false, waiting, Ask},
		"a sync":                      {Sync, true, waiting, Sync},
	} {
		m := message{at: at, do: tt.do, undated: tt.undated}
		if got := m.weighed(tt.g); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}
