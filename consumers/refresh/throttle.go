package refresh

import (
	"context"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// cooldown is how long the provider is to be left alone with the tokens of g; 0: call now. presents
// says that the refresh token is to be presented, and not a profile asked for. A user with a newer
// login does not wait behind users who are refused.
func (p *Provider) cooldown(g *grant.Grant, presents bool) time.Duration {
	if p.Guard == nil {
		return 0
	}
	login, refused := g.LoginAt, g.Verdict != nil
	if g.OnCandidate() {
		login, refused = g.Login.Time, true // the tokens were never seen to work
	}
	if presents {
		return p.Guard.WaitToPresent(login, refused)
	}
	return p.Guard.Wait(login)
}

// coldest is the longest possible cooldown of a grant that is not loaded yet.
func (p *Provider) coldest() time.Duration {
	if p.Guard == nil {
		return 0
	}
	return p.Guard.WaitToPresent(time.Time{}, true)
}

// waitRate waits until the provider's rate allows another call. A replay does not wait, because it
// must come before the grace window is over.
func (p *Provider) waitRate(ctx context.Context) error {
	if p.Limiter == nil {
		return nil
	}
	if err := p.Limiter.Wait(ctx); err != nil {
		return retry(err)
	}
	return nil
}

// report tells the guard how a call with the tokens of g ended. A candidate's fault counts only if
// it says nothing of the tokens: a service that publishes garbage must not make a provider look
// ill, or its users gone.
func (p *Provider) report(g *grant.Grant, f *grant.Fault) {
	switch {
	case p.Guard == nil:
	case g.OnCandidate() && f != nil && f.Class != grant.Throttled && f.Class != grant.Unsent:
	default:
		v := g.Verdict
		again := f != nil && v != nil &&
			(v.Fingerprint == g.Fingerprint() || v.Fingerprint == g.Pair.Access.Fingerprint())
		p.Guard.Report(f, again)
	}
}
