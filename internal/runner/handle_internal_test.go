package runner

import (
	"testing"
	"time"
)

// An outage is logged once a minute, with how many messages it kept waiting.
func TestLinesThatRepeatAreLeftOut(t *testing.T) {
	var r repeats
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	if ok, left := r.say(now); !ok || left != 0 {
		t.Errorf("the first line: %v, after %d", ok, left)
	}
	for range 500 {
		now = now.Add(100 * time.Millisecond)
		if ok, _ := r.say(now); ok {
			t.Fatal("the same again, within the minute")
		}
	}
	if ok, left := r.say(now.Add(time.Minute)); !ok || left != 500 {
		t.Errorf("after a minute: %v, after %d", ok, left)
	}
}
