package grant

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/renewd/renewd/schema"
)

// Turn is one worker's handling of one piece of work: what every change of the record in it has in
// common.
type Turn struct {
	Work    Work
	Nonce   string    // unique for this handling; also of its claim
	BeganAt time.Time // when the work was taken up
	Now     time.Time // when the change is made
	Draw    float64   // in [0,1), for jitter
	Policy  Policy
	// Told are the ids of outcomes which are known to be published: the record need not keep them.
	Told []string
}

// change returns the start of a new version of g, written by t: later than all that is known to
// have been published, also where the store has gone back. Another worker's claim is left alone.
func (g Grant) change(t Turn) Grant {
	g.Version = max(g.Version, t.Work.Mark.Version) + 1
	g.SavedBy = t.Nonce
	if g.Claim != nil && g.Claim.Nonce == t.Nonce {
		g.Claim = nil
	}
	return g
}

// turn marks g as being about t's work. An outcome of other work which nobody is known to have
// published is owed from then on.
func (g Grant) turn(t Turn, progress Progress) Grant {
	g.Owed = g.untold(t.Work.Cause, t.Told)
	g.Cause, g.BeganAt, g.Progress, g.Pending = t.Work.Cause, t.BeganAt, progress, nil
	if IsCommand(t.Work.Cause) {
		g.ActiveAt = t.Now
	}
	return g
}

// Rotated is g with the tokens that came from presenting the refresh token with this fingerprint.
// What the provider left out stays as it was (RFC 6749 section 6), but for the ID token: one that
// came with a login says nothing of these tokens.
func (g Grant) Rotated(t Turn, tokens Tokens, presented string) Grant {
	life := tokens.ExpiresIn
	if life <= 0 {
		life = t.Policy.Lifetime
	}
	life = min(life, t.Policy.MaxLifetime)
	if tokens.Access.IsZero() {
		life = 0 // the answer had no access token that could be read: what matters is that the refresh token is kept
	}
	recovered := g.Recovered || g.failing() || g.Verdict != nil
	old := g.Pair
	g = g.change(t).turn(t, Saved)
	g.Pair = Pair{
		Access: tokens.Access, Refresh: tokens.Refresh, ID: tokens.ID, Answered: !tokens.ID.IsZero(), Scope: tokens.Scope,
		ExpiresAt: tokens.SentAt.Add(life), Lifetime: life, SentAt: tokens.SentAt, Parent: presented,
	}
	if g.Pair.Refresh.IsZero() {
		g.Pair.Refresh = old.Refresh
	}
	if g.Pair.Scope == "" {
		g.Pair.Scope = old.Scope
	}
	g.Status, g.Verdict, g.Doubt = Live, nil, nil
	if !g.OnCandidate() { // whose proof is what counts
		g.Attempts, g.Outages, g.LastError = 0, 0, ""
	}
	g.Refreshed, g.Recovered = true, recovered
	g.RefreshedAt = t.Now
	g.NextDueAt = g.due(t)
	return g
}

// due is when g is to be looked at again: when its tokens are due, or a refusal is to be confirmed.
// It is never before the policy's floor.
func (g Grant) due(t Turn) time.Time {
	if g.Verdict == nil {
		return t.Policy.Due(g.Pair, t.Now, t.Draw)
	}
	at := g.Verdict.At.Add(t.Policy.toSecond(*g.Verdict))
	if !g.Verdict.Again.IsZero() {
		at = g.Verdict.Again.Add(t.Policy.toThird(*g.Verdict))
	}
	if g.Verdict.Unsure {
		at = earlier(at, t.Policy.renewal(g.Pair, t.Draw)) // which may well work
	}
	return later(at, t.Now.Add(t.Policy.Floor))
}

// untold are the outcomes of other causes than this one that the record holds, without those that
// were told.
func (g Grant) untold(cause schema.Cause, told []string) []Pending {
	owed := g.Owed
	if g.Pending != nil && !g.about(cause) {
		owed = append(slices.Clip(owed), *g.Pending)
	}
	return slices.DeleteFunc(slices.Clone(owed), func(p Pending) bool { return slices.Contains(told, p.ID) })
}

// Untold are the outcomes that were decided for other causes than this one and are not among those
// told.
func (g Grant) Untold(cause schema.Cause, told []string) []Pending { return g.untold(cause, told) }

// Told is an outcome of Untold as it is published, with the profile that is stored now.
func (g Grant) Told(p Pending, source string, now time.Time, show Shown) schema.Event {
	return g.event(p, source, now, show)
}

// about reports whether what the record says of a renewal is about this cause.
func (g Grant) about(cause schema.Cause) bool { return SameCause(g.Cause, cause) }

// SameCause reports whether a and b are one command: what identifies it is its source and its id
// together (CloudEvents 1.0, section 3.1.1).
func SameCause(a, b schema.Cause) bool { return a.ID != "" && a.ID == b.ID && a.Source == b.Source }

func (g Grant) failing() bool { return g.Attempts > 0 || g.Outages > 0 }

// Resumed is the working copy of g for t's work when nothing of it is stored yet: no version, no
// write.
func (g Grant) Resumed(t Turn) Grant {
	if g.about(t.Work.Cause) && g.Progress != "" {
		return g
	}
	g.Refreshed, g.Recovered = false, g.Recovered && g.Progress == "" || g.failing() && g.Verdict == nil
	return g.turn(t, "")
}

// WithProfile is g after a profile sync, with the outcome decided. The provider has named the user
// with the access token, so a candidate wins by it. That is told under the name of its login, or,
// where the login was answered before, under one of its own: a command that meets it is done after
// it. write is false if there is nothing worth a write: the outcome can then be made again from what
// is stored.
func (g Grant) WithProfile(t Turn, p Profile) (next Grant, write bool) {
	proven := g.OnCandidate()
	if proven {
		answered := g.Candidate.Answered
		switch {
		case !answered:
			t.Work.Cause = g.Candidate.Cause
		case IsCommand(t.Work.Cause): // which is answered for itself
			t.Work.Cause = g.NextTimer(t.Now).Cause
		}
		g = g.Proven(t)
	}
	changed, differs := compare(g.Profile, p, t.Policy.Volatile)
	next = g
	if refused := g.Verdict; refused != nil && refused.Fingerprint == g.Pair.Access.Fingerprint() {
		next.Verdict = nil // it was a refusal of this access token
	}
	recovers := g.failing() && next.Verdict == nil && g.Doubt == nil
	behind := t.Work.Mark.Version > g.Version
	passed := !g.NextDueAt.After(t.Now) // a timer armed for then would fire at once
	write = proven || differs || g.Profile == "" || g.Progress == "" && g.Recovered || behind || passed || next.Verdict != g.Verdict
	if write {
		next = next.change(t)
		next.Profile, next.SyncedAt = p, t.Now
		if recovers {
			next.Outages, next.Attempts, next.LastError = 0, 0, ""
		}
		if recovers || passed {
			next.NextDueAt = next.due(t)
		}
	}
	next = next.turnKeep(t, Synced)
	next.Pending = next.synced(t, changed, true)
	return next, write
}

// WithoutProfile is g after a renewal whose profile sync failed in passing: a success all the same.
func (g Grant) WithoutProfile(t Turn) Grant {
	g = g.turnKeep(t, Synced)
	g.Pending = g.synced(t, nil, false)
	return g
}

// turnKeep is turn for the later steps of work that began before: began_at stays.
func (g Grant) turnKeep(t Turn, progress Progress) Grant {
	if g.about(t.Work.Cause) && !g.BeganAt.IsZero() {
		t.BeganAt = g.BeganAt
	}
	return g.turn(t, progress)
}

func (g Grant) synced(t Turn, changed []string, fresh bool) *Pending {
	if changed == nil {
		changed = []string{}
	}
	d := schema.Synced{
		Cause: g.Cause, BeganAt: g.BeganAt, Version: g.Version, Refreshed: g.Refreshed, ExpiresAt: g.Pair.ExpiresAt.UTC(),
		NextDueAt: g.NextDueAt.UTC(), Changed: changed, Recovered: g.Recovered,
	}
	pending := g.pending(schema.UserSynced, d)
	pending.Stale = !fresh
	return pending
}

// SignedOut is g when its user must sign in again: the tokens are erased, only their fingerprint
// stays. NextDueAt stays set until Told, so that the reconciler finds a grant of which the world
// was not told yet.
func (g Grant) SignedOut(t Turn, v Verdict) Grant {
	last := g.SyncedAt
	if g.RefreshedAt.After(last) {
		last = g.RefreshedAt
	}
	g = g.change(t).turn(t, Synced)
	v.Confirmed = true
	g.Status, g.Verdict, g.Doubt = ReauthRequired, &v, nil
	g.LastError, g.FailedAt = v.Reason, t.Now
	g.Pair = Pair{ExpiresAt: g.Pair.ExpiresAt, Lifetime: g.Pair.Lifetime, SentAt: g.Pair.SentAt, Parent: v.Fingerprint}
	g.NextDueAt = t.Now
	g.Refreshed, g.Recovered = false, false
	g.Pending = g.pending(schema.UserReauthRequired, schema.ReauthRequired{
		Cause: g.Cause, BeganAt: g.BeganAt, Version: g.Version, Reason: v.Reason, ProviderError: v.Code, LastSyncedAt: last.UTC(),
	})
	// Not the id of the cause alone: that may have been answered before, by an event that was
	// published again.
	g.Pending.ID = OutcomeID(g.Key, schema.Cause{
		Source: g.Cause.Source, ID: fmt.Sprintf("%s\x00signed out %d", g.Cause.ID, g.Version),
	})
	return g
}

// Resting reports whether g is not renewed and all that it has to say was told: nobody need look at
// it before a login or an operator.
func (g Grant) Resting() bool { return g.Status != Live && g.Candidate == nil && g.NextDueAt.IsZero() }

// Rested is g, which is not renewed, once all that it has to say is published: nothing is due any
// more, but for a candidate, which has a time of its own. Nothing that others care about changes.
func (g Grant) Rested(t Turn) Grant {
	g.SavedBy, g.NextDueAt, g.Owed = t.Nonce, time.Time{}, nil
	return g
}

// Failure is a try that did not work and is no verdict on the user.
type Failure struct {
	Reason string        // a reason of user.refresh_failed
	Code   string        // the provider's error code
	Own    bool          // this grant's own, not an outage of the provider: it uses up a try
	Wait   time.Duration // at least this long before the next try; 0: backoff alone
	Final  bool          // further tries in a row are no use: answer now and wait RetryLater
}

// urgency is how long a token whose answer was lost is presented again without backoff: longer than
// any grace window that is known of.
const urgency = 2 * time.Minute

// Failed is g after f, with the time of the next try as NextDueAt. If the tries are used up it
// carries the outcome that says so; the tries go on.
func (g Grant) Failed(t Turn, f Failure) Grant {
	g = g.change(t).turnKeep(t, "")
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
		// The token may be spent, and the provider forgive that for some seconds only.
		wait = max(t.Policy.RetryMin, f.Wait, t.Policy.Floor)
	}
	g.NextDueAt = t.Now.Add(wait)
	// A grant whose profile fails keeps its tokens fresh all the same.
	if due := t.Policy.renewal(g.Pair, t.Draw); due.After(t.Now) && !g.Pair.Refresh.IsZero() {
		g.NextDueAt = earlier(g.NextDueAt, due)
	}
	if spent && (f.Own || *count == t.Policy.Tries || IsCommand(t.Work.Cause)) {
		next := g.NextDueAt.UTC()
		g.Progress = Synced
		g.Pending = g.pending(schema.UserRefreshFailed, schema.RefreshFailed{
			Cause: g.Cause, BeganAt: g.BeganAt, Version: g.Version, Reason: f.Reason, ProviderError: f.Code, Attempts: *count, NextAttemptAt: &next,
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
// refusal is written down and asked again after the policy's confirm wait, the second likewise;
// done tells that this one is final, and g is then signed out, or, on its candidate, unchanged. A
// refusal of a token that is no longer the stored one says nothing: the caller must check that
// first.
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
			return g, true // nobody is signed out: the caller rejects the login
		}
		return g.SignedOut(t, v), true
	case before && t.Policy.confirms(v, t.Now):
		v.Again = t.Now
	}
	next = g.change(t).turnKeep(t, "")
	next.Verdict = &v
	next.LastError, next.FailedAt = v.Reason, t.Now
	next.NextDueAt = v.At.Add(t.Policy.Confirm(t.Draw))
	if !v.Again.IsZero() {
		next.NextDueAt = v.Again.Add(t.Policy.toThird(v))
	}
	return next, false
}

// RefusedUnsurely is g after a refusal in words that nobody knows of the token with this fingerprint:
// a failed try like any other, and a verdict in the making. The first refusal counts, and the next
// ones a policy's ConfirmUnknown apart; done tells that this one is final, and g is then signed out. The
// caller must have asked before what others were told.
func (g Grant) RefusedUnsurely(t Turn, f *Fault, failed Failure, presented string) (next Grant, done bool) {
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

// Held is g when a refusal that would have been final is not to be believed: it is asked for a last
// time once more.
func (g Grant) Held(t Turn, f Failure) Grant {
	next := g.Failed(t, f)
	if g.Verdict == nil {
		return next // somebody has just had a success
	}
	v := *g.Verdict
	v.Again = t.Now
	next.Verdict = &v
	next.NextDueAt = later(next.NextDueAt, v.Again.Add(t.Policy.toThird(v)))
	return next
}

// Answer is the user.refresh_failed of a command that cannot be worked on: there is no grant, or it
// is not live.
func Answer(k Key, t Turn, version int64, reason, source string) schema.Event {
	g := Grant{Key: k, Cause: t.Work.Cause}
	g.Pending = g.pending(schema.UserRefreshFailed, schema.RefreshFailed{Cause: g.Cause, BeganAt: t.BeganAt, Version: version, Reason: reason})
	return g.Event(source, t.Now, t.Policy.Shown)
}

func (g Grant) pending(typ schema.Type, data any) *Pending {
	raw, err := json.Marshal(data)
	if err != nil {
		panic("grant: encode " + string(typ) + ": " + err.Error()) // structs of this module: cannot happen
	}
	return &Pending{ID: OutcomeID(g.Key, g.Cause), Type: typ, Version: g.Version, Data: raw}
}

// OutcomeID is the id of the outcome that answers a cause for a grant: a redelivery publishes the
// same id again, so it is stored once. A cause is its source and its id together.
func OutcomeID(k Key, cause schema.Cause) string {
	sum := sha256.Sum256([]byte("renewd outcome\x00" + k.Provider + "\x00" + k.User + "\x00" + cause.Source + "\x00" + cause.ID))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// Event is the stored outcome of g as it is published, with this much of the profile.
func (g Grant) Event(source string, now time.Time, show Shown) schema.Event {
	return g.event(*g.Pending, source, now, show)
}

func (g Grant) event(p Pending, source string, now time.Time, show Shown) schema.Event {
	data := p.Data
	if p.Type == schema.UserSynced && !p.Stale {
		if shown := g.Profile.Show(show); shown != "" {
			data = withMember(data, "profile", string(shown))
		}
	}
	return schema.Event{ID: p.ID, Source: source, Type: p.Type, Provider: g.Provider, User: g.User, Time: now.UTC(), Data: data}
}

// withMember is object, which is not empty, with one more member at its end.
func withMember(object json.RawMessage, name, value string) json.RawMessage {
	object = bytes.TrimSpace(object)
	out := make([]byte, 0, len(object)+len(name)+len(value)+len(`,"":`))
	out = append(append(append(out, object[:len(object)-1]...), `,"`...), name...)
	return append(append(append(out, `":`...), value...), '}')
}

// Deferred is the cause of work that was put off after whoever asked was told so.
func Deferred(k Key, of schema.Cause) schema.Cause {
	return schema.Cause{ID: "deferred-" + OutcomeID(k, of), Type: schema.CauseTimer, Source: "/renewd", Time: of.Time, Reason: "put off"}
}

// outdates reports whether w is a timer of before the record was changed, by other work. It may
// have fired before, as servers that were killed fire one again: its id has named an outcome then.
func (g Grant) outdates(w Work) bool {
	return w.Cause.Type == schema.CauseTimer && w.Mark.Version > 0 && w.Mark.Version < g.Version && !g.about(w.Cause) && !g.NextDueAt.IsZero()
}

// TimerOf is the cause of w as g, as stored, has it: an outdated timer does the work of the timer
// that g has now.
func (g Grant) TimerOf(w Work) schema.Cause {
	if !g.outdates(w) {
		return w.Cause
	}
	return g.NextTimer(g.NextDueAt).Cause
}

// Idle reports whether w is an outdated timer, and nothing of g, as stored, is due at now: the timer
// that g has now will come. Nothing may be told under its name before.
func (g Grant) Idle(w Work, now time.Time) bool {
	return g.outdates(w) && g.Status == Live && g.Due().At.After(now)
}

// NextTimer is the work of the timer that g wants at, made so that arming it twice is arming it
// once.
func (g Grant) NextTimer(at time.Time) Work {
	return Work{Cause: schema.Cause{
		ID: timerID(g.Version, at), Type: schema.CauseTimer, Source: "/renewd", Time: at.UTC(), Reason: "due",
	}, Mark: g.Mark()}
}
