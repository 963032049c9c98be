package health

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/testkit/golden"
	"github.com/renewd/renewd/schema"
)

// Records of every version stay readable, and lose nothing when they are written again.
func TestRecordsStayReadable(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	all := Tally{
		OK:           1,
		Dead:         2,
		Again:        3,
		Failed:       4,
		Config:       5,
		Throttled:    6,
		Unknown:      7,
		UnknownAgain: 8,
		Quiet:        at,
	}
	s := State{
		V:          version,
		Settings:   "fingerprint",
		SettingsAt: at,
		ProvenAt:   at,
		RecentAt:   at,
		Recent:     all,
		Run:        Run{Dead: 1, Unknown: 2, Config: 3, Throttled: 4},
		Lately: []Bucket{
			{From: at, OK: 1, Dead: 2, Again: 3, Unknown: 4, UnknownAgain: 5, Coarse: true},
		},
		Outage:      &Outage{Reason: ReasonOutage, Since: at, Until: at, Tries: 1},
		Doubt:       &Doubt{Reason: ReasonConfig, Since: at, Until: at, Tries: 2},
		Paused:      &Pause{By: "ada", Note: "maintenance", Since: at, Until: at},
		RecoveredAt: at,
		LiftUntil:   at,
		WakeAt:      at,
		WakeUntil:   at,
		Wakes:       3,
		Untold: []Notice{
			{
				Type:   schema.ProviderDegraded,
				Reason: ReasonPaused,
				Since:  at,
				At:     at,
				By:     "ada",
				Note:   "maintenance",
				Until:  at,
			},
		},
	}
	for v, i := reflect.ValueOf(s), 0; i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Errorf("%s is empty: set it here", v.Type().Field(i).Name)
		}
	}
	today, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "testdata/state", today, func(t *testing.T, kept []byte) []byte {
		t.Helper()
		var s State
		if err := json.Unmarshal(kept, &s); err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return again
	})
}
