package health

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

// Doubt says that the provider answers, and that its refusals are not to be believed. The provider
// refuses most users, or our settings, or all users in unknown words.
type Doubt struct {
	Reason string    `json:"reason,omitempty"` // ReasonMassFailure, ReasonConfig or ReasonUnknown
	Since  time.Time `json:"since"`
	// Until is set while no user is renewed. No refresh token is presented before Until, then one
	// token is presented as a test. The tokens of logins after Since need not wait as long: a user
	// who has just signed in is the most likely to be renewed.
	Until time.Time `json:"until,omitzero"`
	Tries int       `json:"tries,omitempty"`
}

// Pause is an operator's: no call is made at all.
type Pause struct {
	By    string    `json:"by"`
	Note  string    `json:"note,omitempty"`
	Since time.Time `json:"since"`
	Until time.Time `json:"until,omitzero"` // zero: until an operator resumes
}

// Run counts answers in a row.
type Run struct {
	// users refused for the first time since a user was renewed
	Dead int `json:"dead,omitempty"`
	// users refused in unknown words since a user was answered
	Unknown int `json:"unknown,omitempty"`
	// refusals of our settings since a user was answered
	Config    int `json:"config,omitempty"`
	Throttled int `json:"throttled,omitempty"` // throttling answers since a user was answered
}

// Notice is an event about the provider, decided and not published yet.
type Notice struct {
	Type   schema.Type `json:"type"`
	Reason string      `json:"reason"`
	Since  time.Time   `json:"since"` // of the outage, which has one event of each type
	At     time.Time   `json:"at"`
	// By, Note and Until are an operator's, of a pause.
	By    string    `json:"by,omitempty"`
	Note  string    `json:"note,omitempty"`
	Until time.Time `json:"until,omitzero"`
}

// State is one provider's record, shared by all workers.
type State struct {
	V int `json:"v,omitempty"` // of the record's form, see Load
	// Settings is a fingerprint of the client id and endpoint of this state. Other settings start
	// from scratch.
	Settings   string    `json:"settings"`
	SettingsAt time.Time `json:"settings_at,omitzero"` // when these settings came
	ProvenAt   time.Time `json:"proven_at,omitzero"`   // first success under these settings

	RecentAt time.Time `json:"recent_at,omitzero"`
	Recent   Tally     `json:"recent,omitzero"`
	Run      Run       `json:"run,omitzero"`
	Lately   []Bucket  `json:"lately,omitempty"` // newest last

	Outage *Outage `json:"outage,omitempty"`
	Doubt  *Doubt  `json:"doubt,omitempty"`
	Paused *Pause  `json:"paused,omitempty"`
	// RecoveredAt is when the last outage ended; the limit rises from there. LiftUntil is until
	// when the outage's pause would last if not lifted.
	RecoveredAt time.Time `json:"recovered_at,omitzero"`
	LiftUntil   time.Time `json:"lift_until,omitzero"`
	// WakeAt is set while the grants that failed or wait since before WakeAt deserve a try at once.
	// WakeUntil is how long no other worker wakes them. Wakes counts the wakings with less than an
	// hour in between.
	WakeAt    time.Time `json:"wake_at,omitzero"`
	WakeUntil time.Time `json:"wake_until,omitzero"`
	Wakes     int       `json:"wakes,omitempty"`
	// Untold are the events to publish, oldest first. The worker that has published an event
	// removes the event.
	Untold []Notice `json:"untold,omitempty"`
}

const (
	// throttles in a row make a Retry-After hold for all users. A throttled user waits on their own
	// timer, so three in a row are three users, with no user answered in between. The throttling is
	// then about the client, not about a user.
	throttles = 3
	// maxQuiet caps the wait that a provider may ask for: a typo of the provider's must not stop
	// renewals for a year.
	maxQuiet = time.Hour
	// nobody times DeadMin users refused in a row, with no user renewed in between, mean that no
	// user is renewed at all. Where 60 % of all users have left, twenty in a row happen once in
	// 30,000 times, and cost a second.
	nobody = 2
	// few refusals in a row, in unknown words or of our settings, with no user answered in between,
	// are no longer about a user. A provider may spend a refused token, so few tokens are shown.
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

// upgraded is s, perhaps written by a version before, in the words of this version.
func (s State) upgraded() State {
	if o := s.Outage; o != nil &&
		(o.Reason == ReasonMassFailure || o.Reason == ReasonConfig || o.Reason == ReasonUnknown) {
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

// under is s under new settings: nothing is known about them. The new settings deserve a try at
// once, since they may be the cure, and so does every user who failed under the old settings.
func (s State) under(settings string, now time.Time) State {
	next := State{
		Settings:    settings,
		SettingsAt:  now.UTC(),
		Paused:      s.Paused,
		RecoveredAt: s.RecoveredAt,
		LiftUntil:   s.LiftUntil,
		WakeUntil:   s.WakeUntil,
		Wakes:       s.Wakes,
		Untold:      s.Untold,
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

// tell adds an event to the events to publish.
func (s State) tell(typ schema.Type, reason string, since, now time.Time) State {
	from := max(0, len(s.Untold)+1-untoldMost)
	s.Untold = append(append([]Notice(nil), s.Untold[from:]...), Notice{
		Type:   typ,
		Reason: reason,
		Since:  since.UTC(),
		At:     now.UTC(),
	})
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

// Limit is how many renewals may be under way over all workers at now, where full is usual: one in
// an outage, doubling each second after the outage.
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

// PausedUntil is until when the consumer delivers nothing. A past time means that a pause is to be
// lifted, and zero that nothing is to be done.
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

// most reports whether most users have been refused since v was first given, or since v was given
// again. Then the provider is out of order, or restored, or taken for another provider, and no user
// has left. Each user counts once. Users who are held back ask again and again, more often than
// other users are renewed, so their refusals count only while no user is renewed.
func (s State) most(v grant.Verdict, r Rules) bool {
	refused := func(since time.Time) bool {
		t := s.since(since)
		gone := t.Dead + t.Unknown
		return gone >= r.DeadMin && share(gone, t.OK+gone) >= r.DeadShare
	}
	all := s.since(v.Again).denied() >= r.DeadMin && !s.renewed(v.Again) && r.DeadShare <= 1
	return refused(v.At) || refused(v.Again) || all
}

// Withhold says why v is not to be believed yet; empty: v is to be believed.
func (s State) Withhold(v grant.Verdict, now time.Time, r Rules) string {
	held, from := now.Sub(v.At), v.At
	if v.Unsure {
		from = v.Again // earlier answers say nothing about the words in use now
	}
	// refused for so long, while other users are renewed: the refusal is true
	steady := held >= r.Hold && s.renewed(now.Add(-r.Window))
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
