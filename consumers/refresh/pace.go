package refresh

import (
	"context"
	"errors"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// quiet is how long the provider is to be left alone, by who would present a refresh token, or by who
// would ask for a profile only; 0 when it may be asked. g, which may not be read yet, is looked at
// only where others wait: who has signed in since does not wait behind those who are refused.
func (t *task) quiet(ctx context.Context, g grant.Grant, presents bool) time.Duration {
	if t.provider.Guard == nil {
		return 0
	}
	wait := func(login time.Time, refused bool) time.Duration {
		if presents {
			return t.provider.Guard.WaitToPresent(login, refused)
		}
		return t.provider.Guard.Wait(login)
	}
	if g.Revision == 0 {
		first := wait(time.Time{}, true)
		if first == 0 {
			return 0
		}
		stored, err := t.Store.Load(ctx, t.key)
		if err != nil {
			return first
		}
		g = t.turned(stored)
	}
	if g.OnCandidate() {
		return wait(g.Login.Time, true) // nobody has seen it work
	}
	return wait(g.LoginAt, g.Verdict != nil)
}

// later puts the work off until the wait is over, spread so that not all come at once.
func (t *task) later(ctx context.Context, wait time.Duration) error {
	spread := time.Duration(t.Rand() * float64(min(wait, 30*time.Second)))
	if !t.m.Held() {
		return consumers.Retry(consumers.ErrLeaseLost, time.Second)
	}
	at := t.Stream.Now().Add(wait + spread)
	if err := t.Stream.Arm(ctx, t.key, at, t.work.PutOff(at)); err != nil {
		return consumers.Retry(err, time.Second)
	}
	return nil
}

// report tells the guard how a call ended. Of a candidate only what says nothing of its tokens
// counts: whoever publishes garbage must not make a provider look ill, or its users gone.
func (t *task) report(g grant.Grant, f *grant.Fault) {
	switch {
	case t.provider.Guard == nil:
	case g.OnCandidate() && f != nil && f.Class != grant.Throttled && f.Class != grant.Unsent:
	default:
		again := f != nil && g.Verdict != nil && (g.Verdict.Fingerprint == g.Fingerprint() || g.Verdict.Fingerprint == g.Pair.Access.Fingerprint())
		t.provider.Guard.Report(f, again)
	}
}

// judges reports whether f may become a verdict on g, or confirm it: a refusal in words that are
// known, or, of what is proven, in others. A refusal in plain words that was never confirmed says
// nothing any more once the others could be.
func (t *task) judges(g grant.Grant, f *grant.Fault) bool {
	unsure := f.Class == grant.Unknown && f.Op == "refresh" && !g.OnCandidate()
	if v := g.Verdict; unsure && v != nil && !v.Unsure {
		return t.Stream.Now().Sub(v.At) >= t.provider.Policy.ConfirmUnknown
	}
	return unsure || f.Class == grant.Permanent
}

// judged is g after a refusal that judges says counts, and whether it is final.
func (t *task) judged(g grant.Grant, f *grant.Fault, failed grant.Failure, refused string) (next grant.Grant, final bool) {
	if f.Class == grant.Permanent {
		return g.Refused(t.turn(), f, refused)
	}
	return g.RefusedUnsurely(t.turn(), f, failed, refused)
}

// hold asks why a refusal must not be final now: the first two never are, the third one needs the
// guard's word. Of an access token it also needs that userinfo has named somebody since the second
// one, for it may refuse everybody. What cannot be asked holds it too.
func (t *task) hold(ctx context.Context, g grant.Grant, f *grant.Fault, refused string) (reason string) {
	v := g.Verdict
	if !t.judges(g, f) || v == nil || v.Unsure != (f.Class == grant.Unknown) || v.Fingerprint != refused || !t.provider.Policy.Final(*v, t.Stream.Now(), g.NextDueAt) {
		return ""
	}
	if f.Op == "userinfo" && t.provider.named.Load() < v.Again.UnixNano() {
		return schema.ReasonNobodyRenewed
	}
	if waits, err := t.Stream.LoginWaits(ctx, t.key); !g.OnCandidate() && (waits || err != nil || g.Candidate != nil) {
		return schema.ReasonUnweighed // who has just signed in is not told to
	}
	if t.provider.Guard == nil {
		if v.Unsure {
			return schema.ReasonNobodyRenewed // nobody can tell
		}
		return ""
	}
	reason, err := t.provider.Guard.Hold(ctx, *v)
	if err != nil {
		t.Logger.Warn("a refusal could not be weighed against what others were told; it is asked for again", "grant", t.key, "error", err)
		return schema.ReasonUnweighed
	}
	return reason
}

var errLoginWaits = errors.New("a newer login of this user is about to be stored")

// pace waits for one call of the provider's rate. Each call has its own, but for a replay: it must
// come before the grace window is over.
func (t *task) pace(ctx context.Context) error {
	if t.provider.Limiter == nil {
		return nil
	}
	if err := t.provider.Limiter.Wait(ctx); err != nil {
		return consumers.Retry(err, time.Second)
	}
	return nil
}
