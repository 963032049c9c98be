package refresh

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// A login that userinfo does not name a user for is given up only where userinfo has named another
// user between two of its failures. Userinfo may name one just after a login came, and then refuse
// everybody.
func TestALoginOutlastsAUserinfoThatRefusesEverybody(t *testing.T) {
	came := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	policy := grant.Policy{Tries: 3}.WithDefaults()
	failure := grant.Failure{Own: true}
	for name, tt := range map[string]struct {
		tries  int
		failed time.Duration // the last failure, after the login
		named  time.Duration // another user, after the login
		want   bool
	}{
		"named between the last failures": {3, 10 * time.Second, 11 * time.Second, true},
		"named before the failures":       {3, 10 * time.Second, time.Second, false},
		"named before the login":          {3, 10 * time.Second, -time.Second, false},
		"too few failures":                {2, 10 * time.Second, 11 * time.Second, false},
		"a day of failures, nobody named": {3, 25 * time.Hour, -time.Second, true},
	} {
		named := new(atomic.Int64)
		named.Store(came.Add(tt.named).UnixNano())
		now := came.Add(tt.failed + 5*time.Second)
		j := &faults{&job{
			Consumer: &Consumer{Config: Config{Now: func() time.Time { return now }}},
			provider: &Provider{Policy: policy, named: named},
		}}
		g := grant.Grant{Candidate: &grant.Candidate{}}.AsCandidate()
		g.Attempts, g.FailedAt = tt.tries-1, came.Add(tt.failed)
		g.Login = grant.Position{Sequence: 1, Time: came}
		if got := j.hopeless(&g, failure); got != tt.want {
			t.Errorf("%s: given up: %v, want %v", name, got, tt.want)
		}
	}
}
