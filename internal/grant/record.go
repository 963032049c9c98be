package grant

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/renewd/renewd/schema"
)

// Turn is one worker's handling of one piece of work: the values common to every change of the
// record in the handling.
type Turn struct {
	Work    Work
	Nonce   string    // unique for this handling; also of its claim
	BeganAt time.Time // when the work was taken up
	Now     time.Time // when the change is made
	Draw    float64   // in [0,1), for jitter
	Policy  *Policy
	// Told are the ids of outcomes known to be published: the record need not keep these outcomes.
	Told []string
}

// change makes g the start of a new version, written by t: later than everything known to have been
// published, also where the store has gone back. Another worker's claim is left alone.
func (g *Grant) change(t Turn) {
	g.Version = max(g.Version, t.Work.Mark.Version) + 1
	g.SavedBy = t.Nonce
	if g.Claim != nil && g.Claim.Nonce == t.Nonce {
		g.Claim = nil
	}
}

// turn marks g as being about t's work. An outcome of other work, not known to have been published,
// is owed from then on.
func (g *Grant) turn(t Turn, progress Progress) {
	g.Owed = g.Untold(t.Work.Cause, t.Told)
	g.Cause, g.BeganAt, g.Progress, g.Pending = t.Work.Cause, t.BeganAt, progress, nil
	if IsCommand(t.Work.Cause) {
		g.stirred = g.stirred || g.Notes(t.Policy, t.Now)
		g.ActiveAt = t.Now
	}
}

// Rotated is g with the tokens that came from presenting the refresh token with this fingerprint.
// Parts the provider left out stay as they were (RFC 6749 section 6), except the ID token: the ID
// token of a login says nothing about these tokens.
func (g Grant) Rotated(t Turn, tokens Tokens, presented string) Grant {
	life := tokens.ExpiresIn
	if life <= 0 {
		life = t.Policy.Lifetime
	}
	life = min(life, t.Policy.MaxLifetime)
	if tokens.Access.IsZero() {
		// The answer had no readable access token. The refresh token must still be kept.
		life = 0
	}
	recovered := g.Recovered || g.failing() || g.Verdict != nil
	old := g.Pair
	g.change(t)
	g.turn(t, Saved)
	g.Pair = Pair{
		Access:    tokens.Access,
		Refresh:   tokens.Refresh,
		ID:        tokens.ID,
		Answered:  !tokens.ID.IsZero(),
		Scope:     tokens.Scope,
		ExpiresAt: tokens.SentAt.Add(life),
		Lifetime:  life,
		SentAt:    tokens.SentAt,
		Parent:    presented,
	}
	if g.Pair.Refresh.IsZero() {
		g.Pair.Refresh = old.Refresh
	}
	if g.Pair.Scope == "" {
		g.Pair.Scope = old.Scope
	}
	g.Verdict, g.Doubt = nil, nil
	g.Refreshed, g.Recovered = true, recovered
	g.RefreshedAt, g.stirred = t.Now, false
	g.BeganAt = earlier(g.BeganAt, t.Now) // also where the clock was set back meanwhile: see saved
	if !g.OnCandidate() {                 // only a candidate's proof resets its failures
		if g.suspended() {
			return g // g stays suspended: the pair was under way, and is kept
		}
		g.Attempts, g.Outages, g.LastError = 0, 0, ""
	}
	g.Status, g.NextDueAt = Live, g.due(t)
	return g
}

// due is when g is to be looked at again: when its tokens are due, or a refusal is to be confirmed,
// but never before the policy's floor.
func (g *Grant) due(t Turn) time.Time {
	if g.Verdict == nil {
		return g.planned(t)
	}
	at := g.Verdict.At.Add(t.Policy.toSecond(*g.Verdict))
	if !g.Verdict.Again.IsZero() {
		at = g.Verdict.Again.Add(t.Policy.toThird(*g.Verdict))
	}
	if g.Verdict.Unsure {
		at = earlier(at, t.Policy.renewal(g.Pair, t.Draw)) // a try then may well work
	}
	return later(g.bySessionEnd(at, t.Policy), t.Now.Add(t.Policy.Floor))
}

// Untold lists the decided outcomes of other causes than this cause, without those told.
func (g *Grant) Untold(cause schema.Cause, told []string) []Pending {
	owed := g.Owed
	if g.Pending != nil && !g.about(cause) {
		owed = append(slices.Clip(owed), *g.Pending)
	}
	return slices.DeleteFunc(slices.Clone(owed), func(p Pending) bool {
		return slices.Contains(told, p.ID)
	})
}

// Told is an outcome of Untold as it is published, with the profile stored now.
func (g *Grant) Told(p Pending, source string, now time.Time, show Shown) schema.Event {
	return g.event(p, source, now, show)
}

// about reports whether the progress in the record is about this cause.
func (g *Grant) about(cause schema.Cause) bool { return SameCause(g.Cause, cause) }

// saved reports whether the renewal of this cause has rotated the pair of g's side, and has not
// asked for the profile since. A progress may also be about the other side.
func (g *Grant) saved(cause schema.Cause) bool {
	return g.about(cause) && g.Progress == Saved && !g.RefreshedAt.Before(g.BeganAt)
}

// SameCause reports whether a and b are one command. A command is identified by its source and id
// together (CloudEvents 1.0, section 3.1.1), and by the sender where the NATS server names the
// sender, since source and id are a publisher's own words.
func SameCause(a, b schema.Cause) bool {
	return a.ID != "" && a.ID == b.ID && a.Source == b.Source && a.Sender == b.Sender
}

func (g *Grant) failing() bool { return g.Attempts > 0 || g.Outages > 0 }

// Resumed is the working copy of g for t's work when nothing of the work is stored yet: no version,
// no write.
func (g Grant) Resumed(t Turn) Grant {
	if g.saved(t.Work.Cause) || g.about(t.Work.Cause) && g.Progress == Synced {
		return g
	}
	g.Refreshed, g.Recovered = false, g.Recovered && g.Progress == "" ||
		g.failing() && g.Verdict == nil
	g.turn(t, "")
	return g.wakened(t)
}

// WithProfile is g after a profile sync, with the outcome decided. The provider has named the user
// with the access token, so a candidate is proven by the sync. The outcome bears the cause of the
// candidate's login. If the login was answered before and the work is a command, the outcome bears
// the cause of a new timer, and the command is done after it. write is false if nothing is worth a
// write: the outcome can then be made again from the stored record.
func (g Grant) WithProfile(t Turn, p Profile) (next Grant, write bool) {
	proven := g.OnCandidate()
	if proven {
		answered := g.Candidate.Answered
		switch {
		case !answered:
			t.Work.Cause = g.Candidate.Cause
		case IsCommand(t.Work.Cause): // the command is answered separately
			t.Work.Cause = g.NextTimer(t.Now).Cause
		}
		g = g.Proven(t)
	}
	changed, differs := compare(g.Profile, p, t.Policy.Volatile)
	next = g
	if refused := g.Verdict; refused != nil && refused.Fingerprint == g.Pair.Access.Fingerprint() {
		next.Verdict = nil // the verdict was a refusal of this access token
	}
	recovers := g.failing() && next.Verdict == nil && g.Doubt == nil
	behind := t.Work.Mark.Version > g.Version
	passed := !g.NextDueAt.After(t.Now) // a timer armed for then would fire at once
	write = proven || differs || g.Profile == "" || g.Progress == "" && g.Recovered || behind ||
		passed || next.Verdict != g.Verdict
	write = write || g.stirred
	if write {
		next.change(t)
		next.Profile, next.SyncedAt, next.stirred = p, t.Now, false
		if recovers {
			next.Outages, next.Attempts, next.LastError = 0, 0, ""
		}
		if recovers || passed {
			next.NextDueAt = next.due(t)
		}
	}
	next.turnKeep(t, Synced)
	next.Pending = next.synced(t, changed, true)
	return next, write
}

// WithoutProfile is g after a renewal whose profile sync failed in passing. The renewal still
// counts as a success.
func (g Grant) WithoutProfile(t Turn) Grant {
	g.turnKeep(t, Synced)
	g.Pending = g.synced(t, nil, false)
	return g
}

// turnKeep is turn for the later steps of work begun before: began_at stays.
func (g *Grant) turnKeep(t Turn, progress Progress) {
	if g.about(t.Work.Cause) && !g.BeganAt.IsZero() {
		t.BeganAt = g.BeganAt
	}
	g.turn(t, progress)
}

func (g *Grant) synced(t Turn, changed []string, fresh bool) *Pending {
	if changed == nil {
		changed = []string{}
	}
	d := schema.Synced{
		Cause:     g.Cause,
		BeganAt:   g.BeganAt,
		Version:   g.Version,
		Refreshed: g.Refreshed,
		ExpiresAt: g.Pair.ExpiresAt.UTC(),
		NextDueAt: g.NextDueAt.UTC(),
		Changed:   changed,
		Recovered: g.Recovered,
	}
	pending := g.pending(schema.UserSynced, d)
	pending.Stale = !fresh
	return pending
}

// SignedOut is g when its user must sign in again: the tokens are erased, only their fingerprint
// stays. NextDueAt stays set until Told, so that the reconciler finds a grant whose outcome was not
// told yet.
func (g Grant) SignedOut(t Turn, v Verdict) Grant {
	last := g.SyncedAt
	if g.RefreshedAt.After(last) {
		last = g.RefreshedAt
	}
	g.change(t)
	g.turn(t, Synced)
	v.Confirmed = true
	g.Status, g.Verdict, g.Doubt = ReauthRequired, &v, nil
	g.LastError, g.FailedAt = v.Reason, t.Now
	g.Pair = Pair{
		ExpiresAt: g.Pair.ExpiresAt,
		Lifetime:  g.Pair.Lifetime,
		SentAt:    g.Pair.SentAt,
		Parent:    v.Fingerprint,
	}
	g.NextDueAt = t.Now
	g.Refreshed, g.Recovered = false, false
	g.Pending = g.pending(schema.UserReauthRequired, schema.ReauthRequired{
		Cause:         g.Cause,
		BeganAt:       g.BeganAt,
		Version:       g.Version,
		Reason:        v.Reason,
		ProviderError: v.Code,
		LastSyncedAt:  last.UTC(),
	})
	// Not the id of the cause alone: an event published again may have answered the cause before.
	g.Pending.ID = signOutID(g.Key, g.Cause, g.Version)
	return g
}

// Resting reports whether g is not renewed and all its outcomes were told. Such a grant needs no
// look before a command of a service or an operator.
func (g *Grant) Resting() bool {
	return g.Status != Live && g.Candidate == nil && g.NextDueAt.IsZero()
}

// Rested is g, which is not renewed, once all its outcomes are published. Nothing is due any more,
// except a candidate, which has its own due time. The version stays.
func (g Grant) Rested(t Turn) Grant {
	g.SavedBy, g.NextDueAt, g.Owed = t.Nonce, time.Time{}, nil
	return g
}

// Failure is a try that did not work, without a verdict on the user.
type Failure struct {
	Reason string        // a reason of user.refresh_failed
	Code   string        // the provider's error code
	Own    bool          // this grant's own failure, not the provider's outage: uses up a try
	Wait   time.Duration // at least this long before the next try; 0: backoff alone
	Final  bool          // further tries in a row are no use: answer now and wait RetryLater
}

// urgency is how long a token is presented again without backoff after its answer was lost: longer
// than any known grace window.
const urgency = 2 * time.Minute

// Failed is g after f, with the time of the next try as NextDueAt. If the tries are used up, g
// carries the outcome saying so; the tries go on.
func (g Grant) Failed(t Turn, f Failure) Grant {
	g.change(t)
	g.turnKeep(t, "")
	count := &g.Outages
	if f.Own {
		count = &g.Attempts
	}
	if !f.Own && g.Outages == 0 && !g.OnCandidate() {
		g.FailingSince, g.ToldAlone = t.Now, false
	}
	g.ToldAlone = g.ToldAlone || f.Reason == schema.ReasonFailingAlone
	*count++
	g.LastError, g.FailedAt = f.Reason, t.Now
	spent := *count >= t.Policy.Tries || f.Final
	wait := max(t.Policy.Retry(*count, t.Draw), f.Wait, t.Policy.Floor)
	if spent && f.Own {
		wait = max(f.Wait, t.Policy.RetryLater)
	}
	if d := g.Doubt; d != nil && d.Fingerprint == g.Fingerprint() && t.Now.Sub(d.Since) < urgency {
		// The token may be spent, and the provider may forgive a repeat for some seconds only.
		wait = max(t.Policy.RetryMin, f.Wait, t.Policy.Floor)
	}
	g.NextDueAt = t.Now.Add(wait)
	awaited := IsCommand(t.Work.Cause) && !spent
	urgent := awaited || g.Verdict != nil || g.OnCandidate() || g.inDoubt() ||
		t.Policy.keepsAlive(g.Pair, t.Now)
	if !urgent {
		g.NextDueAt = t.Policy.retried(g.Pair, g.NextDueAt, t.Draw)
	}
	if !g.OnCandidate() {
		g.NextDueAt = later(g.bySessionEnd(g.NextDueAt, t.Policy), t.Now.Add(t.Policy.Floor))
	}
	// A grant whose profile sync fails still keeps its tokens fresh.
	due := t.Policy.renewal(g.Pair, t.Draw)
	if !urgent {
		due = t.Policy.Within(due, t.Draw)
	}
	if due.After(t.Now) && !g.Pair.Refresh.IsZero() {
		g.NextDueAt = earlier(g.NextDueAt, due)
	}
	if spent && (f.Own || *count == t.Policy.Tries || IsCommand(t.Work.Cause)) {
		next := g.NextDueAt.UTC()
		g.Progress = Synced
		g.Pending = g.pending(schema.UserRefreshFailed, schema.RefreshFailed{
			Cause:         g.Cause,
			BeganAt:       g.BeganAt,
			Version:       g.Version,
			Reason:        f.Reason,
			ProviderError: f.Code,
			Attempts:      *count,
			NextAttemptAt: &next,
		})
		g = g.answered(g.Cause)
	}
	return g
}

// Doubted is g when a presentation of its refresh token ended without a readable answer.
func (g Grant) Doubted(now time.Time) Grant {
	f := g.Fingerprint()
	if g.Doubt == nil || g.Doubt.Fingerprint != f {
		g.Doubt = &Doubt{Fingerprint: f, Since: now}
	}
	return g
}

// Refused is g after a permanent fault on presenting the token with this fingerprint. The first
// refusal is written down, and the token is presented again after the policy's confirm wait. The
// same happens after the second. done tells that this refusal is final: g is then signed out, or,
// on its candidate, unchanged. The caller must first check that the token is still the stored
// token, since a refusal of another token says nothing.
func (g Grant) Refused(t Turn, f *Fault, presented string) (next Grant, done bool) {
	v := Verdict{Reason: f.Reason, Code: f.Code, Fingerprint: presented, At: t.Now}
	if v.Reason == "" {
		v.Reason = schema.ReasonRevoked
	}
	before := g.Verdict != nil && g.Verdict.Fingerprint == presented && !g.Verdict.Unsure
	if before {
		v.At, v.Again, v.Reason = g.Verdict.At, g.Verdict.Again, g.Verdict.Reason
	}
	if g.Doubt != nil && g.Doubt.Fingerprint == presented && presented != "" {
		v.Reason = schema.ReasonRotationLost // also if the doubt came after the first refusal
	}
	switch {
	case before && t.Policy.Final(v, t.Now, g.NextDueAt):
		if g.OnCandidate() {
			return g, true // no sign-out: the caller rejects the login
		}
		return g.SignedOut(t, v), true
	case before && t.Policy.confirms(v, t.Now):
		v.Again = t.Now
	}
	next = g
	next.change(t)
	next.turnKeep(t, "")
	next.Verdict = &v
	next.LastError, next.FailedAt = v.Reason, t.Now
	next.NextDueAt = v.At.Add(t.Policy.Confirm(t.Draw))
	if !v.Again.IsZero() {
		next.NextDueAt = v.Again.Add(t.Policy.toThird(v))
	}
	return next, false
}

// RefusedUnsurely is g after a refusal, in unknown words, of the token with this fingerprint. The
// refusal is a failed try like any other, and the beginning of a verdict. The first refusal counts,
// and so do later refusals, ConfirmUnknown apart. done tells that this refusal is final: g is then
// signed out. The caller must have checked the provider's answers to other users before.
func (g Grant) RefusedUnsurely(
	t Turn, f *Fault, failed Failure, presented string,
) (next Grant, done bool) {
	v := Verdict{Reason: schema.ReasonRefusedAlone, Fingerprint: presented, At: t.Now, Unsure: true}
	before := g.Verdict != nil && g.Verdict.Fingerprint == presented && g.Verdict.Unsure
	if before {
		v = *g.Verdict
	}
	v.Code = cmp.Or(f.Code, fmt.Sprintf("status %d", f.Status))
	if g.Doubt != nil && g.Doubt.Fingerprint == presented {
		v.Reason = schema.ReasonRotationLost
	}
	switch {
	case before && t.Policy.Final(v, t.Now, g.NextDueAt):
		return g.SignedOut(t, v), true
	case before && t.Policy.confirms(v, t.Now):
		v.Again = t.Now
	}
	next = g.Failed(t, failed)
	next.Verdict = &v
	return next, false
}

// Held is g when a refusal that would have been final is not believed: the last try is made once
// more, later.
func (g Grant) Held(t Turn, f Failure) Grant {
	next := g.Failed(t, f)
	if g.Verdict == nil {
		return next // other work has just had a success
	}
	v := *g.Verdict
	v.Again = t.Now
	next.Verdict = &v
	next.NextDueAt = later(next.NextDueAt, v.Again.Add(t.Policy.toThird(v)))
	return next
}

// Answer is the user.refresh_failed of a command without a grant to work on: there is no grant, or
// the grant is not live.
func Answer(k Key, t Turn, version int64, reason, source string) schema.Event {
	g := Grant{Key: k, Cause: t.Work.Cause}
	g.Pending = g.pending(schema.UserRefreshFailed, schema.RefreshFailed{
		Cause:   g.Cause,
		BeganAt: t.BeganAt,
		Version: version,
		Reason:  reason,
	})
	return g.Event(source, t.Now, t.Policy.Shown)
}

func (g *Grant) pending(typ schema.Type, data any) *Pending {
	raw, err := json.Marshal(data)
	if err != nil {
		// data is a struct of this module, which can be encoded.
		panic("grant: encode " + string(typ) + ": " + err.Error())
	}
	return &Pending{ID: OutcomeID(g.Key, g.Cause), Type: typ, Version: g.Version, Data: raw}
}

// Event is the stored outcome of g as it is published, with this much of the profile.
func (g *Grant) Event(source string, now time.Time, show Shown) schema.Event {
	return g.event(*g.Pending, source, now, show)
}

func (g *Grant) event(p Pending, source string, now time.Time, show Shown) schema.Event {
	data := p.Data
	if p.Type == schema.UserSynced && !p.Stale {
		if shown := g.Profile.Show(show); shown != "" {
			data = withMember(data, "profile", string(shown))
		}
	}
	return schema.Event{
		ID:       p.ID,
		Source:   source,
		Type:     p.Type,
		Provider: g.Provider,
		User:     g.User,
		Time:     now.UTC(),
		Data:     data,
	}
}

// withMember is object, which is not empty, with one more member at its end.
func withMember(object json.RawMessage, name, value string) json.RawMessage {
	object = bytes.TrimSpace(object)
	out := make([]byte, 0, len(object)+len(name)+len(value)+len(`,"":`))
	out = append(append(append(out, object[:len(object)-1]...), `,"`...), name...)
	return append(append(append(out, `":`...), value...), '}')
}

// Deferred is the cause of work put off after its caller was told so.
func Deferred(k Key, of schema.Cause) schema.Cause {
	return schema.Cause{
		ID:     "deferred-" + OutcomeID(k, of),
		Type:   schema.CauseTimer,
		Source: "/renewd",
		Time:   of.Time,
		Reason: "put off",
	}
}

// outdates reports whether w is a timer from before other work changed the record. The timer may
// have fired before, since servers that were killed fire a timer again. Its id has then named an
// outcome.
func (g *Grant) outdates(w Work) bool {
	return w.Cause.Type == schema.CauseTimer && w.Mark.Version > 0 && w.Mark.Version < g.Version &&
		!g.about(w.Cause) && !g.NextDueAt.IsZero()
}

// TimerOf is the cause of w for g, as stored: an outdated timer does the work of g's present timer.
func (g *Grant) TimerOf(w Work) schema.Cause {
	if !g.outdates(w) {
		return w.Cause
	}
	return g.NextTimer(g.NextDueAt).Cause
}

// Idle reports whether w is an outdated timer, and nothing of g, as stored, is due at now. The
// present timer of g will come, and no outcome may be published under its name before.
func (g *Grant) Idle(w Work, now time.Time) bool {
	return g.outdates(w) && g.Status == Live && g.Due().At.After(now)
}

// NextTimer is the work of a timer of g at this time. Its id follows from the version and the time,
// so that arming the timer twice has the effect of arming it once.
func (g *Grant) NextTimer(at time.Time) Work {
	return Work{Cause: schema.Cause{
		ID:     timerID(g.Version, at),
		Type:   schema.CauseTimer,
		Source: "/renewd",
		Time:   at.UTC(),
		Reason: "due",
	}, Mark: g.Mark()}
}
