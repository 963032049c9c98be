package reconcile

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/testkit/golden"
)

// The lease stays readable for every later version, and for versions that run beside this one.
func TestLeasesStayReadable(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)
	l := leaseRecord{
		Holder:  "worker-1",
		Until:   at,
		NextAt:  at,
		Created: at,
		Stuck:   map[string]uint64{"propelauth/jane": 7},
		Old:     []string{"a-key"},
		Left:    1,
		Unbound: 6,
		Last: Walk{
			Live:     1,
			Dormant:  11,
			Due:      2,
			Overdue:  3,
			Woken:    4,
			Fired:    5,
			Armed:    6,
			Expired:  7,
			Parked:   8,
			Unparked: 9,
			Foreign:  10,
		},
	}
	golden.Filled(t, l)
	golden.Filled(t, l.Last)
	golden.Check(t, "testdata/lease", golden.Encode(t, l), func(t *testing.T, kept []byte) []byte {
		return golden.Encode(t, golden.Decode[leaseRecord](t, kept))
	})
}
