// Package guard keeps what all workers together know about the health of a provider, in one compare-and-swap record: is
// its refusal of a user to be believed, and is it to be left alone for a while.
//
// It answers two questions. May a confirmed refusal sign a user out? Only if the settings it was judged under have worked
// at least once, and only while not most of the provider's users are refused at a time (that is a wrong client id or a
// restored database, not users who left), and somebody was renewed meanwhile. And may the provider be called? Not while a
// circuit breaker is open: then its consumer is paused for every worker, one renewal at a time tries whether it is back, and
// provider.degraded and provider.recovered tell the world.
//
// The package never sees a token or a user, and never decides about one. The rules (State.Next) are pure; a Guard is safe
// for concurrent use, and any number of workers share one record, also over restarts.
package guard

import (
	"fmt"
	"slices"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Rules say when a provider is not to be believed, and when it is to be left alone. Zero fields take their defaults.
type Rules struct {
	// Window in which refusals are weighed against successes. Default 10 min.
	Window time.Duration
	// DeadMin refused users or more, and at least DeadShare of all answers, trip the mass-failure guard. The same share of
	// those between a user's first refusal and its confirmation holds the verdict on this user back. Defaults 10, 0.5. A
	// DeadShare above 1 switches both off.
	DeadMin   int
	DeadShare float64
	// Release is how long the provider is paused when the guard tripped, before one renewal tries again. Default 10 min.
	Release time.Duration
	// Hold is how long a refusal is held back while no refresh has ever succeeded under the present settings. Default 24 h.
	Hold time.Duration
	// Alone is how long a refusal is held back while nobody at all was renewed since it was first given: then there are
	// none who could tell a user who left from a provider in a bad moment. Default 2 min.
	Alone time.Duration
	// FailMin failures within FailWindow, and at least FailShare of all calls in it, open the breaker. Defaults 10, 15 s, 0.8.
	FailMin    int
	FailWindow time.Duration
	FailShare  float64
	// OpenMin and OpenMax bound how long the breaker stays open before each try, doubling. Defaults 1 s, 4 s: a try is one
	// call over all workers, so that asking often costs the provider nothing, and its return is noticed at once.
	OpenMin, OpenMax time.Duration
}

// WithDefaults returns r with every zero field set to its default.
func (r Rules) WithDefaults() Rules {
	for d, v := range map[*time.Duration]time.Duration{
		&r.Window: 10 * time.Minute, &r.Release: 10 * time.Minute, &r.Hold: 24 * time.Hour, &r.Alone: 2 * time.Minute,
		&r.FailWindow: 15 * time.Second, &r.OpenMin: time.Second, &r.OpenMax: 4 * time.Second,
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
		return fmt.Errorf("dead_share: %v: want more than 0; above 1 switches the guard off", r.DeadShare)
	case r.FailShare <= 0:
		return fmt.Errorf("fail_share: %v: want more than 0; above 1 switches the breaker off", r.FailShare)
	case r.OpenMin <= 0 || r.OpenMax < r.OpenMin:
		return fmt.Errorf("open_max: %v is less than open_min %v", r.OpenMax, r.OpenMin)
	case min(r.Window, r.Release, r.Hold, r.Alone, r.FailWindow) <= 0:
		return fmt.Errorf("window, release, hold, alone, fail_window: want more than 0")
	}
	return nil
}

// Tally counts how calls ended.
type Tally struct {
	OK     int `json:"ok,omitempty"`
	Dead   int `json:"dead,omitempty"`   // users refused for the first time
	Again  int `json:"again,omitempty"`  // users refused once more
	Failed int `json:"failed,omitempty"` // outages: unsent, ambiguous
	Config int `json:"config,omitempty"` // our settings refused
}

func (t Tally) add(u Tally) Tally {
	return Tally{t.OK + u.OK, t.Dead + u.Dead, t.Again + u.Again, t.Failed + u.Failed, t.Config + u.Config}
}

// bucketWidth and bucketCount say how finely the last minutes are remembered, so that a verdict can be weighed against what
// the provider said to everybody since it was first given.
const (
	bucketWidth = 2 * time.Second
	bucketCount = 60
)

// Bucket is what happened in one piece of time.
type Bucket struct {
	From time.Time `json:"from"`
	OK   int       `json:"ok,omitempty"`
	Dead int       `json:"dead,omitempty"`
	// Again are those refused once more.
	Again int `json:"again,omitempty"`
}

// Reasons of provider.degraded. The list is open.
const (
	ReasonOutage      = "provider_unavailable"
	ReasonConfig      = "provider_config"
	ReasonMassFailure = schema.ReasonMassFailure
)

// Outage says that the provider is left alone.
type Outage struct {
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until"` // then one renewal tries
	Tries  int       `json:"tries,omitempty"`
}

// State is one provider's record, shared by all workers.
type State struct {
	// Settings is a fingerprint of the client id and endpoint that the rest is about; other settings start anew.
	Settings string    `json:"settings"`
	ProvenAt time.Time `json:"proven_at,omitzero"` // first success under them

	WindowAt time.Time `json:"window_at,omitzero"`
	Window   Tally     `json:"window,omitzero"`
	RecentAt time.Time `json:"recent_at,omitzero"`
	Recent   Tally     `json:"recent,omitzero"`

	Lately []Bucket `json:"lately,omitempty"` // newest last

	Outage *Outage `json:"outage,omitempty"`
}

// Change is what a step of the state means to the world.
type Change string

// The changes. Extended: still out after a try.
const (
	Degraded  Change = "degraded"
	Extended  Change = "extended"
	Recovered Change = "recovered"
)

// Next is the state after t happened under settings; the change is empty if there is nothing to tell.
func (s State) Next(t Tally, settings string, now time.Time, r Rules) (State, Change) {
	if s.Settings != settings {
		recovered := s.Outage
		s = State{Settings: settings}
		if recovered != nil {
			// New settings deserve a try at once: they may be the cure.
			s.Outage = &Outage{Reason: recovered.Reason, Since: recovered.Since, Until: now}
		}
	}
	if now.Sub(s.WindowAt) > r.Window {
		s.WindowAt, s.Window = now, Tally{}
	}
	if now.Sub(s.RecentAt) > r.FailWindow {
		s.RecentAt, s.Recent = now, Tally{}
	}
	s.Window, s.Recent = s.Window.add(t), s.Recent.add(t)
	s.Lately = lately(s.Lately, t, now)
	if t.OK > 0 && s.ProvenAt.IsZero() {
		s.ProvenAt = now
	}
	if s.Outage != nil {
		return s.probe(t, now, r)
	}
	reason, pause := "", r.OpenMin
	bad := s.Recent.Failed + s.Recent.Config
	switch {
	case s.Window.Dead >= r.DeadMin && share(s.Window.Dead, s.Window.Dead+s.Window.OK) >= r.DeadShare:
		reason, pause = ReasonMassFailure, r.Release
	case bad < r.FailMin || share(bad, bad+s.Recent.answers()) < r.FailShare:
		return s, ""
	case s.Recent.Config > s.Recent.Failed:
		reason = ReasonConfig
	default:
		reason = ReasonOutage
	}
	s.Outage = &Outage{Reason: reason, Since: now, Until: now.Add(pause)}
	return s, Degraded
}

// probe is Next during an outage: answers that were under way when it began change nothing, those after Until decide.
func (s State) probe(t Tally, now time.Time, r Rules) (State, Change) {
	o := *s.Outage
	switch {
	case now.Before(o.Until) || t == (Tally{}):
		return s, ""
	case o.Reason == ReasonMassFailure && t.OK > 0 && t.OK >= t.Dead+t.Again, o.Reason != ReasonMassFailure && t.answers() > 0:
		s.Outage = nil
		s.WindowAt, s.RecentAt, s.Window, s.Recent = now, now, t, Tally{}
		return s, Recovered
	}
	o.Tries++
	wait := r.OpenMin << min(o.Tries, 10)
	if wait = min(wait, r.OpenMax); o.Reason == ReasonMassFailure {
		wait = r.Release
	}
	o.Until = now.Add(wait)
	s.Outage = &o
	return s, Extended
}

// answers are those that say something about a user.
func (t Tally) answers() int { return t.OK + t.Dead + t.Again }

// lately is list with t at its end. The list that is shared is left as it is.
func lately(list []Bucket, t Tally, now time.Time) []Bucket {
	if t.answers() == 0 {
		return list
	}
	list = slices.Clone(list)
	if n := len(list); n == 0 || now.Sub(list[n-1].From) >= bucketWidth {
		list = append(list, Bucket{From: now})
	}
	last := &list[len(list)-1]
	last.OK, last.Dead, last.Again = last.OK+t.OK, last.Dead+t.Dead, last.Again+t.Again
	return list[max(0, len(list)-bucketCount):]
}

// most reports whether most users have been refused since v was first given, or most answers are refusals since it was
// given again: then it is the provider that is out of order, or restored, or taken for another, and none of them has left.
// Over the longer time each user counts once: those who are held back ask again and again.
func (s State) most(v grant.Verdict, r Rules) bool {
	var since, again Tally
	for _, b := range s.Lately {
		end := b.From.Add(bucketWidth)
		if t := (Tally{OK: b.OK, Dead: b.Dead, Again: b.Again}); end.After(v.Again) {
			again = again.add(t)
		}
		if end.After(v.At) {
			since = since.add(Tally{OK: b.OK, Dead: b.Dead})
		}
	}
	refused := func(t Tally) bool {
		return t.Dead+t.Again >= r.DeadMin && share(t.Dead+t.Again, t.answers()) >= r.DeadShare
	}
	return refused(since) || refused(again)
}

// renewed reports whether anybody was renewed since.
func (s State) renewed(since time.Time) bool {
	return slices.ContainsFunc(s.Lately, func(b Bucket) bool { return b.OK > 0 && !b.From.Before(since) })
}

func share(part, whole int) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

// Hold says why v is not to be believed yet; empty: it is.
func (s State) Hold(v grant.Verdict, now time.Time, r Rules) string {
	switch {
	case s.Outage != nil && s.Outage.Reason == ReasonMassFailure, s.most(v, r):
		return ReasonMassFailure
	case s.ProvenAt.IsZero() && now.Sub(v.At) < r.Hold:
		return schema.ReasonUnproven
	case now.Sub(v.At) < r.Alone && !s.renewed(v.At):
		return schema.ReasonNobodyRenewed
	}
	return ""
}
