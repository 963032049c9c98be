package health

import (
	"fmt"
	"time"
)

// Rules say when a provider is not to be believed, and when to leave it alone. Zero fields take
// their defaults. The rules apply to the record as it is: a changed rule holds at once, also for a
// doubt or a pause in force.
type Rules struct {
	// Window in which refusals are weighed against successes. Default 10 min, at most an hour.
	Window time.Duration
	// DeadMin refused users or more, and at least DeadShare of all answers, put the provider in
	// doubt. The same share of the answers between a user's first refusal and its confirmation
	// holds the verdict on this user back. Defaults 10, 0.5. A DeadShare above 1 switches both off.
	DeadMin   int
	DeadShare float64
	// Release bounds how long presentations wait for the next try while the provider is in doubt
	// and no user is renewed. The wait grows from OpenMin. Default 1 min.
	Release time.Duration
	// Hold is how long a refusal is held back at most, in two cases: no refresh has ever succeeded
	// under the present settings, or most users are refused but others are renewed. Most users can
	// really have left. So a user refused for so long, while others are renewed, must be told.
	// Default 24 h.
	Hold time.Duration
	// Alone is how long a refusal is held back while no user was renewed since the refusal was
	// first given. Without a renewed user, a user who left cannot be told from a provider in a bad
	// moment. Default 2 min.
	Alone time.Duration
	// FailMin failures within FailWindow, and at least FailShare of all calls in it, open the
	// breaker. Defaults 10, 15 s, 0.8. A FailShare above 1 switches the breaker off; a Retry-After
	// of the provider is still kept.
	FailMin    int
	FailWindow time.Duration
	FailShare  float64
	// OpenMin and OpenMax bound how long the breaker stays open before each try, doubling. Defaults
	// 1 s, 4 s: a try is one call over all workers, so that asking often costs the provider
	// nothing, and its return is noticed at once.
	OpenMin, OpenMax time.Duration
}

// WithDefaults returns r with every zero field set to its default.
func (r Rules) WithDefaults() Rules {
	for d, v := range map[*time.Duration]time.Duration{
		&r.Window:     10 * time.Minute,
		&r.Release:    time.Minute,
		&r.Hold:       24 * time.Hour,
		&r.Alone:      2 * time.Minute,
		&r.FailWindow: 15 * time.Second,
		&r.OpenMin:    time.Second,
		&r.OpenMax:    4 * time.Second,
	} {
		if *d == 0 {
			*d = v
		}
	}
	for n, v := range map[*int]int{&r.DeadMin: 10, &r.FailMin: 10} {
		if *n == 0 {
			*n = v
		}
	}
	for f, v := range map[*float64]float64{&r.DeadShare: 0.5, &r.FailShare: 0.8} {
		if *f == 0 {
			*f = v
		}
	}
	return r
}

// Validate names the first field that makes no sense.
func (r Rules) Validate() error {
	switch {
	case r.DeadMin < 1:
		return fmt.Errorf("dead_min: %d: want 1 or more", r.DeadMin)
	case r.FailMin < 1:
		return fmt.Errorf("fail_min: %d: want 1 or more", r.FailMin)
	case r.DeadShare <= 0:
		return fmt.Errorf("dead_share: %v: want more than 0; above 1 switches the guard off",
			r.DeadShare)
	case r.FailShare <= 0:
		return fmt.Errorf("fail_share: %v: want more than 0; above 1 switches the breaker off",
			r.FailShare)
	case r.OpenMin <= 0 || r.OpenMax < r.OpenMin:
		return fmt.Errorf("open_max: %v is less than open_min %v", r.OpenMax, r.OpenMin)
	case min(r.Window, r.Release, r.Hold, r.Alone, r.FailWindow) <= 0:
		return fmt.Errorf("window, release, hold, alone, fail_window: want more than 0")
	case r.Window > coarseFor:
		return fmt.Errorf("window: %v: want %v at most, which is how far back answers are "+
			"remembered", r.Window, coarseFor)
	}
	return nil
}
