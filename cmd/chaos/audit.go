package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp/idptest"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

// count is a line of the result: something that must not happen, and how often it did.
type count struct {
	Name  string   `json:"name"`
	Found int      `json:"found"`
	Cases []string `json:"cases,omitempty"`
}

func (c *count) add(format string, args ...any) {
	c.Found++
	if len(c.Cases) < 10 {
		c.Cases = append(c.Cases, fmt.Sprintf(format, args...))
	}
}

// audit holds the provider's truth, the store, the streams and what was asked against one another.
type audit struct {
	world    *world
	people   *people
	schedule *schedule
	heard    []outcome
	ids      map[string]bool // of all that was heard
	stored   map[string]int  // times that an outcome's id is in OUTCOMES
	grants   map[string]grant.Grant
	counts   []*count
	facts    facts
}

// facts are what the table says beside the counts.
type facts struct {
	Presentations  int `json:"presentations"`
	Renewals       int `json:"renewals"`
	Replays        int `json:"replays"`
	Commands       int `json:"commands"`
	Logins         int `json:"logins"`
	Outcomes       int `json:"outcomes"`
	Reauth         int `json:"reauth_required"`
	Erasures       int `json:"erasures"`
	InFlight       int `json:"in_flight_at_a_kill"`  // presentations answered just before, or not yet
	LostWithWorker int `json:"pairs_lost_by_a_kill"` // without a grace window
	LostOnTheWay   int `json:"pairs_lost_on_the_way_from_the_provider"`
	LostInStorm    int `json:"pairs_lost_with_a_grace_window_that_ended_before_the_servers_were_back"`
}

func (a *audit) count(name string) *count {
	c := &count{Name: name}
	a.counts = append(a.counts, c)
	return c
}

// reaction is how long after the provider's answer, or a worker's death, what happened then still counts as its cause: the
// answer has to be read, encrypted and stored by a worker that shares two cores with everything else here.
const reaction = 750 * time.Millisecond

// struck reports whether a worker died, or was stalled past its lease, while p was under way or just answered.
func (a *audit) struck(p shown) bool {
	answered := p.At.Add(p.Took)
	return slices.ContainsFunc(a.schedule.strikes, func(x *strike) bool {
		return x.lost && (p.by == x.worker || p.by == nil) && !p.At.After(x.to) && answered.Add(reaction).After(x.from)
	})
}

// presentations looks at what the providers saw.
func (a *audit) presentations() {
	twice := a.count("refresh tokens presented twice, other than a replay of an ambiguous one")
	overlap := a.count("presentations of one session's tokens at the same time, other than by a worker stalled past its lease")
	revoked := a.count("sessions ended by reuse, other than by a replay of an ambiguous one")
	kept := a.count("pairs lost with a grace window of 30 s, of which nothing struck anybody for 12 s")
	for _, p := range a.world.providers {
		for session, list := range p.seen.bySession() {
			for i, this := range list {
				a.facts.Presentations++
				if this.Verdict == idptest.Renewed {
					a.facts.Renewals++
					if this.by != nil && a.struck(this) {
						a.facts.InFlight++
					}
				}
				if this.Verdict == idptest.Replay {
					a.facts.Replays++
				}
				spent := this.Verdict == idptest.Reuse || this.Verdict == idptest.Replay
				if !spent {
					continue
				}
				why := a.explain(list[:i], this)
				if why == "" {
					twice.add("%s session %d of %s: %s", p.id, session, this.User, history(list, this.Generation))
					if this.Verdict == idptest.Reuse {
						revoked.add("%s session %d of %s", p.id, session, this.User)
					}
				}
				if this.Verdict == idptest.Reuse {
					switch {
					case p.grace && !a.calm(p, a.spent(list[:i], this)):
						a.facts.LostInStorm++
					case p.grace:
						kept.add("%s session %d of %s, spent at %s, shown again at %s (%s); meanwhile: %s", p.id, session, this.User,
							a.spent(list[:i], this).Format(clockFormat), this.At.Format(clockFormat), why, a.during(a.spent(list[:i], this), this.At))
					case why == onTheWay:
						a.facts.LostOnTheWay++
					case why == withWorker:
						a.facts.LostWithWorker++
					}
				}
			}
			a.overlaps(overlap, p, list)
		}
	}
}

const (
	onTheWay   = "answer lost on the way"
	withWorker = "worker struck"
)

// explain says why a spent token may be shown again: the answer that spent it never arrived, or its worker died with it.
func (a *audit) explain(before []shown, p shown) string {
	for _, q := range slices.Backward(before) {
		if !spends(q, p) {
			continue
		}
		switch {
		case q.Lost:
			return onTheWay
		case a.struck(q):
			return withWorker
		}
		return ""
	}
	return ""
}

// history tells of each presentation of one token.
func history(list []shown, generation int) string {
	var all []string
	for _, p := range list {
		if p.Generation != generation && p.Generation != generation-1 {
			continue
		}
		by := "?"
		if p.by != nil {
			by = p.by.name
		}
		all = append(all, fmt.Sprintf("%d at %s for %v by %s: %s, lost %v", p.Generation, p.At.Format(clockFormat), p.Took.Round(time.Millisecond), by, p.Verdict, p.Lost))
	}
	return strings.Join(all, "; ")
}

// spent is when p's token was first taken.
func (a *audit) spent(before []shown, p shown) time.Time {
	for _, q := range before {
		if spends(q, p) {
			return q.At
		}
	}
	return time.Time{}
}

// spends reports whether q is what made p's token a spent one: a presentation of it, or a replay of the token before it,
// whose answer took its place.
func spends(q, p shown) bool {
	return q.Generation == p.Generation && (q.Verdict == idptest.Renewed || q.Verdict == idptest.Replay) ||
		q.Generation == p.Generation-1 && q.Verdict == idptest.Replay
}

// during lists the faults between two moments.
func (a *audit) during(from, to time.Time) string {
	var all []string
	for _, x := range a.schedule.strikes {
		if x.from.Before(to) && x.to.After(from) {
			all = append(all, fmt.Sprintf("%s %s-%s", x.kind, x.from.Format(clockFormat), x.to.Format(clockFormat)))
		}
	}
	return strings.Join(all, ", ")
}

// calm reports whether there was a stretch in the grace window of a token spent at from in which nothing struck the
// provider, a server or any worker: long enough for a dead worker's message to come again.
func (a *audit) calm(p *standIn, from time.Time) bool {
	const step, enough = 100 * time.Millisecond, 12 * time.Second
	run := time.Duration(0)
	for at := from; at.Before(from.Add(30 * time.Second)); at = at.Add(step) {
		if run += step; a.disturbed(p, at, at.Add(step), nil) || a.workerStruck(at, at.Add(step)) {
			run = 0
		}
		if run >= enough {
			return true
		}
	}
	return false
}

func (a *audit) workerStruck(from, to time.Time) bool {
	return slices.ContainsFunc(a.schedule.strikes, func(x *strike) bool {
		return x.worker != nil && !x.from.After(to) && !x.to.Before(from)
	})
}

// noticed is how long a provider may take to see that a client has gone.
const noticed = 100 * time.Millisecond

func (a *audit) overlaps(c *count, p *standIn, list []shown) {
	for i := 1; i < len(list); i++ {
		before := list[i-1]
		if before.At.Add(before.Took-noticed).After(list[i].At) && !a.struck(before) {
			c.add("%s: %s at %s for %v, and at %s", p.id, before.User, before.At.Format(clockFormat), before.Took, list[i].At.Format(clockFormat))
		}
	}
}

// commands looks whether each one was answered.
func (a *audit) commands() {
	a.facts.Commands = len(a.people.commands)
	byUser := map[string][]outcome{}
	for _, o := range a.heard {
		byUser[o.provider+"/"+o.user] = append(byUser[o.provider+"/"+o.user], o)
		if o.kind == schema.UserReauthRequired {
			a.facts.Reauth++
		}
	}
	lost := a.count("accepted commands not answered")
	for _, c := range a.people.commands {
		if c.kind == schema.UserLogin {
			a.facts.Logins++
		}
		answered := slices.ContainsFunc(byUser[c.who.provider.id+"/"+c.who.name], func(o outcome) bool {
			return o.cause.ID == c.id || !o.beganAt.IsZero() && !o.beganAt.Before(c.sent)
		})
		if !answered {
			lost.add("%s of %s at %s (%s)", c.kind, c.who.name, c.accepted.Format(clockFormat), c.id)
		}
	}
	twice := a.count("outcome ids stored twice")
	for id, n := range a.stored {
		if n > 1 {
			twice.add("%s: %d times", id, n)
		}
	}
	a.facts.Outcomes = len(a.stored)
	unheard := a.count("outcomes in the log that a subscriber never heard of")
	for id := range a.stored {
		if !a.ids[id] {
			unheard.add("%s", id)
		}
	}
	rejected := a.count("commands rejected, though nothing was wrong with them")
	for _, o := range a.heard {
		if o.kind == schema.MessageRejected {
			rejected.add("%s: %s", o.user, o.reason)
		}
	}
}

// store looks at each person's grant, against the session that the provider honours.
func (a *audit) store(ctx context.Context) {
	silent := a.count("live grants whose refresh token the provider would not take")
	gone := a.count("people told to sign in again whose session the provider still honours")
	older := a.count("live grants of another session than the newest login's")
	back := a.count("erased users that came back")
	missing := a.count("people signed in without a grant")
	timers := a.count("live grants without a timer")
	parked := a.count("pairs still parked")
	for _, x := range a.people.all {
		g, stored := a.grants[x.provider.id+"/"+x.name]
		current := x.provider.CurrentRefresh(x.name)
		switch {
		case x.erased && stored:
			back.add("%s, version %d, %s", x.name, g.Version, g.Status)
		case x.erased:
		case !stored:
			missing.add("%s of %s", x.name, x.provider.id)
		case g.Status == grant.ReauthRequired && current != "":
			gone.add("%s of %s: %s", x.name, x.provider.id, g.LastError)
		case g.Status == grant.Live && !x.provider.Valid(g.Pair.Refresh.Reveal()):
			silent.add("%s of %s: last error %q, next %s", x.name, x.provider.id, g.LastError, g.NextDueAt.Format(clockFormat))
		case g.Status == grant.Live && g.Pair.Refresh.Reveal() != current:
			older.add("%s of %s", x.name, x.provider.id)
		}
		if stored && g.Status == grant.Live && !a.hasTimer(ctx, g.Key) {
			timers.add("%s, next due %s", g.Key, g.NextDueAt.Format(clockFormat))
		}
	}
	if s, err := a.world.js.Stream(ctx, stream.Parked); err == nil {
		a.parked(ctx, s, parked)
	}
}

// parked looks at the pairs that nobody fetched. One that the store has gone past is rubbish, which the reconciler removes.
func (a *audit) parked(ctx context.Context, s jetstream.Stream, c *count) {
	for next := s.CachedInfo().State.FirstSeq; ; {
		m, err := s.GetMsg(ctx, next, jetstream.WithGetMsgSubject("parked.>"))
		if err != nil {
			return // there are no more
		}
		next = m.Sequence + 1
		for _, g := range a.grants {
			if m.Subject == "parked."+g.Provider+"."+schema.EscapeUser(g.User) && m.Header.Get("renewd-parent") == g.Fingerprint() {
				c.add("%s since %s", m.Subject, m.Time.Local().Format(clockFormat))
			}
		}
	}
}

// said is what services heard of a user.
func (a *audit) said(provider, user string) string {
	var all []string
	for _, o := range a.heard {
		if o.provider == provider && o.user == user {
			all = append(all, fmt.Sprintf("%s %s %s for %s", o.time.Format(clockFormat), o.kind, o.reason, o.cause.Type))
		}
	}
	return strings.Join(all, "; ")
}

func (a *audit) hasTimer(ctx context.Context, k grant.Key) bool {
	s, err := a.world.js.Stream(ctx, stream.Renewals)
	if err != nil {
		return false
	}
	for _, front := range []string{"renewal.timer.", "renewal.due."} {
		if _, err := s.GetLastMsgForSubject(ctx, front+k.Provider+"."+schema.EscapeUser(k.User)); err == nil {
			return true
		}
	}
	return false
}

// load reads the store and OUTCOMES once nothing moves any more.
func (a *audit) load(ctx context.Context) error {
	s, closeStore, err := a.world.openStore(ctx)
	if err != nil {
		return err
	}
	defer closeStore()
	a.grants = map[string]grant.Grant{}
	for cursor := ""; ; {
		page, next, err := s.List(ctx, cursor, 500)
		if err != nil {
			return err
		}
		for _, g := range page {
			if g.Err != nil {
				return g.Err
			}
			a.grants[g.Provider+"/"+g.User] = g.Grant
		}
		if cursor = next; next == "" {
			break
		}
	}
	a.stored = map[string]int{}
	return a.eachOutcome(ctx, func(m jetstream.Msg) { a.stored[m.Headers().Get("ce-id")]++ })
}

// eachOutcome reads the audit log from its beginning to its present end.
func (a *audit) eachOutcome(ctx context.Context, see func(jetstream.Msg)) error {
	s, err := a.world.js.Stream(ctx, stream.Outcomes)
	if err != nil {
		return err
	}
	last := s.CachedInfo().State.LastSeq
	if s.CachedInfo().State.Msgs == 0 {
		return nil
	}
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	all, err := c.Messages()
	if err != nil {
		return err
	}
	defer all.Stop()
	for {
		m, err := all.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("read %s: %w", stream.Outcomes, err)
		}
		see(m)
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		if meta.Sequence.Stream >= last || meta.NumPending == 0 {
			return nil
		}
	}
}

// verdictsHeard looks at those who were told to sign in again, and at those who lost their tokens and were not told.
func (a *audit) verdicts(w *witness) {
	wrong := a.count("user.reauth_required for a user whose session the provider still honours")
	for _, text := range w.wrong {
		wrong.add("%s", text)
	}
	reasons := a.count("sessions lost with a worker that were not answered by rotation_lost or a newer login")
	sessions := a.world.providers[strict].seen.bySession()
	for _, list := range sessions {
		for i, p := range list {
			if p.Verdict != idptest.Reuse || a.explain(list[:i], p) == "" {
				continue
			}
			told := slices.ContainsFunc(a.heard, func(o outcome) bool {
				return o.provider == strict && o.user == p.User && o.time.After(p.At) &&
					(o.kind == schema.UserReauthRequired && o.reason == schema.ReasonRotationLost || o.cause.Type == schema.UserLogin || o.kind == schema.UserForgotten)
			})
			if !told && !renewedAnew(sessions, p) {
				reasons.add("%s at %s: %s; %s", p.User, p.At.Format(clockFormat), a.said(strict, p.User), condition(a.grants[strict+"/"+p.User]))
			}
		}
	}
}

// condition tells how far a grant has come, without its tokens.
func condition(g grant.Grant) string {
	return fmt.Sprintf("grant is %s, version %d of %s, next %s, attempts %d, outages %d, last error %q, verdict %+v, doubt %+v, claim %+v, pending %t",
		g.Status, g.Version, g.RefreshedAt.Format(clockFormat), g.NextDueAt.Format(clockFormat), g.Attempts, g.Outages, g.LastError, g.Verdict, g.Doubt, g.Claim, g.Pending != nil)
}

// renewedAnew reports whether the user signed in anew after p, which the outcome of a request may have told before that of
// the login: a session that began later was renewed.
func renewedAnew(sessions map[int][]shown, p shown) bool {
	for _, list := range sessions {
		renewed := func(q shown) bool { return q.Verdict == idptest.Renewed && q.At.After(p.At) }
		if list[0].User == p.User && list[0].At.After(p.At) && slices.ContainsFunc(list, renewed) {
			return true
		}
	}
	return false
}

var errUnsettled = errors.New("not settled")

// settled returns an error as long as something is on its way, or somebody has not been renewed since the last fault.
func (a *audit) settled(ctx context.Context, s grant.Store, eyes *witness) error {
	behind, untold, oldest := 0, 0, time.Duration(0)
	for cursor := ""; ; {
		page, next, err := s.List(ctx, cursor, 500)
		if err != nil {
			return err
		}
		for _, g := range page {
			if g.Pending != nil && !eyes.knows(g.Pending.ID) {
				untold++
			}
			if g.Status != grant.Live {
				continue
			}
			late := time.Since(g.NextDueAt)
			old := g.RefreshedAt.Before(a.world.ended)
			if old || late > 2*time.Second || g.Verdict != nil || g.Doubt != nil || g.Outages > 0 {
				behind++
				oldest = max(oldest, late)
			}
		}
		if cursor = next; next == "" {
			break
		}
	}
	if behind+untold > 0 {
		return fmt.Errorf("%w: %d grants are not renewed yet, late, refused or in doubt, the latest by %v; of %d the outcome was not heard yet",
			errUnsettled, behind, oldest.Round(time.Second), untold)
	}
	return nil
}
