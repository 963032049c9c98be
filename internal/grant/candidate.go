package grant

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/renewd/renewd/schema"
)

// Candidate is a login beside what is proven of its user. Anybody who may publish can seal
// anything: until the provider has named the user with the candidate's access token, nothing of it
// counts, and what is proven is renewed as ever. It then takes the place of what was proven, in one
// save.
type Candidate struct {
	Pair  Pair         `json:"-"`     // stores seal it together with the grant's own
	Cause schema.Cause `json:"cause"` // the login
	// Answered: the login has its outcome, a user.refresh_failed. What becomes of the candidate
	// later is told for another cause.
	Answered bool  `json:"answered,omitempty"`
	Login    Order `json:"login"`
	side
	// Next is another login that is not proven either, and has its turn if this one fails: else
	// anybody could drive a good login out by a bad one.
	Next *Candidate `json:"next,omitempty"`
}

// mostCandidates is how many logins of one user wait for their proof. Of more the oldest goes.
const mostCandidates = 8

// all are the candidate and those that have their turn after it; none of a nil one.
func (c *Candidate) all() (list []Candidate) {
	for ; c != nil; c = c.Next {
		list = append(list, *c)
	}
	return list
}

// chained is the inverse of all.
func chained(list []Candidate) (head *Candidate) {
	for _, c := range slices.Backward(list) {
		c.Next = head
		head = &c
	}
	return head
}

// side is what the proven pair of a grant and its candidate have of their own each.
type side struct {
	Status      Status    `json:"status"`
	Verdict     *Verdict  `json:"verdict,omitempty"`
	Doubt       *Doubt    `json:"doubt,omitempty"`
	Attempts    int       `json:"attempts,omitempty"`
	Outages     int       `json:"outages,omitempty"`
	LastError   string    `json:"last_error,omitempty"`
	FailedAt    time.Time `json:"failed_at,omitzero"`
	RefreshedAt time.Time `json:"refreshed_at,omitzero"`
	NextDueAt   time.Time `json:"next_due_at,omitzero"`
}

// OnCandidate reports whether Pair and all that goes with it are those of the candidate, and
// Candidate holds what is proven meanwhile. So every rule serves both. Stores never see a grant
// like this: AsStored turns it back.
func (g Grant) OnCandidate() bool { return g.onCandidate }

// AsCandidate is g with its candidate in the place of what is proven; g itself if there is no
// candidate.
func (g Grant) AsCandidate() Grant {
	if g.Candidate == nil || g.onCandidate {
		return g
	}
	return g.turnedRound()
}

// AsStored is the inverse of AsCandidate.
func (g Grant) AsStored() Grant {
	if !g.onCandidate {
		return g
	}
	return g.turnedRound()
}

func (g Grant) turnedRound() Grant {
	other := *g.Candidate
	theirs := other.side
	other.side = side{g.Status, g.Verdict, g.Doubt, g.Attempts, g.Outages, g.LastError, g.FailedAt, g.RefreshedAt, g.NextDueAt}
	g.Status, g.Verdict, g.Doubt, g.Attempts, g.Outages = theirs.Status, theirs.Verdict, theirs.Doubt, theirs.Attempts, theirs.Outages
	g.LastError, g.FailedAt, g.RefreshedAt, g.NextDueAt = theirs.LastError, theirs.FailedAt, theirs.RefreshedAt, theirs.NextDueAt
	g.Pair, other.Pair = other.Pair, g.Pair
	g.Login, other.Login = other.Login, g.Login
	g.Candidate, g.onCandidate = &other, !g.onCandidate
	return g
}

// Arrival is what a login means to a record.
type Arrival string

// The arrivals.
const (
	Fresh    Arrival = "fresh"    // it is the candidate now
	Stored   Arrival = "stored"   // this very login was stored before: a redelivery
	Repeated Arrival = "repeated" // what it brings was brought before, or sealed before, by another event: nothing changes
	Same     Arrival = "same"     // the event of a stored login was published again: it is answered, or will be
	Outdated Arrival = "outdated" // a newer login of this user was stored before
)

// LoggedIn is the record after a login: cur is what is stored (the zero Grant if nothing is), of an
// unreadable record the part that can be read, and the mark of t's work the latest that is known of
// it. The record changes only if the login is Fresh.
func LoggedIn(cur Grant, k Key, c Candidate, t Turn) (next Grant, what Arrival) {
	if cur.Revision != 0 {
		newest := cur.newestLogin()
		switch {
		case newest.Stream.Equal(c.Login.Stream) && newest.Sequence == c.Login.Sequence:
			return cur, Stored
		case !newest.Before(c.Login):
			return cur, Outdated
		case cur.Status == Forgotten && c.Login.SealedAt.Before(cur.Login.SealedAt):
			return cur, Repeated // from before the erasure, whenever it was published
		case cur.Status != Forgotten && cur.knows(c):
			return cur, Same
		case cur.Status != Forgotten && cur.repeated(c):
			return cur, Repeated
		}
	}
	next = cur
	next.Key = k
	if cur.Revision == 0 || cur.Status == Forgotten {
		next.Status = Unproven
	}
	c.side = side{Status: Live, NextDueAt: t.Now}
	next.Candidate = chained(append([]Candidate{c}, next.Candidate.all()...))
	next = next.withoutExcess()
	next.Version = max(cur.Version+1, t.Work.Mark.Version+1, t.Now.UnixMilli())
	next.SavedBy, next.ActiveAt = t.Nonce, t.Now
	return next, Fresh
}

// withoutExcess is g with no more logins than may wait: of more goes the oldest that failed before,
// else the oldest. It is owed an answer.
func (g Grant) withoutExcess() Grant {
	all := g.Candidate.all()
	if len(all) <= mostCandidates {
		return g
	}
	i := len(all) - 1
	for n, c := range all {
		if n > 0 && c.Attempts+c.Outages > 0 {
			i = n
		}
	}
	g.Owed = append(slices.Clone(g.Owed), g.owed(all[i], "too many newer logins of this user wait to be proven")...)
	g.Candidate = chained(slices.Delete(all, i, i+1))
	return g
}

// owed is the rejection of a login that goes without having had its turn; none if it was answered
// before.
func (g Grant) owed(c Candidate, message string) []Pending {
	if c.Answered {
		return nil
	}
	bad := schema.Malformed{Reason: schema.RejectUnproven, Field: "tokens", Message: message}
	return []Pending{{ID: RejectionID(g.Key, c.Cause), Type: schema.MessageRejected, Version: g.Version, Data: rejection(c.Cause, bad, "")}}
}

// newestLogin is the place of the newest login that the record knows.
func (g Grant) newestLogin() Order {
	newest := g.Login
	for _, c := range g.Candidate.all() {
		if newest.Before(c.Login) {
			newest = c.Login
		}
	}
	return newest
}

// knows reports whether c is the event of a login in the record, published again.
func (g Grant) knows(c Candidate) bool {
	same := func(o Order) bool { return c.Login.Event != "" && c.Login.Event == o.Event }
	return same(g.Login) || slices.ContainsFunc(g.Candidate.all(), func(waits Candidate) bool { return same(waits.Login) })
}

// repeated reports whether a login brings nothing new: its tokens are those of a login that is
// stored, or were rotated since.
func (g Grant) repeated(c Candidate) bool {
	token := c.Login.Token
	if g.Login.Repeats(c.Login) || token != "" && (token == g.Fingerprint() || token == g.Pair.Parent) {
		return true
	}
	return slices.ContainsFunc(g.Candidate.all(), func(waits Candidate) bool {
		return waits.Login.brings(c.Login) || token != "" && token == waits.Pair.Parent
	})
}

// Proven is g, on its candidate, when the provider has named the user with it: the candidate is the
// grant from now on, and older logins are nothing any more.
func (g Grant) Proven(t Turn) Grant {
	before := g.Candidate.Status
	newer := slices.DeleteFunc(g.Candidate.Next.all(), func(c Candidate) bool { return !g.Login.Before(c.Login) })
	g.Candidate, g.onCandidate = chained(newer), false
	g.Recovered = g.Recovered || before == ReauthRequired || before == Suspended
	g.Verdict, g.LastError = nil, ""
	g.Attempts, g.Outages = 0, 0
	g.LoginAt = g.Login.Time
	if g.LoginAt.IsZero() {
		g.LoginAt = t.Now
	}
	g.NextDueAt = t.Policy.Due(g.Pair, t.Now, t.Draw)
	return g
}

// answered notes on a candidate that its login has an outcome, if cause is that login.
func (g Grant) answered(cause schema.Cause) Grant {
	all := g.Candidate.all()
	for i, c := range all {
		all[i].Answered = c.Answered || SameCause(c.Cause, cause)
	}
	g.Candidate = chained(all)
	return g
}

// Awaits reports whether the login of this cause waits to be proven.
func (g Grant) Awaits(cause schema.Cause) bool {
	return slices.ContainsFunc(g.Candidate.all(), func(c Candidate) bool { return SameCause(c.Cause, cause) })
}

// Rejected is g, which is on its candidate, without it: what was proven stays as it was, and other
// logins have their turn. Where nothing else is, the record only keeps the place of the login, as
// after an erasure.
func (g Grant) Rejected(t Turn) Grant {
	rejected := g.Login
	g = g.AsStored().change(t)
	g.Candidate = g.Candidate.Next
	if g.Login.Before(rejected) {
		// The place alone: its message may come again.
		g.Login.Stream, g.Login.Sequence, g.Login.Time = rejected.Stream, rejected.Sequence, rejected.Time
	}
	if g.Status == Unproven && g.Candidate == nil {
		return g.emptied(t)
	}
	return g
}

// Rejection is the message.rejected of a candidate that was not proven: reason and field as in
// schema.Rejected, subject the one that the login came on. It costs the user nothing but the login.
func (g Grant) Rejection(t Turn, bad schema.Malformed, subject, source string) schema.Event {
	return schema.Event{
		ID: RejectionID(g.Key, g.Candidate.Cause), Source: source, Type: schema.MessageRejected, Provider: g.Provider, User: g.User, Time: t.Now.UTC(),
		Data: rejection(g.Candidate.Cause, bad, subject),
	}
}

func rejection(login schema.Cause, bad schema.Malformed, subject string) json.RawMessage {
	data, err := json.Marshal(schema.Rejected{Cause: login, Subject: subject, Reason: bad.Reason, Field: bad.Field, Message: bad.Message})
	if err != nil {
		panic("grant: encode rejection: " + err.Error()) // a struct of this module: cannot happen
	}
	return data
}

// RejectionID is the id of the message.rejected of a login. It is not the OutcomeID of its cause,
// which the login may have had before as a user.refresh_failed.
func RejectionID(k Key, login schema.Cause) string {
	return OutcomeID(k, schema.Cause{Source: login.Source, ID: login.ID + "\x00rejected"})
}

// Turned is g on the side that w is to work on, and w with the cause that it then has: the side
// that is due, and of two that are the one that has been longer. So nobody who publishes logins
// keeps a user's proven tokens from being renewed, and no trouble with these keeps a login waiting.
func (g Grant) Turned(w Work, p Policy, now time.Time) (Grant, Work) {
	g = g.AsStored()
	if named, ok := g.onLogin(func(c Candidate) bool { return SameCause(w.Cause, c.Cause) }); ok {
		g = named.AsStored() // a login's own wake is about it, whichever would have its turn
	}
	c := g.Candidate
	if c == nil {
		return g, w
	}
	its := SameCause(w.Cause, c.Cause)
	begun := g.about(w.Cause) && g.Progress == Saved && !its // by work on what is proven
	waits := c.NextDueAt.After(now.Add(slack))
	due := g.Status == Live && (g.inDoubt() || !g.NextDueAt.After(now.Add(slack)) && g.wantsTokens(Work{}, p, now))
	switch {
	case w.Mark.Supersedes(g), begun && g.Status == Live, due && (waits || g.NextDueAt.Before(c.NextDueAt)), g.Status == Live && waits && !its:
		return g, w.notFor(c, g, now)
	}
	if !IsCommand(w.Cause) && !c.Answered {
		w.Cause = c.Cause
	}
	return g.AsCandidate(), w
}

// Only is Turned where the side that g is on has to come first.
func (g Grant) Only(w Work, now time.Time) (Grant, Work) {
	switch c := g.Candidate; {
	case g.OnCandidate() && !c.Answered && !IsCommand(w.Cause):
		w.Cause = c.Cause
	case !g.OnCandidate() && c != nil:
		w = w.notFor(c, g, now)
	}
	return g, w
}

// notFor is w on what is proven: a login is answered when the turn of its candidate comes.
func (w Work) notFor(c *Candidate, g Grant, now time.Time) Work {
	if SameCause(w.Cause, c.Cause) {
		w.Cause = g.NextTimer(now).Cause
	}
	return w
}

// forgottenFor is how long an erased user's record keeps the place of the logins before the
// erasure: longer than a login may wait in its stream.
const forgottenFor = 8 * 24 * time.Hour

// erasureSkew is how long before an erasure tokens may have been sealed that come after it: as far
// as the clock of a publisher may be behind. What was sealed earlier is of before, whenever it is
// published.
const erasureSkew = 5 * time.Second

// Erased is what is left of g after an erasure of all up to the login upTo: no token, no profile,
// no time of anything, but the version and the place of that login, so that none of before brings
// the user back. A login after it stays: as it is if it was proven, which g then is too; else
// beside nothing. g may be the zero Grant.
func (g Grant) Erased(k Key, upTo Order, t Turn) Grant {
	g.Key = k
	g = g.AsStored()
	if g.provenAfter(upTo) {
		return g
	}
	if upTo.Before(g.Login) {
		upTo = g.Login
	}
	newer := slices.DeleteFunc(g.Candidate.all(), func(c Candidate) bool { return !upTo.Before(c.Login) })
	g.Login = Order{Stream: upTo.Stream, Sequence: upTo.Sequence, Time: upTo.Time, SealedAt: t.Now.Add(-erasureSkew)}
	g = g.change(t).emptied(t)
	if g.Candidate = chained(newer); g.Candidate != nil {
		g.Status, g.NextDueAt = Unproven, time.Time{}
	}
	return g
}

// Revocable lists the refresh tokens that Erased would take from g: those of logins up to upTo. A
// login that came after an erasure keeps its session.
func (g Grant) Revocable(upTo Order) []Secret {
	g = g.AsStored()
	if g.provenAfter(upTo) {
		return nil
	}
	all := []Secret{g.Pair.Refresh}
	for _, c := range g.Candidate.all() {
		if !upTo.Before(c.Login) {
			all = append(all, c.Pair.Refresh)
		}
	}
	return slices.DeleteFunc(all, Secret.IsZero)
}

// provenAfter reports whether the login that g comes from was proven and is after upTo.
func (g Grant) provenAfter(upTo Order) bool {
	return g.Status != Unproven && g.Status != Forgotten && g.Login.Sequence != 0 && upTo.Before(g.Login)
}

// emptied keeps the key, the revision, the version and the login's place of g.
func (g Grant) emptied(t Turn) Grant {
	return Grant{
		Key: g.Key, Revision: g.Revision, Version: g.Version, Status: Forgotten, SavedBy: t.Nonce, Login: g.Login, NextDueAt: t.Now.Add(forgottenFor),
	}
}

// Holds reports whether the refresh token with this fingerprint is one of those in the record.
func (g Grant) Holds(token string) bool {
	return token != "" && (token == g.Fingerprint() ||
		slices.ContainsFunc(g.Candidate.all(), func(c Candidate) bool { return token == c.Pair.Refresh.Fingerprint() }))
}

// Unknown is g, as stored, when a presentation under the claim prior ended without anybody knowing
// how: the token that it was about is in doubt, whichever of those in the record it is.
func (g Grant) Unknown(prior Claim) Grant {
	if g.Fingerprint() == prior.Fingerprint {
		return g.Doubted(prior.Until)
	}
	all := g.Candidate.all()
	for i, c := range all {
		if f := prior.Fingerprint; f == c.Pair.Refresh.Fingerprint() && (c.Doubt == nil || c.Doubt.Fingerprint != f) {
			all[i].Doubt = &Doubt{Fingerprint: f, Since: prior.Until}
		}
	}
	g.Candidate = chained(all)
	return g
}

// Beside is cur, which was read again, turned to the side that g is on: of several logins to that
// of g, which has its turn now. ok is false if there is none of it any more: it was proven or
// rejected.
func (g Grant) Beside(cur Grant) (turned Grant, ok bool) {
	if !g.OnCandidate() {
		return cur.AsStored(), true
	}
	return cur.onLogin(func(c Candidate) bool {
		return c.Login.Stream.Equal(g.Login.Stream) && c.Login.Sequence == g.Login.Sequence
	})
}

// Holder is g turned to the side that holds the refresh token with this fingerprint. ok is false if
// none does.
func (g Grant) Holder(token string) (turned Grant, ok bool) {
	if g = g.AsStored(); token != "" && token == g.Fingerprint() {
		return g, true
	}
	return g.onLogin(func(c Candidate) bool { return token != "" && token == c.Pair.Refresh.Fingerprint() })
}

// onLogin is g on the first of its logins that is wanted, which has its turn now; g as it is stored
// if none is.
func (g Grant) onLogin(wanted func(Candidate) bool) (turned Grant, ok bool) {
	g = g.AsStored()
	all := g.Candidate.all()
	i := slices.IndexFunc(all, wanted)
	if i < 0 {
		return g, false
	}
	g.Candidate = chained(append([]Candidate{all[i]}, slices.Delete(slices.Clone(all), i, i+1)...))
	return g.AsCandidate(), true
}
