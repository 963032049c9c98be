package refresh

import (
	"context"
	"errors"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
)

// keep stores the profile if there is anything new, and the outcome with the profile.
func (r *renewal) keep(ctx context.Context, g *grant.Grant) (step, error) {
	read := r.read
	next, write := g.WithProfile(r.turn(), read)
	if !write {
		*g = next
		return publish, nil
	}
	proves, access, replaced := g.OnCandidate(), g.Pair.Access, secret.Value{}
	if proves {
		replaced = g.Candidate.Pair.Refresh
	}
	ok, err := r.record.update(ctx, g, func(cur *grant.Grant) bool {
		if !cur.Pair.Access.Equal(access) || cur.Status != grant.Live {
			return false // a newer login or rotation: sync the newer pair
		}
		*cur, _ = cur.WithProfile(r.turn(), read)
		return true
	})
	if errors.Is(err, grant.ErrRefused) {
		return r.withoutProfile(ctx, g, &grant.Fault{
			Class: grant.Unknown,
			Op:    "userinfo",
			Err:   err,
		})
	}
	if !ok || err != nil {
		return load, err
	}
	r.calls.revoke(ctx, replaced)
	if proves {
		if r.asked, err = r.outcomes.unanswered(ctx, g); err != nil {
			return done, err
		}
	}
	return publish, nil
}

// revoke ends the session that a newer login replaced, if the settings want so. Whether the
// revocation works or not, nothing of the user changes here.
func (c *calls) revoke(ctx context.Context, replaced secret.Value) {
	if replaced.IsZero() || !c.provider.RevokeReplaced {
		return
	}
	if err := c.provider.Client.Revoke(ctx, replaced); err != nil {
		c.Logger.Warn("the tokens that a newer login replaced could not be revoked; "+
			"they live on until they end", "grant", c.key, "error", err)
	}
}
