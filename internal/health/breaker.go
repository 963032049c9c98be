package health

import (
	"time"

	"github.com/renewd/renewd/schema"
)

// braked opens the circuit breaker, keeps it open, or closes it.
func (s State) braked(t Tally, now time.Time, r Rules) State {
	if s.Outage != nil {
		return s.probed(t, now, r)
	}
	reason := s.failing(t, now, r)
	if reason == "" || reason == ReasonConfig { // the provider answers: see doubting
		return s
	}
	s.Outage = &Outage{Reason: reason, Since: now, Until: later(now.Add(r.OpenMin), s.asked(t))}
	return s.tell(schema.ProviderDegraded, reason, now, now)
}

// failing says why next to no call succeeds; empty: enough calls succeed.
func (s State) failing(t Tally, now time.Time, r Rules) string {
	if s.asked(t).After(now) {
		return ReasonThrottled
	}
	n := s.Recent
	switch bad := n.bad(); {
	case t == (Tally{}) || bad < r.FailMin || share(bad, bad+n.answers()) < r.FailShare:
		return ""
	case n.Config > n.Failed+n.Throttled:
		return ReasonConfig
	case n.Throttled > n.Failed:
		return ReasonThrottled
	}
	return ReasonOutage
}

// asked is until when the provider asked all users to wait. A wait asked of one user, while other
// users are answered, holds for this user alone.
func (s State) asked(t Tally) time.Time {
	if s.Run.Throttled < throttles {
		return time.Time{}
	}
	return t.Quiet
}

// probed is braked during an outage. Answers before Until are of calls under way when the outage
// began: they change nothing, unless they ask for more patience. Answers after Until decide.
func (s State) probed(t Tally, now time.Time, r Rules) State {
	o := *s.Outage
	longest := r.OpenMax
	if o.Reason == ReasonThrottled {
		longest = maxQuiet
	}
	switch early := now.Before(o.Until); {
	case !early && t.answers() > 0, r.FailShare > 1 && o.Reason != ReasonThrottled:
		return s.recovered(t, now)
	case early || t.bad()+t.Unknown+t.UnknownAgain == 0:
		if most := now.Add(longest); o.Until.After(most) {
			o.Until = most // the rules have changed
		}
	default:
		o.Tries++
		o.Until = now.Add(min(r.OpenMin<<min(o.Tries, 10), r.OpenMax))
	}
	if asked := s.asked(t); asked.After(o.Until) {
		o.Until = asked
	}
	if o != *s.Outage {
		s.Outage = &o
	}
	return s
}

func (s State) recovered(t Tally, now time.Time) State {
	o := s.Outage
	s.Outage, s.RecoveredAt, s.LiftUntil = nil, now.UTC(), o.Until.UTC()
	s.RecentAt, s.Recent, s.Run.Throttled = now, t, 0
	return s.tell(schema.ProviderRecovered, o.Reason, o.Since, now)
}

// doubting begins a doubt, keeps or ends it.
func (s State) doubting(t Tally, now time.Time, r Rules) State {
	reason := s.doubtful(t, now, r)
	switch d := s.Doubt; {
	case d != nil && s.cleared(t, now, r):
		return s.believed(t, now)
	case reason == "" && d == nil:
		return s
	case reason != "" && (d == nil || d.Reason == ReasonMassFailure && reason != d.Reason):
		if d != nil {
			s = s.believed(t, now) // nothing is known any more about how many are refused
		}
		s.Doubt = &Doubt{Reason: reason, Since: now}
		s = s.tell(schema.ProviderDegraded, reason, now, now)
	}
	return s.pausing(t, now, r)
}

// doubtful says why the provider's refusals are not to be believed; empty: they are. A mass failure
// begins with a refusal only, so that workers whose rules differ do not begin and end the doubt in
// turns.
func (s State) doubtful(t Tally, now time.Time, r Rules) string {
	said := s.since(now.Add(-r.Window))
	// each user who is held back asks again and again, and counts once
	gone := said.Dead + said.Unknown
	switch {
	case s.Outage == nil && s.failing(t, now, r) == ReasonConfig:
		return ReasonConfig
	case t.Config > 0 && s.Run.Config >= s.inARow(now, r) && r.FailShare <= 1:
		return ReasonConfig
	case t.Unknown > 0 && s.Run.Unknown >= s.inARow(now, r) && r.FailShare <= 1:
		return ReasonUnknown
	case t.Dead+t.Unknown > 0 &&
		(s.nobody(r) || gone >= r.DeadMin && share(gone, gone+said.OK) >= r.DeadShare):
		return ReasonMassFailure
	}
	return ""
}

// inARow is how many refusals in a row concern all users: refusals of our settings or in unknown
// words. The number is higher if users were renewed lately, since many users can have left at once.
func (s State) inARow(now time.Time, r Rules) int {
	if s.renewed(now.Add(-r.Window)) {
		return nobody * r.DeadMin
	}
	return few
}

// nobody reports whether no user is renewed any more.
func (s State) nobody(r Rules) bool { return s.Run.Dead >= nobody*r.DeadMin && r.DeadShare <= 1 }

// cleared reports whether the doubt is over. A mass failure is over when fewer than most users are
// refused, any other doubt with the first answer about a user. Changed rules can end both.
func (s State) cleared(t Tally, now time.Time, r Rules) bool {
	if s.Doubt.Reason != ReasonMassFailure {
		return t.answers() > 0 || r.FailShare > 1
	}
	said := s.since(now.Add(-r.Window))
	return r.DeadShare > 1 ||
		!s.nobody(r) && said.answers() > 0 &&
			share(said.denied(), said.OK+said.denied()) < r.DeadShare
}

// believed ends the doubt. Renewals that waited for its end are woken.
func (s State) believed(t Tally, now time.Time) State {
	d := s.Doubt
	s.Doubt = nil
	if d.Reason != ReasonMassFailure {
		s.RecentAt, s.Recent = now, t
	}
	if !d.Until.IsZero() {
		s.WakeAt = now.UTC()
	}
	return s.tell(schema.ProviderRecovered, d.Reason, d.Since, now)
}

// pausing lets presentations wait while the provider is in doubt and no user is renewed, from one
// try to the next. As soon as one user is renewed, all presentations go on: users who are well must
// not wait for users who are refused.
func (s State) pausing(t Tally, now time.Time, r Rules) State {
	d := *s.Doubt
	switch longest := d.longest(r); {
	case d.Reason == ReasonMassFailure && !s.nobody(r):
		if !d.Until.IsZero() {
			s.WakeAt = now.UTC()
		}
		d.Until, d.Tries = time.Time{}, 0
	case d.Until.IsZero():
		d.Until = now.Add(r.OpenMin)
	case !now.Before(d.Until) && t.refused()+t.bad() > 0:
		d.Tries++
		d.Until = now.Add(d.interval(r))
	case d.Until.After(now.Add(longest)):
		d.Until = now.Add(longest) // the rules have changed
	}
	if d != *s.Doubt {
		s.Doubt = &d
	}
	return s
}

// longest is the longest time between two tries. A provider that does not know our settings is
// asked as often as a provider that is down. A provider that refuses in unknown words may spend the
// tokens shown to it.
func (d Doubt) longest(r Rules) time.Duration {
	switch d.Reason {
	case ReasonConfig:
		return r.OpenMax
	case ReasonUnknown:
		return maxQuiet
	}
	return r.Release
}

// interval is the time between two tries.
func (d Doubt) interval(r Rules) time.Duration {
	return min(r.OpenMin<<min(d.Tries, 20), d.longest(r))
}
