package guard

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
	if reason == "" {
		return s
	}
	s.Outage = &Outage{Reason: reason, Since: now, Until: later(now.Add(r.OpenMin), s.asked(t))}
	return s.tell(schema.ProviderDegraded, reason, now, now)
}

// failing says why the provider is to be left alone; empty: it is not.
func (s State) failing(t Tally, now time.Time, r Rules) string {
	if s.asked(t).After(now) {
		return ReasonThrottled
	}
	n := s.Recent
	if s.renewed(now.Add(-r.Window)) {
		n.Unknown = 0 // somebody is renewed: the words nobody knows are about a user, not about us
	}
	switch bad := n.bad(); {
	case t == (Tally{}) || bad < r.FailMin || share(bad, bad+n.answers()) < r.FailShare:
		return ""
	case n.Config > n.Failed+n.Throttled+n.Unknown:
		return ReasonConfig
	case n.Throttled > n.Failed+n.Unknown:
		return ReasonThrottled
	case n.Unknown > n.Failed:
		return ReasonUnknown
	}
	return ReasonOutage
}

// asked is until when the provider as a whole asked to be left alone. What it says to one user,
// while others are answered, holds for that user alone.
func (s State) asked(t Tally) time.Time {
	if s.Run.Throttled < throttles {
		return time.Time{}
	}
	return t.Quiet
}

// probed is braked during an outage: answers that were under way when it began change nothing,
// unless they ask for more patience; those after Until decide.
func (s State) probed(t Tally, now time.Time, r Rules) State {
	o := *s.Outage
	longest := r.OpenMax
	if o.Reason == ReasonThrottled {
		longest = maxQuiet
	}
	switch early := now.Before(o.Until); {
	case !early && t.answers() > 0, r.FailShare > 1 && o.Reason != ReasonThrottled:
		return s.recovered(t, now)
	case early || t.bad() == 0:
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

// doubting begins a doubt, keeps it, or ends it. It begins with a refusal only, so that workers
// whose rules differ do not begin and end it in turns.
func (s State) doubting(t Tally, now time.Time, r Rules) State {
	said := s.since(now.Add(-r.Window))
	none := s.Run.Dead >= nobody*r.DeadMin && r.DeadShare <= 1
	switch {
	case s.Doubt == nil:
		users := said.Dead + said.OK // each user who is held back asks again and again, and counts once
		if t.Dead == 0 || !none && (said.Dead < r.DeadMin || share(said.Dead, users) < r.DeadShare) {
			return s
		}
		s.Doubt = &Doubt{Since: now}
		s = s.tell(schema.ProviderDegraded, ReasonMassFailure, now, now)
	case r.DeadShare > 1, !none && said.answers() > 0 && share(said.Dead+said.Again, said.answers()) < r.DeadShare:
		since := s.Doubt.Since
		s.Doubt = nil
		return s.tell(schema.ProviderRecovered, ReasonMassFailure, since, now)
	}
	return s.pausing(t, none, now, r)
}

// pausing lets presentations wait while the provider is in doubt and nobody at all is renewed, from
// one try to the next. As soon as anybody is, everybody goes on: those who are well must not wait
// for those who are refused.
func (s State) pausing(t Tally, none bool, now time.Time, r Rules) State {
	d := *s.Doubt
	switch {
	case !none:
		d.Until, d.Tries = time.Time{}, 0
	case d.Until.IsZero():
		d.Until = now.Add(r.OpenMin)
	case !now.Before(d.Until) && t.Dead+t.Again > 0:
		d.Tries++
		d.Until = now.Add(d.interval(r))
	case d.Until.After(now.Add(r.Release)):
		d.Until = now.Add(r.Release) // the rules have changed
	}
	if d != *s.Doubt {
		s.Doubt = &d
	}
	return s
}

// interval is the time between two tries.
func (d Doubt) interval(r Rules) time.Duration { return min(r.OpenMin<<min(d.Tries, 20), r.Release) }
