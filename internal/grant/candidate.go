package grant

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// Candidate is a login that lies beside the proven pair of its user. Any publisher can seal
// anything, so nothing of a candidate counts until the provider has named the user with the
// candidate's access token. Meanwhile the proven pair is renewed as ever. Then the candidate takes
// the place of the proven pair, in one save.
type Candidate struct {
	Pair  Pair         `json:"-"`     // stores seal the pair together with the grant's own
	Cause schema.Cause `json:"cause"` // the login
	// Answered: the login has its outcome, a user.refresh_failed. Any later news of the candidate
	// is told for another cause.
	Answered bool     `json:"answered,omitempty"`
	Login    Position `json:"login"`
	side
	// Next is another unproven login. Next has its turn if this login fails, as otherwise a bad
	// login could drive out a good login.
	Next *Candidate `json:"next,omitempty"`
}

// mostCandidates is how many logins of one user wait for their proof. Of more, the oldest goes.
const mostCandidates = 8

// all lists the candidate and the logins whose turn comes after it; empty if c is nil.
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

// side holds the fields which the proven pair and the candidate of a grant have separately.
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

// OnCandidate reports whether Pair, Login and the fields of side are the candidate's; Candidate
// then holds the proven side. So every rule serves both sides. Stores never see such a grant:
// AsStored turns the grant back.
func (g *Grant) OnCandidate() bool { return g.onCandidate }

// AsCandidate is g with its candidate in the place of the proven side; g itself without a
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
	other.side = side{
		Status:      g.Status,
		Verdict:     g.Verdict,
		Doubt:       g.Doubt,
		Attempts:    g.Attempts,
		Outages:     g.Outages,
		LastError:   g.LastError,
		FailedAt:    g.FailedAt,
		RefreshedAt: g.RefreshedAt,
		NextDueAt:   g.NextDueAt,
	}
	g.Status, g.Verdict, g.Doubt = theirs.Status, theirs.Verdict, theirs.Doubt
	g.Attempts, g.Outages = theirs.Attempts, theirs.Outages
	g.LastError, g.FailedAt = theirs.LastError, theirs.FailedAt
	g.RefreshedAt, g.NextDueAt = theirs.RefreshedAt, theirs.NextDueAt
	g.Pair, other.Pair = other.Pair, g.Pair
	g.Login, other.Login = other.Login, g.Login
	g.Candidate, g.onCandidate = &other, !g.onCandidate
	return g
}

// Arrival is the meaning of a login to a record.
type Arrival string

// The arrivals.
const (
	Fresh    Arrival = "fresh"    // the login is the candidate now
	Stored   Arrival = "stored"   // this very login was stored before: a redelivery
	Repeated Arrival = "repeated" // another event brought, or sealed, the same before: no change
	Same     Arrival = "same"     // a stored login's event again: the login is answered, or will be
	Outdated Arrival = "outdated" // a newer login of this user was proven before
)

// LoggedIn is the record after a login. cur is the stored record: the zero Grant if the user has no
// record, the readable part if the record cannot be read. The mark of t's work is the latest known
// mark of the record. The record changes only if the login is Fresh.
func LoggedIn(cur Grant, k Key, c Candidate, t Turn) (next Grant, what Arrival) {
	if cur.Revision != 0 {
		switch {
		case cur.has(c.Login):
			return cur, Stored
		case !cur.Login.Before(c.Login), cur.suspended() && !cur.Hold.Before(c.Login):
			return cur, Outdated
		case cur.Status == Forgotten && c.Login.SealedAt.Before(cur.Login.SealedAt):
			return cur, Repeated // sealed before the erasure, whenever the login was published
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
	next.Candidate = next.Candidate.with(c)
	next = next.withoutExcess()
	next.Version = max(cur.Version+1, t.Work.Mark.Version+1, t.Now.UnixMilli())
	next.SavedBy, next.ActiveAt = t.Nonce, t.Now
	return next, Fresh
}

// withoutExcess is g with no more logins than may wait. If there are too many, the oldest login
// that failed before goes, else the oldest login. The dropped login is owed an answer.
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
	g.Owed = append(slices.Clone(g.Owed),
		g.owed(all[i], "too many newer logins of this user wait to be proven")...)
	g.Candidate = chained(slices.Delete(all, i, i+1))
	return g
}

// owed is the rejection of a login dropped before its turn; empty if the login was answered before.
func (g *Grant) owed(c Candidate, message string) []Pending {
	if c.Answered {
		return nil
	}
	bad := schema.Malformed{Reason: schema.RejectUnproven, Field: "tokens", Message: message}
	return []Pending{{
		ID:      RejectionID(g.Key, c.Cause),
		Type:    schema.MessageRejected,
		Version: g.Version,
		Data:    rejection(c.Cause, bad, ""),
	}}
}

// with is the chain with one more login. A newer login has its turn before an older login, which
// may have been put off and come late.
func (c *Candidate) with(login Candidate) *Candidate {
	all := c.all()
	older := slices.IndexFunc(all, func(o Candidate) bool { return o.Login.Before(login.Login) })
	if older < 0 {
		older = len(all)
	}
	return chained(slices.Insert(all, older, login))
}

// has reports whether the record knows the login with this place: the login is proven, waits, or is
// the newest rejected login.
func (g *Grant) has(place Position) bool {
	same := func(o Position) bool {
		return o.Stream.Equal(place.Stream) && o.Sequence == place.Sequence
	}
	return same(g.Login) || same(g.Disproven) ||
		slices.ContainsFunc(g.Candidate.all(), func(c Candidate) bool { return same(c.Login) })
}

// knows reports whether c is the event of a login in the record, published again.
func (g *Grant) knows(c Candidate) bool {
	same := func(o Position) bool { return c.Login.Event != "" && c.Login.Event == o.Event }
	return same(g.Login) ||
		slices.ContainsFunc(g.Candidate.all(), func(waits Candidate) bool {
			return same(waits.Login)
		})
}

// repeated reports whether a login brings nothing new: its tokens are the tokens of a stored login,
// or were rotated since.
func (g *Grant) repeated(c Candidate) bool {
	token := c.Login.Token
	if g.Login.Repeats(c.Login) ||
		token != "" && (token == g.Fingerprint() || token == g.Pair.Parent) {
		return true
	}
	return slices.ContainsFunc(g.Candidate.all(), func(waits Candidate) bool {
		return waits.Login.brings(c.Login) || token != "" && token == waits.Pair.Parent
	})
}

// Proven is g, on its candidate, once the provider has named the user with the candidate's token:
// the candidate becomes the proven side, and older logins are dropped.
func (g Grant) Proven(t Turn) Grant {
	before := g.Candidate.Status
	newer := slices.DeleteFunc(g.Candidate.Next.all(), func(c Candidate) bool {
		return !g.Login.Before(c.Login)
	})
	g.Candidate, g.onCandidate = chained(newer), false
	g.Recovered = g.Recovered || before == ReauthRequired || before == Suspended
	g.Verdict, g.LastError = nil, ""
	g.Attempts, g.Outages = 0, 0
	g.LoginAt = g.Login.Time
	if g.LoginAt.IsZero() {
		g.LoginAt = t.Now
	}
	g.NextDueAt = g.planned(t)
	return g
}

// answered notes on a candidate that its login has an outcome, if cause is the candidate's login.
func (g Grant) answered(cause schema.Cause) Grant {
	all := g.Candidate.all()
	for i, c := range all {
		all[i].Answered = c.Answered || SameCause(c.Cause, cause)
	}
	g.Candidate = chained(all)
	return g
}

// Awaits reports whether the login of this cause waits to be proven.
func (g *Grant) Awaits(cause schema.Cause) bool {
	return slices.ContainsFunc(g.Candidate.all(), func(c Candidate) bool {
		return SameCause(c.Cause, cause)
	})
}

// Rejected is g, which is on its candidate, without the candidate. The proven side stays as it was,
// and other logins have their turn. If nothing is proven and no login is left, the record keeps
// only the place of the login, as after an erasure.
func (g Grant) Rejected(t Turn) Grant {
	rejected := g.Login
	g = g.AsStored()
	g.change(t)
	g.Candidate = g.Candidate.Next
	if g.Disproven.Before(rejected) {
		g.Disproven = Position{
			Stream:   rejected.Stream,
			Sequence: rejected.Sequence,
			Time:     rejected.Time,
		}
	}
	if g.Status == Unproven && g.Candidate == nil {
		return g.emptied(t)
	}
	return g
}

// Rejection is the message.rejected of an unproven candidate: reason and field as in
// schema.Rejected, subject the subject of the login. The user loses only the login.
func (g *Grant) Rejection(t Turn, bad schema.Malformed, subject, source string) schema.Event {
	return schema.Event{
		ID:       RejectionID(g.Key, g.Candidate.Cause),
		Source:   source,
		Type:     schema.MessageRejected,
		Provider: g.Provider,
		User:     g.User,
		Time:     t.Now.UTC(),
		Data:     rejection(g.Candidate.Cause, bad, subject),
	}
}

func rejection(login schema.Cause, bad schema.Malformed, subject string) json.RawMessage {
	data, err := json.Marshal(schema.Rejected{
		Cause:   login,
		Subject: subject,
		Reason:  bad.Reason,
		Field:   bad.Field,
		Message: bad.Message,
	})
	if err != nil {
		panic("grant: encode rejection: " + err.Error()) // a struct of this module: cannot happen
	}
	return data
}

// Turned is g on the side to work on for w, and w with the cause of the work on that side. The side
// that is due has its turn; if both are due, the side that has been due for longer. So a publisher
// of many logins cannot keep a user's proven tokens from being renewed, and trouble with the proven
// tokens keeps no login waiting.
func (g Grant) Turned(w Work, p *Policy, now time.Time) (Grant, Work) {
	g = g.AsStored()
	if named, ok := g.onLogin(func(c Candidate) bool { return SameCause(w.Cause, c.Cause) }); ok {
		g = named.AsStored() // a login's wake is about that login, whichever would have its turn
	}
	c := g.Candidate
	if c == nil {
		return g, w
	}
	its := SameCause(w.Cause, c.Cause)
	begun := g.saved(w.Cause) && !its
	candidate := g.AsCandidate()
	proving := candidate.saved(w.Cause) // the profile of the candidate's fresh pair is next
	waits := c.NextDueAt.After(now.Add(slack))
	asleep := g.Status == Dormant && IsCommand(w.Cause) // the command wakes the proven side
	due := g.Status == Live &&
		(g.inDoubt() || !g.NextDueAt.After(now.Add(slack)) && g.wantsTokens(Work{}, p, now))
	switch {
	case g.Outlasted(p, now):
		return g, w.notFor(c, &g, now)
	case proving:
	case w.Mark.Supersedes(&g), begun && g.Status == Live,
		due && (waits || g.NextDueAt.Before(c.NextDueAt)),
		(g.Status == Live || asleep) && waits && !its:
		return g, w.notFor(c, &g, now)
	}
	if !IsCommand(w.Cause) && !c.Answered {
		w.Cause = c.Cause
	}
	return candidate, w
}

// Only is Turned where the side of g has to come first.
func (g Grant) Only(w Work, now time.Time) (Grant, Work) {
	switch c := g.Candidate; {
	case g.OnCandidate() && !c.Answered && !IsCommand(w.Cause):
		w.Cause = c.Cause
	case !g.OnCandidate() && c != nil:
		w = w.notFor(c, &g, now)
	}
	return g, w
}

// notFor is w on the proven side: a login is answered when the turn of its candidate comes.
func (w Work) notFor(c *Candidate, g *Grant, now time.Time) Work {
	if SameCause(w.Cause, c.Cause) {
		w.Cause = g.NextTimer(now).Cause
	}
	return w
}

// forgottenFor is how long an erased user's record keeps the place of the logins before the
// erasure: longer than a login may wait in its stream.
const forgottenFor = 8 * 24 * time.Hour

// erasureSkew is how long before an erasure the tokens of a later login may have been sealed: the
// clock of a publisher may be behind by as much. Tokens sealed earlier belong to the time before
// the erasure, whenever the login is published.
const erasureSkew = 5 * time.Second

// Erased is g after an erasure of everything up to the login upTo. No token and no profile is left,
// only the version and the later place of upTo and g.Login, so that no earlier login brings the
// user back. A login after upTo stays. If g comes from such a login and was proven, g is unchanged;
// otherwise the later logins are the candidates of an Unproven grant. g may be the zero Grant.
func (g Grant) Erased(k Key, upTo Position, t Turn) Grant {
	g.Key = k
	g = g.AsStored()
	if g.provenAfter(upTo) {
		return g
	}
	if upTo.Before(g.Login) {
		upTo = g.Login
	}
	newer := slices.DeleteFunc(g.Candidate.all(), func(c Candidate) bool {
		return !upTo.Before(c.Login)
	})
	g.Login = Position{
		Stream:   upTo.Stream,
		Sequence: upTo.Sequence,
		Time:     upTo.Time,
		SealedAt: t.Now.Add(-erasureSkew),
	}
	g.change(t)
	g = g.emptied(t)
	if g.Candidate = chained(newer); g.Candidate != nil {
		g.Status, g.NextDueAt = Unproven, time.Time{}
	}
	return g
}

// Revocable lists the refresh tokens that Erased would take from g: the tokens of logins up to
// upTo. A login after the erasure keeps its session.
func (g *Grant) Revocable(upTo Position) []secret.Value {
	stored := g.AsStored()
	if stored.provenAfter(upTo) {
		return nil
	}
	all := []secret.Value{stored.Pair.Refresh}
	for _, c := range stored.Candidate.all() {
		if !upTo.Before(c.Login) {
			all = append(all, c.Pair.Refresh)
		}
	}
	return slices.DeleteFunc(all, secret.Value.IsZero)
}

// provenAfter reports whether the login of g was proven and is after upTo. The place of a SignedOff
// grant is the place of a logout.
func (g *Grant) provenAfter(upTo Position) bool {
	without := g.Status == Unproven || g.Status == Forgotten || g.Status == SignedOff
	return !without && g.Login.Sequence != 0 && upTo.Before(g.Login)
}

// emptied keeps the key, the revision, the version and the places of logins of g.
func (g Grant) emptied(t Turn) Grant {
	return Grant{
		Key:       g.Key,
		Revision:  g.Revision,
		Version:   g.Version,
		Status:    Forgotten,
		SavedBy:   t.Nonce,
		Login:     g.Login,
		Disproven: g.Disproven,
		NextDueAt: t.Now.Add(forgottenFor),
	}
}

// Holds reports whether the record holds the refresh token with this fingerprint.
func (g *Grant) Holds(token string) bool {
	return token != "" && (token == g.Fingerprint() ||
		slices.ContainsFunc(g.Candidate.all(), func(c Candidate) bool {
			return token == c.Pair.Refresh.Fingerprint()
		}))
}

// Unknown is g, as stored, when the result of a presentation under the claim prior is not known:
// the token of the claim is in doubt, whichever token of the record it is.
func (g Grant) Unknown(prior Claim) Grant {
	if g.Fingerprint() == prior.Fingerprint {
		return g.Doubted(prior.Until)
	}
	all := g.Candidate.all()
	for i, c := range all {
		f := prior.Fingerprint
		if f == c.Pair.Refresh.Fingerprint() && (c.Doubt == nil || c.Doubt.Fingerprint != f) {
			all[i].Doubt = &Doubt{Fingerprint: f, Since: prior.Until}
		}
	}
	g.Candidate = chained(all)
	return g
}

// Beside is cur, which was read again, turned to the side of g. If cur has several logins, the
// login of g has the turn. ok is false if cur no longer has that login: the login was proven or
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
// no side holds the token.
func (g Grant) Holder(token string) (turned Grant, ok bool) {
	if g = g.AsStored(); token != "" && token == g.Fingerprint() {
		return g, true
	}
	return g.onLogin(func(c Candidate) bool {
		return token != "" && token == c.Pair.Refresh.Fingerprint()
	})
}

// onLogin is g on the first login that is wanted, which has its turn now. If no login is wanted,
// the result is g as stored.
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
