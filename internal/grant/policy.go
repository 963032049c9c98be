package grant

import (
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/renewd/renewd/schema"
)

// Policy is how one provider's grants are renewed. The zero value of a field stands for its
// default; WithDefaults fills in the defaults.
type Policy struct {
	// Lifetime of an access token when the provider does not say. Default 30 min.
	Lifetime time.Duration
	// MaxLifetime caps the life of an access token as a provider or a publisher states it: each
	// user is looked at this often at least. Default 24 h.
	MaxLifetime time.Duration
	// Margin is how long before its expiry an access token is renewed, at most MarginShare of its
	// lifetime. Defaults 5 min, 0.2.
	Margin      time.Duration
	MarginShare float64
	// JitterShare of the lifetime spreads renewals further before the margin. Default 0.1.
	JitterShare float64
	// Floor between two attempts on one grant. Default 2 s.
	Floor time.Duration
	// ProfileEvery syncs profiles more often than tokens are renewed. 0: with each renewal only.
	ProfileEvery time.Duration
	// Idle is how long a user is renewed without a login, a command or a token read. Then the grant
	// is Dormant. 0: always.
	Idle time.Duration
	// Keepalive is the longest time between two presentations of a refresh token that is not
	// Dormant, for providers where an unused token dies. 0: as often as access tokens are renewed.
	Keepalive time.Duration
	// SessionMax is how long after its login a session is ended, however much it is used. 0: never.
	SessionMax time.Duration
	// Windows are when grants are renewed without a command. Work due outside the windows waits for
	// the next opening; a command is done at once. Empty: at any time.
	Windows []Window
	// Tries a grant's own failures may take before user.refresh_failed and a wait of RetryLater.
	// Default 5.
	Tries int
	// RetryMin and RetryMax bound the exponential backoff between tries. Defaults 2 s, 5 min.
	RetryMin, RetryMax time.Duration
	// RetryLater is the wait after the tries are used up. Default 1 h.
	RetryLater time.Duration
	// ConfirmMin and ConfirmMax bound the wait before a refused refresh token is presented once
	// more, to be sure. A third of ConfirmMin later it is presented for the last time. Defaults 30
	// s, 60 s.
	ConfirmMin, ConfirmMax time.Duration
	// ConfirmUnknown is the least wait between two refusals of a token in unknown words. Three such
	// refusals end a grant, while other users are renewed. Default 1 h.
	ConfirmUnknown time.Duration
	// Shown is how much of a profile user.synced shows. Default ShowMapped.
	Shown Shown
	// Volatile names members of the raw profile that change by themselves at this provider. A
	// difference in these members is not a change of the user. The claims of a token never are such
	// a change, and need not be named. Default none.
	Volatile []string
}

// WithDefaults returns p with every zero field set to its default.
func (p Policy) WithDefaults() Policy {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&p.Lifetime, 30*time.Minute)
	def(&p.MaxLifetime, 24*time.Hour)
	def(&p.Margin, 5*time.Minute)
	def(&p.Floor, 2*time.Second)
	def(&p.RetryMin, 2*time.Second)
	def(&p.RetryMax, 5*time.Minute)
	def(&p.RetryLater, time.Hour)
	def(&p.ConfirmMin, 30*time.Second)
	def(&p.ConfirmMax, 60*time.Second)
	def(&p.ConfirmUnknown, time.Hour)
	if p.Shown == "" {
		p.Shown = ShowMapped
	}
	if p.MarginShare == 0 {
		p.MarginShare = 0.2
	}
	if p.JitterShare == 0 {
		p.JitterShare = 0.1
	}
	if p.Tries == 0 {
		p.Tries = 5
	}
	return p
}

// Validate names the first field that makes no sense.
func (p Policy) Validate() error {
	switch {
	case p.MarginShare < 0 || p.MarginShare > 0.9:
		return fmt.Errorf("margin_share: %v: want 0 to 0.9", p.MarginShare)
	case p.JitterShare < 0 || p.JitterShare > 0.5:
		return fmt.Errorf("jitter_share: %v: want 0 to 0.5", p.JitterShare)
	case p.MarginShare+p.JitterShare > 0.95:
		return fmt.Errorf("jitter_share: " +
			"with margin_share it must leave at least 0.05 of the lifetime")
	case p.Tries < 0 || p.Tries > 100:
		return fmt.Errorf("tries: %d: want 1 to 100", p.Tries)
	case p.RetryMin > p.RetryMax:
		return fmt.Errorf("retry_max: %v is less than retry_min %v", p.RetryMax, p.RetryMin)
	case !slices.Contains([]Shown{"", ShowNone, ShowMapped, ShowRaw}, p.Shown):
		return fmt.Errorf("show_profile: %q: want %s, %s or %s",
			p.Shown, ShowNone, ShowMapped, ShowRaw)
	case p.ConfirmMin > p.ConfirmMax:
		return fmt.Errorf("confirm_max: %v is less than confirm_min %v", p.ConfirmMax, p.ConfirmMin)
	}
	for name, d := range map[string]time.Duration{
		"lifetime":        p.Lifetime,
		"max_lifetime":    p.MaxLifetime,
		"margin":          p.Margin,
		"floor":           p.Floor,
		"profile_every":   p.ProfileEvery,
		"retry_min":       p.RetryMin,
		"retry_later":     p.RetryLater,
		"confirm_min":     p.ConfirmMin,
		"confirm_unknown": p.ConfirmUnknown,
		"idle":            p.Idle,
		"keepalive":       p.Keepalive,
		"session_max":     p.SessionMax,
	} {
		if d < 0 {
			return fmt.Errorf("%s: %v: must not be negative", name, d)
		}
	}
	return nil
}

// margin before expiry for a token of this lifetime.
func (p *Policy) margin(lifetime time.Duration) time.Duration {
	return min(p.Margin, time.Duration(float64(lifetime)*p.MarginShare))
}

// largestJitter for a token of this lifetime.
func (p *Policy) largestJitter(lifetime time.Duration) time.Duration {
	return time.Duration(float64(lifetime) * p.JitterShare)
}

// Due is when pair is to be renewed: expiry − margin − jitter, but never before now plus the
// floor. draw is in [0,1). A pair without a refresh token is due when its access token ends: the
// user keeps the rest of its life. If the end is not known, the provider is asked every Lifetime.
func (p *Policy) Due(pair Pair, now time.Time, draw float64) time.Time {
	due := p.renewal(pair, draw)
	switch {
	case pair.Refresh.IsZero() && pair.ExpiresAt.IsZero():
		due = now.Add(p.Lifetime)
	case pair.Refresh.IsZero():
		due = earlier(pair.ExpiresAt, now.Add(p.MaxLifetime))
	}
	return later(due, now.Add(p.Floor))
}

// renewal is when a pair with a refresh token wants renewing.
func (p *Policy) renewal(pair Pair, draw float64) time.Time {
	jitter := time.Duration(draw * float64(p.largestJitter(pair.Lifetime)))
	return pair.ExpiresAt.Add(-p.margin(pair.Lifetime) - jitter)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Retry is the wait before try number n (1 is the first retry): exponential with full jitter
// between RetryMin and RetryMax.
func (p *Policy) Retry(n int, draw float64) time.Duration {
	b := backoff.ExponentialBackOff{
		InitialInterval: p.RetryMin,
		MaxInterval:     p.RetryMax,
		Multiplier:      2,
		Stop:            backoff.Stop,
		Clock:           backoff.SystemClock,
	}
	b.Reset()
	wait := p.RetryMin
	for range min(n, 40) {
		wait = b.NextBackOff()
	}
	return wait/2 + time.Duration(draw*float64(wait/2))
}

// Confirm is the wait before a refused token is presented once more.
func (p *Policy) Confirm(draw float64) time.Duration {
	return p.ConfirmMin + time.Duration(draw*float64(p.ConfirmMax-p.ConfirmMin))
}

// Work is one renewal to do: its cause, and the tokens or profile wanted.
type Work struct {
	Cause    schema.Cause
	Want     string        // schema.WantProfile (the default) or schema.WantTokens
	MinValid time.Duration // rotate if less validity than this is left
	// Mark is the latest known of the grant's record when the work was made. Zero: made without
	// looking at a record.
	Mark Mark
	// Refused is the fingerprint of an access token that the provider refused in the course of this
	// work.
	Refused string
	// Deferrals counts how often the work was put off for a reason particular to the work.
	Deferrals int
	// Again: an earlier delivery of this cause was put off, and may have published its outcome
	// before.
	Again bool
}
