package guard_test

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/guard"
)

// throttled is n throttling answers that ask to be left alone until a time.
func throttled(n int, until time.Time) guard.Tally { return guard.Tally{Throttled: n, Quiet: until} }

// A provider that says 503 or 429 to everybody is out, whether it says for how long or not.
func TestThrottlingOpensTheBreaker(t *testing.T) {
	if s, _ := feed(guard.State{}, noon, guard.Tally{Throttled: 10}); said(s) != degraded+guard.ReasonThrottled {
		t.Errorf("ten answers of 503: %s", said(s))
	}
}

// What a provider asks for by Retry-After holds for everybody as soon as nobody else is answered.
func TestRetryAfterHoldsForEverybody(t *testing.T) {
	until := noon.Add(10 * time.Minute)
	s, at := feed(guard.State{}, noon, guard.Tally{OK: 100}, throttled(1, until), throttled(1, until), throttled(1, until))
	if s.Outage == nil || !s.Outage.Until.Equal(until) || said(s) != degraded+guard.ReasonThrottled {
		t.Fatalf("three in a row: %s %+v", said(s), s.Outage)
	}
	// Answers to calls that were under way change nothing, but that the longest wish holds.
	longer := until.Add(time.Minute)
	if s, _ = feed(s, at, guard.Tally{OK: 1}, throttled(5, longer), throttled(5, until)); !s.Outage.Until.Equal(longer) {
		t.Errorf("a longer wish: %v", s.Outage.Until)
	}
	// The try that comes too early for the provider.
	again := longer.Add(20 * time.Minute)
	if s = s.Next(throttled(1, again), "a", longer, rules); s.Outage == nil || !s.Outage.Until.Equal(again) {
		t.Errorf("asked once more: %+v", s.Outage)
	}
	if s = s.Next(guard.Tally{OK: 1}, "a", again, rules); s.Outage != nil || said(s) != recovered+guard.ReasonThrottled {
		t.Errorf("back: %s %+v", said(s), s.Outage)
	}
}

// Where others are answered meanwhile a user's own limit is that user's alone.
func TestAThrottledUserStopsNobodyElse(t *testing.T) {
	s, at := guard.State{}, noon
	for range 60 {
		hour := at.Add(time.Hour)
		s, at = feed(s, at, guard.Tally{OK: 5}, throttled(1, hour), guard.Tally{OK: 3, Throttled: 2, Quiet: hour}, throttled(1, hour))
	}
	if said(s) != "" || s.Outage != nil {
		t.Errorf("%s %+v", said(s), s.Outage)
	}
}
