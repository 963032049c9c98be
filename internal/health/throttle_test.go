package health_test

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/health"
)

// throttled is n throttling answers that ask to be left alone until a time.
func throttled(n int, until time.Time) health.Tally {
	return health.Tally{Throttled: n, Quiet: until}
}

// A provider that says 503 or 429 to everybody is out, whether it says for how long or not.
func TestThrottlingOpensTheBreaker(t *testing.T) {
	if s, _ := feed(health.State{}, noon, health.Tally{
		Throttled: 10,
	}); said(s) != degraded+health.ReasonThrottled {
		t.Errorf("ten answers of 503: %s", said(s))
	}
}

// What a provider asks for by Retry-After holds for everybody as soon as no other user is answered.
func TestRetryAfterHoldsForEverybody(t *testing.T) {
	until := noon.Add(10 * time.Minute)
	s, at := feed(health.State{}, noon, health.Tally{OK: 100}, throttled(1, until),
		throttled(1, until), throttled(1, until))
	if s.Outage == nil || !s.Outage.Until.Equal(until) ||
		said(s) != degraded+health.ReasonThrottled {
		t.Fatalf("three in a row: %s %+v", said(s), s.Outage)
	}
	// Answers to calls that were under way change nothing, but that the longest wish holds.
	longer := until.Add(time.Minute)
	if s, _ = feed(
		s, at, health.Tally{OK: 1}, throttled(5, longer), throttled(5, until),
	); !s.Outage.Until.Equal(longer) {
		t.Errorf("a longer wish: %v", s.Outage.Until)
	}
	// The try that comes too early for the provider.
	again := longer.Add(20 * time.Minute)
	if s = s.Next(throttled(1, again), "a", longer, rules); s.Outage == nil ||
		!s.Outage.Until.Equal(again) {
		t.Errorf("asked once more: %+v", s.Outage)
	}
	if s = s.Next(health.Tally{OK: 1}, "a", again, rules); s.Outage != nil ||
		said(s) != recovered+health.ReasonThrottled {
		t.Errorf("back: %s %+v", said(s), s.Outage)
	}
}

// Where others are answered meanwhile a user's own limit is that user's alone.
func TestAThrottledUserStopsNobodyElse(t *testing.T) {
	s, at := health.State{}, noon
	for range 60 {
		hour := at.Add(time.Hour)
		s, at = feed(s, at, health.Tally{OK: 5}, throttled(1, hour),
			health.Tally{OK: 3, Throttled: 2, Quiet: hour}, throttled(1, hour))
	}
	if said(s) != "" || s.Outage != nil {
		t.Errorf("%s %+v", said(s), s.Outage)
	}
}
