package refresh

import (
	"context"

	"github.com/renewd/renewd/internal/grant"
)

// checkRollback finds out whether g is older than what was published. A timer's first delivery
// needs only the timer's mark. A request, a repair and a redelivery ask the streams.
func (r *record) checkRollback(ctx context.Context, g *grant.Grant) error {
	if !r.work.Unsure(g) && r.m.Deliveries <= 1 {
		return nil
	}
	newest, err := r.Outcomes.Newest(ctx, r.key)
	if err != nil {
		return retry(err)
	}
	r.learn(g.Mark())
	r.learn(newest)
	if r.work.Mark.Version > g.Version && !r.work.Mark.Supersedes(g) {
		r.Logger.Warn("the stored record is older than what was published; "+
			"its refresh token is the same, so it goes on from there",
			"grant", r.key, "stored", g.Version, "published", r.work.Mark.Version)
		r.meters.found(ctx, r.key.Provider, "continued")
	}
	return nil
}

// supersede ends the work on a grant whose refresh token is superseded. The token is never
// presented: a provider that takes the token for stolen ends the user's session. If the pair that
// superseded the token is at hand, this pair is stored instead.
func (r *renewal) supersede(ctx context.Context, g *grant.Grant) (step, error) {
	if last := r.pairs.last; last != nil && last.mark == r.work.Mark {
		r.Logger.Warn("the store has lost a pair that it had acknowledged; it is saved again",
			"grant", r.key)
		ok, err := r.pairs.save(ctx, g, last.tokens)
		return saved(g, ok), err
	}
	parcel, found, err := r.pairs.newest(ctx)
	if err != nil {
		return done, err
	}
	if found {
		pair, err := r.pairs.open(parcel)
		if err != nil {
			return done, err
		}
		ok, err := r.pairs.apply(ctx, g, parcel, pair)
		return saved(g, ok), err
	}
	if err := r.noLoginWaits(ctx); err != nil {
		return done, err
	}
	ok, err := r.record.update(ctx, g, func(cur *grant.Grant) bool {
		if r.decision(cur) != grant.Suspend {
			return false
		}
		*cur = cur.Superseded(r.turn())
		return true
	})
	if !ok || err != nil {
		return load, err
	}
	r.Logger.Error("the stored refresh token is superseded and was not presented: "+
		"the store is older than what was published", "grant", r.key,
		"hint", "was the store restored from a backup? The user's next login ends this; "+
			"to use the stored tokens all the same: renewd store accept")
	r.meters.found(ctx, r.key.Provider, "suspended")
	return publish, nil
}

// newest is the parked pair if no later pair of the grant is known. The record before the pair is
// lost, so the pair's version has to tell, not its parent.
func (p *pairs) newest(ctx context.Context) (_ grant.Parcel, found bool, _ error) {
	parcel, found, err := p.parked(ctx)
	if err != nil || !found || parcel.Candidate || parcel.Version < p.work.Mark.Version {
		return grant.Parcel{}, false, err
	}
	return parcel, true, nil
}
