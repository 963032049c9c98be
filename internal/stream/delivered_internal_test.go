package stream

import (
	"testing"
	"time"
)

// A leader that was just elected does not know what the leader before delivered.
func TestAConsumersNewLeaderIsNotBelieved(t *testing.T) {
	led := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for what, c := range map[string]struct {
		sequence uint64
		stored   time.Time
		since    time.Time
		want     bool
	}{
		"delivered":               {5, led.Add(time.Hour), led, true},
		"stored under the leader": {6, led.Add(time.Minute), led, false},
		"stored just then":        {6, led.Add(time.Second), led, true},
		"stored under another":    {6, led.Add(-time.Minute), led, true},
		"there is one server":     {6, led.Add(-time.Minute), time.Time{}, false},
	} {
		var d delivered
		d.Delivered.Stream, d.Cluster.LeaderSince = 5, c.since
		if got := d.mayHave(c.sequence, c.stored); got != c.want {
			t.Errorf("%s: %t", what, got)
		}
	}
}
