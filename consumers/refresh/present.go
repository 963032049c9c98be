package refresh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// refresh claims the grant, presents its refresh token once, and saves what comes back before
// anything else. decided is the record that asked for it, on its side; the zero Grant if none was
// looked at.
func (t *task) refresh(ctx context.Context, decided grant.Grant) error {
	if wait := t.quiet(ctx, decided, true); wait > 0 {
		return t.later(ctx, wait)
	}
	if err := t.pace(ctx); err != nil {
		return err
	}
	claim, g, err := t.claim(ctx, decided)
	if err != nil {
		return err
	}
	defer claim.release()
	if g, done, err := t.unpark(ctx, claim, g); done || err != nil {
		if err != nil {
			return err
		}
		return t.sync(ctx, g)
	}
	if err := t.unsaved.room(ctx); err != nil {
		return consumers.Retry(err, time.Second)
	}
	tokens, fault := t.present(ctx, claim, g)
	if fault != nil && mayReplay(fault) && ctx.Err() == nil {
		// The token may be spent, the reply is lost: the same one again at once, while the provider
		// may still honour it.
		g = g.Doubted(t.Stream.Now())
		tokens, fault = t.present(ctx, claim, g)
	}
	claim.release()
	if fault != nil {
		t.unsaved.none()
		return t.faulted(ctx, g, fault)
	}
	g, err = t.saveAnswer(ctx, g, tokens)
	if err != nil {
		return err
	}
	return t.sync(ctx, g)
}

// mayReplay reports whether the provider's answer was lost on the way, rather than the provider
// being out of order: only then does asking again at once have a point.
func mayReplay(f *grant.Fault) bool { return f.Class == grant.Ambiguous && f.Status < 300 }

// claimed is a claim in hand. Beats extend it until release.
type claimed struct {
	since atomic.Pointer[time.Time] // just before it was last taken or extended
	mu    sync.Mutex                // held while it is extended
	over  bool
}

// live reports whether the claim is surely still ours at now: it counts from before it was asked
// for, less a margin.
func (c *claimed) live(now time.Time, lasts time.Duration) bool {
	return now.Sub(*c.since.Load()) < lasts-lasts/5
}

// watch calls end when the claim is about to run out unextended, unless stop is called before.
// Where both happen at once it may still be called.
func (c *claimed) watch(now func() time.Time, lasts time.Duration, end func()) (stop func()) {
	left := func() time.Duration { return c.since.Load().Add(lasts - lasts/20).Sub(now()) }
	var timer *time.Timer
	timer = time.AfterFunc(math.MaxInt64, func() { // not yet: it needs timer
		if wait := left(); wait > 0 {
			timer.Reset(wait) // extended meanwhile
			return
		}
		end()
	})
	timer.Reset(left())
	return func() { timer.Stop() }
}

// release ends the extending; when it returns no extension is under way, so that none can come
// after the save that clears the claim.
func (c *claimed) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
}

// claim takes the grant for one presentation, and decides again on the record as it is under the
// claim.
func (t *task) claim(ctx context.Context, decided grant.Grant) (*claimed, grant.Grant, error) {
	c := &claimed{}
	asked := t.Stream.Now()
	c.since.Store(&asked)
	request := grant.ClaimRequest{Nonce: t.nonce, For: t.ClaimFor, Cause: t.work.Cause, Presented: true, Loaded: t.loaded}
	if decided.OnCandidate() {
		request.Fingerprint = decided.Fingerprint()
	}
	stored, prior, err := t.Store.Claim(ctx, t.key, request)
	switch {
	case errors.Is(err, grant.ErrNotFound):
		return nil, stored, errAgain
	case err != nil:
		return nil, stored, consumers.Retry(err, time.Second)
	}
	t.work.Mark, t.seen = t.work.Mark.Newest(stored.Mark()), asked
	if prior != nil && prior.Nonce != t.nonce && prior.Presented && stored.Holds(prior.Fingerprint) {
		t.Logger.Warn("a presentation of this refresh token ended unknown", "grant", t.key, "cause", prior.Cause.ID)
		stored = stored.Unknown(*prior)
	}
	t.note(stored)
	unclaimed := stored
	unclaimed.Claim = nil
	if err := t.parkedFirst(ctx, unclaimed); err != nil {
		return nil, stored, errors.Join(err, t.giveBack(ctx, unclaimed))
	}
	g := t.turned(unclaimed).Resumed(t.turn())
	if unclaimed.Idle(t.given, t.Stream.Now()) || !t.presents(g, request) {
		if err := t.giveBack(ctx, unclaimed); err != nil {
			return nil, g, err
		}
		return nil, g, errAgain // somebody else was faster
	}
	g.Claim = stored.Claim
	request.Extend, request.Loaded = true, nil
	t.m.Hold(func(ctx context.Context) error { return t.extend(ctx, c, request) })
	return c, g, nil
}

// giveBack ends a claim under which nothing was presented.
func (t *task) giveBack(ctx context.Context, g grant.Grant) error {
	g = g.AsStored()
	g.Claim = nil
	if _, err := t.Store.Save(ctx, g); err != nil && !errors.Is(err, grant.ErrConflict) {
		return consumers.Retry(err, time.Second)
	}
	return nil
}

// presents reports whether g, as it is without the claim, still wants the token presented that the
// claim was taken for.
func (t *task) presents(g grant.Grant, r grant.ClaimRequest) bool {
	same := !g.OnCandidate() && r.Fingerprint == "" || g.OnCandidate() && r.Fingerprint == g.Fingerprint()
	return same && grant.Decide(g, t.work, t.provider.Policy, t.Stream.Now()) == grant.Refresh
}

// extend prolongs the claim with the lease.
func (t *task) extend(ctx context.Context, c *claimed, request grant.ClaimRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return nil
	}
	before := t.Stream.Now()
	_, _, err := t.Store.Claim(ctx, t.key, request)
	if err == nil {
		c.since.Store(&before)
	}
	if errors.Is(err, grant.ErrClaimed) || errors.Is(err, grant.ErrNotFound) {
		return fmt.Errorf("%w: %w", consumers.ErrLeaseLost, err)
	}
	return err
}

var errClaimOver = errors.New("the claim ran out before the provider answered, and could not be extended")

// present makes the one call that spends the token.
func (t *task) present(ctx context.Context, c *claimed, g grant.Grant) (grant.Tokens, *grant.Fault) {
	if !t.m.Held() || !c.live(t.Stream.Now(), t.ClaimFor) {
		// Stalled since the claim: it may have run out, and the grant be in somebody else's hand by
		// now.
		return grant.Tokens{}, &grant.Fault{Class: grant.Unsent, Op: "refresh", Err: consumers.ErrLeaseLost}
	}
	began := time.Now()
	// Once the token has left, nothing calls it back: a lost lease or a shutdown that ended the
	// call would only lose the answer, and with it the pair. What ends the call, beside the
	// client's timeout, is the end of the claim: from then on another worker may present the token,
	// and two must never be under way.
	call, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	stop := c.watch(t.Stream.Now, t.ClaimFor, func() { end(errClaimOver) })
	sent := t.Stream.Now() // by the clock that all workers share
	tokens, err := t.provider.Client.Refresh(call, g.Pair.Refresh)
	stop()
	if tokens.SentAt.IsZero() {
		tokens.SentAt = sent
	}
	fault := asFault("refresh", err)
	t.meters.called(ctx, t.key.Provider, "refresh", fault, time.Since(began))
	t.report(g, fault)
	return tokens, fault
}

// asFault makes every error of a client a *grant.Fault: what is not one is ambiguous, never a
// verdict.
func asFault(op string, err error) *grant.Fault {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*grant.Fault](err); ok {
		return f
	}
	return &grant.Fault{Class: grant.Ambiguous, Op: op, Err: err}
}

func (t *task) saveAnswer(ctx context.Context, g grant.Grant, tokens grant.Tokens) (grant.Grant, error) {
	t.unsaved.answered()
	defer t.unsaved.saved()
	return t.savePair(ctx, g, tokens)
}

// savePair stores a fresh pair. Nothing may come between the provider's answer and this, and
// nothing ends it but the store having the pair: a shutdown does not, a lost lease does not. While
// the store does not take it, or takes its time, the pair is parked: a worker that is killed then
// loses nothing.
func (t *task) savePair(ctx context.Context, g grant.Grant, tokens grant.Tokens) (grant.Grant, error) {
	presented := g.Fingerprint()
	work := ctx
	ctx = context.WithoutCancel(ctx)
	var waits backoff.BackOff = backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(50*time.Millisecond), backoff.WithMaxInterval(2*time.Second), backoff.WithMaxElapsedTime(0))
	spare := t.spare(ctx, g.Rotated(t.turn(), tokens, presented))
	var ended time.Time
	for {
		next, err := t.savePairOnce(ctx, &g, tokens, presented)
		if err == nil || errors.Is(err, errAgain) {
			spare.drop(ctx)
			return next, err
		}
		parked := spare.keep(ctx, err)
		if work.Err() != nil && ended.IsZero() {
			ended = time.Now()
		}
		if !ended.IsZero() && (parked || time.Since(ended) > t.SaveLimit) {
			if !parked {
				t.Logger.Error("a rotated pair is lost: neither the store nor the stream took it", "grant", t.key, "error", err)
				t.meters.lost.Add(ctx, 1)
			}
			spare.late.Stop()
			return next, consumers.Retry(err, time.Second)
		}
		<-time.After(waits.NextBackOff())
	}
}

// savePairOnce tries to store the pair on top of *g, and moves *g to the newest record on a
// conflict.
func (t *task) savePairOnce(ctx context.Context, g *grant.Grant, tokens grant.Tokens, presented string) (grant.Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		next := g.Rotated(t.turn(), tokens, presented)
		rev, err := t.Store.Save(ctx, next.AsStored())
		if err == nil {
			next.Revision, t.seen = rev, t.Stream.Now()
			if !next.OnCandidate() {
				t.rotated = &rotated{next.Mark(), tokens}
			}
			t.work.Mark = next.Mark()
			return next, nil
		}
		if !errors.Is(err, grant.ErrConflict) {
			return *g, err
		}
		cur, err := t.Store.Load(ctx, t.key)
		switch {
		case errors.Is(err, grant.ErrNotFound), err == nil && cur.Status == grant.Forgotten:
			t.Logger.Info("dropped a fresh pair: the user was erased meanwhile", "grant", t.key)
			return *g, errAgain
		case err != nil:
			return *g, err
		}
		// The candidate that the pair is of may have been proven meanwhile: then the pair belongs
		// to what is proven.
		side, ok := g.Beside(cur)
		switch {
		case !ok && !cur.Accepts(presented, tokens.SentAt):
			t.Logger.Info("dropped a fresh pair: the login that it is of was proven by a newer one, or rejected", "grant", t.key)
			t.meters.superseded.Add(ctx, 1)
			return *g, errAgain
		case side.SavedBy == t.nonce && side.Pair.Parent == presented && side.Pair.Refresh.Equal(next.Pair.Refresh):
			return side, nil // the save had worked, its reply was lost
		case t.overtaken(*g, side, tokens, presented):
			// Never revoke it: at some providers that would end the newer login too.
			t.Logger.Info("dropped a fresh pair: a newer login or answer is stored", "grant", t.key)
			t.meters.superseded.Add(ctx, 1)
			return *g, errAgain
		}
		t.note(cur)
		*g = side.Resumed(t.turn())
	}
}

// overtaken reports whether cur holds something newer than the answer to the presentation that g
// was made for. A record with an older version than g is no newer login: the store was restored
// meanwhile, and this pair is the newest there is.
func (t *task) overtaken(g, cur grant.Grant, tokens grant.Tokens, presented string) bool {
	return cur.Version >= g.Version && !cur.Accepts(presented, tokens.SentAt)
}

// faulted writes down a presentation that brought no tokens, or a refusal of the access token of a
// grant that has no other.
func (t *task) faulted(ctx context.Context, g grant.Grant, f *grant.Fault) error {
	refused := g.Fingerprint()
	if g.Pair.Refresh.IsZero() {
		refused = g.Pair.Access.Fingerprint()
	}
	t.logFault(ctx, f)
	if f.Class == grant.Unsent && errors.Is(f, consumers.ErrLeaseLost) {
		return consumers.Retry(f, time.Second)
	}
	// The outcome of a call must be written down also when the work was cut short meanwhile.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	held, doubt, final := t.hold(ctx, g, f, refused), g.Doubt, false
	failed := t.failure(g, f)
	if held != "" {
		failed = heldBack(held, f)
	}
	if (held != "" || f.Class != grant.Permanent) && t.hopeless(g, failed) {
		return t.reject(ctx, g, "tokens", "the provider could not be brought to name their user: "+failed.Reason)
	}
	g, err := t.update(ctx, g, func(cur grant.Grant) (grant.Grant, bool) {
		if cur.Fingerprint() != refused && cur.Pair.Access.Fingerprint() != refused {
			return cur, false // a newer login, or somebody else's answer: this one says nothing about it
		}
		if cur.Doubt == nil {
			cur.Doubt = doubt
		}
		switch {
		case held != "":
			return cur.Held(t.turn(), failed), true
		case t.judges(cur, f):
			next, done := t.judged(cur, f, failed, refused)
			if final = done; done && !cur.OnCandidate() && cur.Candidate != nil {
				final = false // a login has come since it was weighed
				return cur.Held(t.turn(), heldBack(schema.ReasonUnweighed, f)), true
			}
			return next, !(done && cur.OnCandidate())
		case f.Class == grant.Ambiguous:
			cur = cur.Doubted(t.Stream.Now())
		}
		return cur.Failed(t.turn(), failed), true
	})
	switch {
	case final && g.OnCandidate():
		return t.reject(ctx, g, "tokens", "the provider refuses them")
	case err != nil:
		return err
	case final:
		t.Logger.Info("user must sign in again", "grant", t.key, "reason", g.Verdict.Reason, "code", g.Verdict.Code)
	}
	return t.finish(ctx, g)
}

func (t *task) logFault(ctx context.Context, f *grant.Fault) {
	level := slog.LevelWarn
	switch f.Class {
	case grant.Config:
		level = slog.LevelError
	case grant.Permanent:
		level = slog.LevelInfo // users leave
	}
	t.Logger.Log(ctx, level, f.Op+" failed", "grant", t.key, "class", f.Class, "error", f, "hint", hint(f))
	if f.Detail != "" {
		t.Logger.DebugContext(ctx, "what the provider says of it", "grant", t.key, "op", f.Op, "detail", f.Detail)
	}
}

// heldBack is how a refusal counts that is not to be believed now. While most users are refused, or
// nobody is renewed, asking again soon is how one learns that it is over; settings that never
// worked wait for somebody to look at them.
func heldBack(reason string, f *grant.Fault) grant.Failure {
	own := reason == schema.ReasonUnproven
	return grant.Failure{Reason: reason, Code: f.Code, Own: own, Final: own}
}

// alone is for how long a user must have failed, while others are renewed, for that to be told.
const alone = 24 * time.Hour

// failure is how a fault of g that is no verdict counts. Whoever has failed alone for a day is told
// once, and tried on like anybody else: the provider has not said that the user must sign in again.
func (t *task) failure(g grant.Grant, f *grant.Fault) grant.Failure {
	out := failure(f)
	lasts := g.Outages > 0 && !g.FailingSince.IsZero() && t.Stream.Now().Sub(g.FailingSince) >= alone
	if out.Reason != schema.ReasonProviderUnavailable || g.OnCandidate() || !lasts || t.provider.Guard == nil || !t.provider.Guard.Renewing() {
		return out
	}
	out.Own = !g.ToldAlone
	out.Reason, out.Final = schema.ReasonFailingAlone, out.Own
	return out
}

// failure is how a fault that is no verdict counts.
func failure(f *grant.Fault) grant.Failure {
	out := grant.Failure{Code: f.Code, Wait: f.RetryAfter}
	switch f.Class {
	case grant.Throttled:
		out.Reason = schema.ReasonThrottled
	case grant.Config:
		out.Reason = schema.ReasonConfig
	case grant.Unknown, grant.Permanent:
		out.Reason, out.Own = schema.ReasonProviderUnknown, true
	default:
		out.Reason = schema.ReasonProviderUnavailable
	}
	return out
}

func hint(f *grant.Fault) string {
	switch f.Class {
	case grant.Config:
		return "check this provider's client id, secret, client_auth and URLs in renewd's settings; no user is signed out by it"
	case grant.Throttled:
		return "the provider asks for patience; lower this provider's rate or concurrency if it goes on"
	case grant.Unknown:
		return "an answer nobody knows. While others are renewed it is taken for a dead session after three of them, hours apart; a rule for this provider says at once what it means (settings: rules)"
	case grant.Permanent:
		return "asked once more before the user is told to sign in again"
	default:
		return "tried again with backoff"
	}
}
