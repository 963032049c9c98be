package refresh

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
)

// claim takes the grant for one presentation, and decides again on the record as claimed.
func (r *renewal) claim(ctx context.Context, g *grant.Grant) (step, error) {
	if wait := r.cooldown(ctx, g); wait > 0 {
		return done, r.timers.postpone(ctx, wait)
	}
	if err := r.provider.waitRate(ctx); err != nil {
		return done, err
	}
	taken := r.Now()
	request := grant.ClaimRequest{
		Nonce:     r.nonce,
		For:       r.ClaimFor,
		Cause:     r.work.Cause,
		Presented: true,
		Loaded:    r.record.loaded,
	}
	if g.OnCandidate() {
		request.Fingerprint = g.Fingerprint()
	}
	stored, prior, err := r.Store.Claim(ctx, r.key, request)
	switch {
	case errors.Is(err, grant.ErrNotFound):
		return load, nil
	case err != nil:
		return done, retry(err)
	}
	r.learn(stored.Mark())
	r.record.seen = taken
	if prior != nil && prior.Nonce != r.nonce && prior.Presented &&
		stored.Holds(prior.Fingerprint) {
		r.Logger.Warn("a presentation of this refresh token ended unknown",
			"grant", r.key, "cause", prior.Cause.ID)
		stored, r.record.lost = stored.Unknown(*prior), prior
	}
	r.noteTold(&stored)
	unclaimed := stored
	unclaimed.Claim = nil
	if err := r.pairs.findParked(ctx, &unclaimed); err != nil {
		return done, errors.Join(err, r.record.giveBack(ctx, &unclaimed))
	}
	*g = r.choose(unclaimed)
	*g = g.Resumed(r.turn())
	if unclaimed.Idle(r.given, r.Now()) || !r.wants(g, request) {
		return load, r.record.giveBack(ctx, &unclaimed) // another worker was faster
	}
	g.Claim = stored.Claim
	r.held = r.hold(taken, request)
	return unpark, nil
}

// cooldown is how long no token of g is to be presented. A record not loaded yet is loaded only if
// a grant of the provider may have to wait.
func (j *job) cooldown(ctx context.Context, g *grant.Grant) time.Duration {
	if g.Revision != 0 {
		return j.provider.cooldown(g, true)
	}
	coldest := j.provider.coldest()
	if coldest == 0 {
		return 0
	}
	stored, err := j.Store.Load(ctx, j.key)
	if err != nil {
		return coldest
	}
	chosen := j.choose(stored)
	return j.provider.cooldown(&chosen, true)
}

// wants reports whether g, seen without the claim, still wants the token of the claim presented.
func (j *job) wants(g *grant.Grant, request grant.ClaimRequest) bool {
	fingerprint := ""
	if g.OnCandidate() {
		fingerprint = g.Fingerprint()
	}
	return request.Fingerprint == fingerprint && j.decision(g) == grant.Refresh
}

// claimed is a claim of this worker. Heartbeats extend the claim until release.
type claimed struct {
	since atomic.Pointer[time.Time] // just before the claim was last taken or extended
	mu    sync.Mutex                // held while the claim is extended
	over  bool
}

// hold has the claim of this request extended with the lease.
func (j *job) hold(taken time.Time, request grant.ClaimRequest) *claimed {
	c := &claimed{}
	c.since.Store(&taken)
	request.Extend, request.Loaded = true, nil
	j.m.KeepAlive(func(ctx context.Context) error { return j.extend(ctx, c, request) })
	return c
}

// extend prolongs the claim.
func (j *job) extend(ctx context.Context, c *claimed, request grant.ClaimRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return nil
	}
	before := j.Now()
	_, _, err := j.Store.Claim(ctx, j.key, request)
	if err == nil {
		c.since.Store(&before)
	}
	if errors.Is(err, grant.ErrClaimed) || errors.Is(err, grant.ErrNotFound) {
		return fmt.Errorf("%w: %w", runner.ErrLeaseLost, err)
	}
	return err
}

// release ends the extending. When release returns no extension is under way, so no extension can
// follow the save that clears the claim. release may be called more than once, and on nil.
func (c *claimed) release() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
}

// live reports whether the claim is surely still this worker's at now. The claim counts from just
// before its request, less a margin.
func (c *claimed) live(now time.Time, lasts time.Duration) bool {
	return now.Sub(*c.since.Load()) < lasts-lasts/5
}

// watch calls end when the claim is about to run out unextended, unless stop is called before. If
// both happen at once, end may still be called.
func (c *claimed) watch(now func() time.Time, lasts time.Duration, end func()) (stop func()) {
	left := func() time.Duration { return c.since.Load().Add(lasts - lasts/20).Sub(now()) }
	var timer *time.Timer
	timer = time.AfterFunc(math.MaxInt64, func() { // not yet: the function needs timer
		if wait := left(); wait > 0 {
			timer.Reset(wait) // extended meanwhile
			return
		}
		end()
	})
	timer.Reset(left())
	return func() { timer.Stop() }
}
