package grant

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/renewd/renewd/schema"
)

// Turn is one worker's handling of one piece of work: what every change of the record in it has in common.
type Turn struct {
	Work    Work
	Nonce   string    // unique for this handling; also of its claim
	BeganAt time.Time // when the work was taken up
	Now     time.Time // when the change is made
	Draw    float64   // in [0,1), for jitter
	Policy  Policy
}

// change returns the start of a new version of g, written by t: later than all that is known to have been published, also
// where the store has gone back. Another worker's claim is left alone.
func (g Grant) change(t Turn) Grant {
	g.Version = max(g.Version, t.Work.Mark.Version) + 1
	g.SavedBy = t.Nonce
	if g.Claim != nil && g.Claim.Nonce == t.Nonce {
		g.Claim = nil
	}
	return g
}

// turn marks g as being about t's work.
func (g Grant) turn(t Turn, progress Progress) Grant {
	g.Cause, g.BeganAt, g.Progress, g.Pending = t.Work.Cause, t.BeganAt, progress, nil
	if IsCommand(t.Work.Cause) {
		g.ActiveAt = t.Now
	}
	return g
}

// Rotated is g with the tokens that came from presenting the refresh token with this fingerprint. What the provider left
// out stays as it was (RFC 6749 section 6).
func (g Grant) Rotated(t Turn, tokens Tokens, presented string) Grant {
	life := tokens.ExpiresIn
	if life <= 0 {
		life = t.Policy.Lifetime
	}
	recovered := g.Recovered || g.failing() || g.Verdict != nil
	old := g.Pair
	g = g.change(t).turn(t, Saved)
	g.Pair = Pair{
		Access: tokens.Access, Refresh: tokens.Refresh, ID: tokens.ID, Scope: tokens.Scope,
		ExpiresAt: tokens.SentAt.Add(life), Lifetime: life, SentAt: tokens.SentAt, Parent: presented,
	}
	if g.Pair.Refresh.IsZero() {
		g.Pair.Refresh = old.Refresh
	}
	if g.Pair.ID.IsZero() {
		g.Pair.ID = old.ID
	}
	if g.Pair.Scope == "" {
		g.Pair.Scope = old.Scope
	}
	g.Status, g.Verdict, g.Doubt = Live, nil, nil
	g.Attempts, g.Outages, g.LastError = 0, 0, ""
	g.Refreshed, g.Recovered = true, recovered
	g.RefreshedAt = t.Now
	g.NextDueAt = t.Policy.Due(g.Pair, t.Now, t.Draw)
	return g
}

func (g Grant) failing() bool { return g.Attempts > 0 || g.Outages > 0 }

// Resumed is the working copy of g for t's work when nothing of it is stored yet: no version, no write.
func (g Grant) Resumed(t Turn) Grant {
	if g.Cause.ID == t.Work.Cause.ID && g.Progress != "" {
		return g
	}
	g.Refreshed, g.Recovered = false, g.Recovered && g.Progress == "" || g.failing() && g.Verdict == nil
	return g.turn(t, "")
}

// WithProfile is g after a profile sync, with the outcome decided. write is false if there is nothing worth a write: the
// outcome can then be made again from what is stored.
func (g Grant) WithProfile(t Turn, p Profile) (next Grant, write bool) {
	changed := Changed(g.Profile, p)
	next = g
	behind := t.Work.Mark.Version > g.Version
	if write = len(changed) > 0 || g.Profile == "" || g.Progress == "" && g.Recovered || behind; write {
		next = next.change(t)
		next.Profile, next.SyncedAt = p, t.Now
		if g.failing() && g.Verdict == nil {
			next.Outages, next.Attempts, next.LastError = 0, 0, ""
			next.NextDueAt = t.Policy.Due(next.Pair, t.Now, t.Draw)
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
	if g.Cause.ID == t.Work.Cause.ID && !g.BeganAt.IsZero() {
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

// SignedOut is g when its user must sign in again: the tokens are erased, only their fingerprint stays.
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
	g.NextDueAt = time.Time{}
	g.Refreshed, g.Recovered = false, false
	g.Pending = g.pending(schema.UserReauthRequired, schema.ReauthRequired{
		Cause: g.Cause, BeganAt: g.BeganAt, Version: g.Version, Reason: v.Reason, ProviderError: v.Code, LastSyncedAt: last.UTC(),
	})
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

// urgency is how long a token whose answer was lost is presented again without backoff: longer than any grace window that
// is known of.
const urgency = 2 * time.Minute

// Failed is g after f, with the time of the next try as NextDueAt. If the tries are used up it carries the outcome that
// says so; the tries go on.
func (g Grant) Failed(t Turn, f Failure) Grant {
	g = g.change(t).turnKeep(t, "")
	count := &g.Outages
	if f.Own {
		count = &g.Attempts
	}
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
	if due := t.Policy.due(g.Pair, t.Draw); due.After(t.Now) && due.Before(g.NextDueAt) {
		g.NextDueAt = due
	}
	if spent && (f.Own || *count == t.Policy.Tries || IsCommand(t.Work.Cause)) {
		next := g.NextDueAt.UTC()
		g.Progress = Synced
		g.Pending = g.pending(schema.UserRefreshFailed, schema.RefreshFailed{
			Cause: g.Cause, BeganAt: g.BeganAt, Version: g.Version, Reason: f.Reason, ProviderError: f.Code, Attempts: *count, NextAttemptAt: &next,
		})
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

// Refused is g after a permanent fault on presenting the token with this fingerprint. The first refusal is written down and
// asked again after the policy's confirm wait, the second likewise; done tells that this one is final and g is signed out. A refusal
// of a token that is no longer the stored one says nothing: the caller must check Accepts first.
func (g Grant) Refused(t Turn, f *Fault, presented string) (next Grant, done bool) {
	v := Verdict{Reason: f.Reason, Code: f.Code, Fingerprint: presented, At: t.Now}
	if v.Reason == "" {
		v.Reason = schema.ReasonRevoked
	}
	before := g.Verdict != nil && g.Verdict.Fingerprint == presented
	if before {
		v.At, v.Again, v.Reason = g.Verdict.At, g.Verdict.Again, g.Verdict.Reason
	}
	if g.Doubt != nil && g.Doubt.Fingerprint == presented {
		v.Reason = schema.ReasonRotationLost // also if the doubt came after the first refusal
	}
	switch {
	case before && t.Policy.Final(v, t.Now):
		return g.SignedOut(t, v), true
	case before && t.Policy.confirms(v, t.Now):
		v.Again = t.Now
	}
	next = g.change(t).turnKeep(t, "")
	next.Verdict = &v
	next.LastError, next.FailedAt = v.Reason, t.Now
	next.NextDueAt = v.At.Add(t.Policy.Confirm(t.Draw))
	if !v.Again.IsZero() {
		next.NextDueAt = v.Again.Add(t.Policy.hindsight())
	}
	return next, false
}

// Held is g when a refusal that would have been final is not to be believed: it is asked for a last time once more.
func (g Grant) Held(t Turn, f Failure) Grant {
	next := g.Failed(t, f)
	v := *g.Verdict
	v.Again = t.Now
	next.Verdict = &v
	return next
}

// Answer is the user.refresh_failed of a command that cannot be worked on: there is no grant, or it is not live.
func Answer(k Key, t Turn, version int64, reason, source string) schema.Event {
	g := Grant{Key: k, Cause: t.Work.Cause}
	g.Pending = g.pending(schema.UserRefreshFailed, schema.RefreshFailed{Cause: g.Cause, BeganAt: t.BeganAt, Version: version, Reason: reason})
	return g.Event(source, t.Now)
}

// LoggedIn is the record after a login: cur is what is stored (the zero Grant if nothing is), and the mark of t's work the
// latest that is known of it. stale tells that cur already has this login or a newer one.
func LoggedIn(cur Grant, k Key, pair Pair, order Order, t Turn) (next Grant, stale bool) {
	if cur.Revision != 0 && !cur.Login.Before(order) {
		return cur, true
	}
	next = cur
	next.Key = k
	next.Version = max(cur.Version+1, t.Work.Mark.Version+1, t.Now.UnixMilli())
	next.Recovered = cur.Status == ReauthRequired || cur.Status == Suspended
	f := pair.Refresh.Fingerprint()
	// The same tokens published again: what we have since made of them is newer, and they are spent.
	if replay := cur.Status == Live && f != "" && (f == cur.Pair.Parent || f == cur.Fingerprint()); !replay {
		next.Pair, next.Claim, next.Doubt, next.Verdict = pair, nil, nil, nil
		next.RefreshedAt = time.Time{}
	}
	next.Status, next.Login, next.SavedBy = Live, order, t.Nonce
	next.Cause, next.BeganAt, next.Progress, next.Pending, next.Refreshed = schema.Cause{}, time.Time{}, "", nil, false
	next.Attempts, next.Outages, next.LastError = 0, 0, ""
	next.LoginAt, next.ActiveAt = t.Now, t.Now
	next.NextDueAt = t.Policy.Due(next.Pair, t.Now, t.Draw)
	return next, false
}

func (g Grant) pending(typ schema.Type, data any) *Pending {
	raw, err := json.Marshal(data)
	if err != nil {
		panic("grant: encode " + string(typ) + ": " + err.Error()) // structs of this module: cannot happen
	}
	return &Pending{ID: OutcomeID(g.Key, g.Cause.ID), Type: typ, Data: raw}
}

// OutcomeID is the id of the outcome that answers a cause for a grant: a redelivery publishes the same id again, so it is
// stored once.
func OutcomeID(k Key, cause string) string {
	sum := sha256.Sum256([]byte("renewd outcome\x00" + k.Provider + "\x00" + k.User + "\x00" + cause))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// Event is the stored outcome of g as it is published.
func (g Grant) Event(source string, now time.Time) schema.Event {
	data := g.Pending.Data
	if g.Pending.Type == schema.UserSynced && g.Profile != "" && !g.Pending.Stale {
		data = withMember(data, "profile", string(g.Profile))
	}
	return schema.Event{
		ID: g.Pending.ID, Source: source, Type: g.Pending.Type, Provider: g.Provider, User: g.User, Time: now.UTC(), Data: data,
	}
}

// withMember is object, which is not empty, with one more member at its end.
func withMember(object json.RawMessage, name, value string) json.RawMessage {
	object = bytes.TrimSpace(object)
	out := make([]byte, 0, len(object)+len(name)+len(value)+len(`,"":`))
	out = append(append(append(out, object[:len(object)-1]...), `,"`...), name...)
	return append(append(append(out, `":`...), value...), '}')
}

// NextTimer is the work of the timer that g wants at, made so that arming it twice is arming it once.
func (g Grant) NextTimer(at time.Time) Work {
	return Work{Cause: schema.Cause{
		ID: fmt.Sprintf("timer-%d-%d", g.Version, at.Unix()), Type: schema.CauseTimer, Source: "/renewd", Time: at.UTC(), Reason: "due",
	}, Mark: g.Mark()}
}
