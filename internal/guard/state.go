package guard

import (
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Reasons of provider.degraded. The list is open.
const (
	ReasonOutage      = "provider_unavailable"
	ReasonConfig      = "provider_config"
	ReasonThrottled   = "provider_throttled"
	ReasonUnknown     = schema.ReasonProviderUnknown
	ReasonMassFailure = schema.ReasonMassFailure
	ReasonPaused      = "paused" // by an operator
)

// Outage says that the provider is left alone.
type Outage struct {
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until"` // then one renewal tries
	Tries  int       `json:"tries,omitempty"`
}

// Doubt says that the provider answers, and that its refusals are not to be believed: it refuses
// most users, or our settings, or everybody in words that nobody knows.
type Doubt struct {
	Reason string    `json:"reason,omitempty"` // ReasonMassFailure, ReasonConfig or ReasonUnknown
	Since  time.Time `json:"since"`
	// Until is set while nobody at all is renewed: no refresh token is presented before, then one
	// is, to see. The tokens of logins after Since need not wait as long: nobody is as likely to be
	// renewed as who has just signed in.
	Until time.Time `json:"until,omitzero"`
	Tries int       `json:"tries,omitempty"`
}

// Pause is an operator's: no call is made at all.
type Pause struct {
	By    string    `json:"by"`
	Note  string    `json:"note,omitempty"`
	Since time.Time `json:"since"`
	Until time.Time `json:"until,omitzero"` // zero: until an operator ends it
}

// Run counts answers in a row.
type Run struct {
	Dead      int `json:"dead,omitempty"`      // users refused for the first time since anybody was renewed
	Unknown   int `json:"unknown,omitempty"`   // users refused in words nobody knows since anybody was answered
	Config    int `json:"config,omitempty"`    // refusals of our settings since anybody was answered
	Throttled int `json:"throttled,omitempty"` // throttling answers since anybody was answered
}

// Notice is an event about the provider that is decided and not published yet.
type Notice struct {
	Type   schema.Type `json:"type"`
	Reason string      `json:"reason"`
	Since  time.Time   `json:"since"` // of the outage; one event of each type comes of it
	At     time.Time   `json:"at"`
	// By, Note and Until are an operator's, of a pause.
	By    string    `json:"by,omitempty"`
	Note  string    `json:"note,omitempty"`
	Until time.Time `json:"until,omitzero"`
}

// State is one provider's record, shared by all workers.
type State struct {
	V int `json:"v,omitempty"` // of the record's form, see Load
	// Settings is a fingerprint of the client id and endpoint that the rest is about; other
	// settings start anew.
	Settings   string    `json:"settings"`
	SettingsAt time.Time `json:"settings_at,omitzero"` // when they came
	ProvenAt   time.Time `json:"proven_at,omitzero"`   // first success under them

	RecentAt time.Time `json:"recent_at,omitzero"`
	Recent   Tally     `json:"recent,omitzero"`
	Run      Run       `json:"run,omitzero"`
	Lately   []Bucket  `json:"lately,omitempty"` // newest last

	Outage *Outage `json:"outage,omitempty"`
	Doubt  *Doubt  `json:"doubt,omitempty"`
	Paused *Pause  `json:"paused,omitempty"`
	// RecoveredAt is when the last outage ended; the limit rises from there. LiftUntil is until
	// when its pause would last if nobody lifted it.
	RecoveredAt time.Time `json:"recovered_at,omitzero"`
	LiftUntil   time.Time `json:"lift_until,omitzero"`
	// WakeAt is set when what failed or waits since before then deserves a try at once, until that
	// is done. WakeUntil is how long no other worker does it.
	// Wakes counts how often it was done, with less than an hour in between.
	WakeAt    time.Time `json:"wake_at,omitzero"`
	WakeUntil time.Time `json:"wake_until,omitzero"`
	Wakes     int       `json:"wakes,omitempty"`
	// Untold are the events to publish, oldest first. Whoever has published one takes it out.
	Untold []Notice `json:"untold,omitempty"`
}

const (
	// throttles in a row make a Retry-After hold for everybody. A user who was throttled waits on
	// their own timer, so that three in a row are three users, with nobody answered in between: it
	// is then about the client, not about a user.
	throttles = 3
	// maxQuiet caps what a provider may ask for: a typo of theirs must not stop renewals for a
	// year.
	maxQuiet = time.Hour
	// nobody times DeadMin users refused in a row, with nobody renewed in between, mean that nobody
	// at all is. Where 60 % of all have left, twenty in a row happen once in 30,000 times, and cost
	// a second.
	nobody = 2
	// few refusals in a row, in words that nobody knows or of our settings, with nobody answered in
	// between, are no longer about a user. A provider may spend a token that it refuses, so that few
	// are shown to it.
	few = 3
	// untoldMost bounds the record while events cannot be published.
	untoldMost = 32
)

// Next is the state after t happened under settings. Events that follow are in Untold. The zero t
// lets time go by, and changed rules take hold.
func (s State) Next(t Tally, settings string, now time.Time, r Rules) State {
	if s.Settings != settings {
		s = s.under(settings, now)
	}
	s = s.upgraded()
	if t != (Tally{}) {
		s = s.counted(t, now, r)
	}
	return s.braked(t, now, r).doubting(t, now, r).expired(now)
}

// upgraded is s, which a version before may have written, in the words of this one.
func (s State) upgraded() State {
	if o := s.Outage; o != nil && (o.Reason == ReasonMassFailure || o.Reason == ReasonConfig || o.Reason == ReasonUnknown) {
		if s.Outage = nil; s.Doubt == nil {
			s.Doubt = &Doubt{Reason: o.Reason, Since: o.Since}
		} else {
			s = s.tell(schema.ProviderRecovered, o.Reason, o.Since, o.Until)
		}
	}
	if d := s.Doubt; d != nil && d.Reason == "" {
		doubt := *d
		doubt.Reason = ReasonMassFailure
		s.Doubt = &doubt
	}
	return s
}

// under is s under new settings: nothing is known about them. They deserve a try at once, since
// they may be the cure, and so does everybody who failed under the old ones.
func (s State) under(settings string, now time.Time) State {
	next := State{
		Settings: settings, SettingsAt: now.UTC(), Paused: s.Paused, RecoveredAt: s.RecoveredAt, LiftUntil: s.LiftUntil,
		WakeUntil: s.WakeUntil, Wakes: s.Wakes, Untold: s.Untold,
	}
	if s.Settings != "" {
		next.WakeAt = now.UTC()
	}
	if o := s.Outage; o != nil {
		next.Outage = &Outage{Reason: o.Reason, Since: o.Since, Until: now}
	}
	if d := s.upgraded().Doubt; d != nil {
		next = next.tell(schema.ProviderRecovered, d.Reason, d.Since, now)
	}
	return next
}

func (s State) counted(t Tally, now time.Time, r Rules) State {
	if now.Sub(s.RecentAt) > r.FailWindow {
		s.RecentAt, s.Recent = now, Tally{}
	}
	s.Recent = s.Recent.add(t)
	s.Lately = lately(s.Lately, t, now)
	if t.OK > 0 && s.ProvenAt.IsZero() {
		s.ProvenAt = now
	}
	s.Run.Dead += t.Dead
	if t.OK > 0 {
		s.Run.Dead = 0
	}
	s.Run.Unknown += t.Unknown
	s.Run.Config += t.Config
	if t.answers() > 0 {
		s.Run.Unknown, s.Run.Config = 0, 0
	}
	switch {
	case t.Throttled > t.answers():
		s.Run.Throttled += t.Throttled
	case t.answers() > 0:
		s.Run.Throttled = 0
	}
	return s
}

// tell adds an event to those that are to be published.
func (s State) tell(typ schema.Type, reason string, since, now time.Time) State {
	from := max(0, len(s.Untold)+1-untoldMost)
	s.Untold = append(append([]Notice(nil), s.Untold[from:]...), Notice{Type: typ, Reason: reason, Since: since.UTC(), At: now.UTC()})
	return s
}

// Told is s after n was published.
func (s State) Told(n Notice) State {
	var rest []Notice
	for _, u := range s.Untold {
		if u.Type != n.Type || u.Reason != n.Reason || !u.Since.Equal(n.Since) {
			rest = append(rest, u)
		}
	}
	s.Untold = rest
	return s
}

// Limit is how many renewals may be in hand over all workers at now, where full is usual: one in an
// outage, doubling each second after it.
func (s State) Limit(now time.Time, full int) int {
	switch since := now.Sub(s.RecoveredAt); {
	case s.Outage != nil:
		return 1
	case s.RecoveredAt.IsZero() || since > 30*time.Second:
		return full
	default:
		return min(full, 1<<max(0, int(since/time.Second)))
	}
}

// PausedUntil is until when the consumer delivers nothing; a time that has passed: a pause is to be
// lifted; zero: nothing is to be done.
func (s State) PausedUntil(now time.Time) time.Time {
	switch {
	case s.Paused != nil:
		return s.Paused.end()
	case s.Outage != nil:
		return s.Outage.Until
	case s.LiftUntil.After(now):
		return s.RecoveredAt
	}
	return time.Time{}
}

// most reports whether most users have been refused since v was first given, or most answers are
// refusals since it was given again: then it is the provider that is out of order, or restored, or
// taken for another, and none of them has left. Over the longer time each user counts once: those
// who are held back ask again and again.
func (s State) most(v grant.Verdict, r Rules) bool {
	refused := func(t Tally) bool {
		return t.denied() >= r.DeadMin && share(t.denied(), t.OK+t.denied()) >= r.DeadShare
	}
	since := s.since(v.At)
	since.Again, since.UnknownAgain = 0, 0
	return refused(since) || refused(s.since(v.Again))
}

// Hold says why v is not to be believed yet; empty: it is.
func (s State) Hold(v grant.Verdict, now time.Time, r Rules) string {
	held, from := now.Sub(v.At), v.At
	if v.Unsure {
		from = v.Again // what was said of others before says nothing about the words in use now
	}
	steady := held >= r.Hold && s.renewed(now.Add(-r.Window)) // refused for so long, while others are renewed: it is true
	switch {
	case s.Doubt != nil && s.Doubt.Reason != ReasonMassFailure:
		return s.Doubt.Reason
	case (s.Doubt != nil || s.most(v, r)) && !steady:
		return ReasonMassFailure
	case s.ProvenAt.IsZero() && held < r.Hold, v.Unsure && !v.Again.After(s.SettingsAt):
		return schema.ReasonUnproven
	case (v.Unsure || held < r.Alone) && !s.renewed(from):
		return schema.ReasonNobodyRenewed
	}
	return ""
}
