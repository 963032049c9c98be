package admin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/schema"
)

// census is the result of a walk over the grants.
type census struct {
	all, live, dormant, ended, signedOut int
	suspended, superseded                int
	unproven, unreadable                 int

	altered, unbound int // records, of erased users too

	overdue, untimed, looked int
	latest                   time.Duration
	alone                    int // failing alone for a day or longer
	unsure                   int // refused in unknown words

	examples []string // of the late and untimed
	odd      []string // of the alone and unsure
	changed  []string // of the altered
}

// overdueAfter is from when on a renewal is late: the reconciler's own measure.
const overdueAfter = time.Minute

// walk looks at every grant, and at the timers of the first grants.
func (x *examination) walk(ctx context.Context, streams bool) Finding {
	var n census
	for page, err := range grant.Pages(ctx, x.on.Store) {
		if err != nil {
			return failed(err, "the store stopped answering: run this again")
		}
		for _, g := range page {
			if err := x.count(ctx, g, &n, streams); err != nil {
				return failed(err, "NATS stopped answering: run this again")
			}
		}
	}
	return x.verdict(n, streams)
}

func (x *examination) count(ctx context.Context, g grant.ListEntry, n *census, streams bool) error {
	if !g.Bound && (g.Err == nil || errors.Is(g.Err, grant.ErrUnbound)) {
		n.unbound++
	}
	if errors.Is(g.Err, grant.ErrAltered) {
		n.altered++
		example(&n.changed, g.Key)
	}
	if g.Err == nil && g.Status == grant.Forgotten {
		return nil // the place of an erased user: no grant
	}
	n.all++
	switch {
	case g.Err != nil:
		n.unreadable++
		return nil
	case g.Status == grant.Unproven:
		n.unproven++
		return nil
	case g.Status == grant.ReauthRequired:
		n.ended++
		return nil
	case g.Status == grant.SignedOff:
		n.signedOut++
		return nil
	case g.Status == grant.Dormant: // dormant: rightly without a timer
		n.dormant++
		return nil
	case g.IsSuperseded():
		n.superseded++
		return nil
	case g.Status != grant.Live:
		n.suspended++
		return nil
	}
	n.live++
	if g.LastError == schema.ReasonFailingAlone {
		n.alone++
		example(&n.odd, g.Key)
	}
	if g.Verdict != nil && g.Verdict.Unsure {
		n.unsure++
		example(&n.odd, g.Key)
	}
	late := time.Since(g.NextDueAt)
	if late > overdueAfter && (g.Claim == nil || g.Claim.Until.Before(time.Now())) {
		n.overdue++
		n.latest = max(n.latest, late)
		example(&n.examples, g.Key)
	}
	if !streams || x.grants > 0 && n.looked >= x.grants {
		return nil
	}
	n.looked++
	err := x.timer(ctx, g.Key)
	if errors.Is(err, errNoTimer) {
		n.untimed++
		example(&n.examples, g.Key)
		return nil
	}
	return err
}

func example(list *[]string, k grant.Key) {
	if len(*list) < 3 {
		*list = append(*list, k.String())
	}
}

// timer returns errNoTimer if the grant neither waits for its time nor is due.
func (x *examination) timer(ctx context.Context, k grant.Key) error {
	for range 2 { // between the two looks a timer may have fired
		has, err := x.on.Engine.HasTimer(ctx, k)
		if has || err != nil {
			return err
		}
	}
	return errNoTimer
}

// opened tells which records cannot be believed.
func (x *examination) opened(n census, worse func(s Condition, found, advice string)) {
	if n.altered > 0 {
		worse(Broken, fmt.Sprintf("%d were changed by another hand than renewd's", n.altered),
			fmt.Sprintf("who but renewd can write to the store? None of it was believed, "+
				"and each of these users must sign in again, for instance %v", n.changed))
	}
	unbound := fmt.Sprintf("%d are not bound to their sealed tokens", n.unbound)
	required := 0
	switch {
	case n.unbound > 0 && x.on.Conf.RequireBound:
		required = n.unbound
		worse(Broken, unbound, "they are not read: set require_bound_records to false until a "+
			"worker has bound them, if you know that a version before wrote them")
	case n.unbound > 0:
		worse(Warning, unbound, "a version before wrote them: a running worker binds them, "+
			"200 in a second; see docs/security.md")
	}
	if other := n.unreadable - n.altered - required; other > 0 {
		worse(Broken, fmt.Sprintf("%d cannot be opened", other),
			"is this the keyring they were written with (RENEWD_KEYS_FILE)?")
	}
}

func (x *examination) verdict(n census, streams bool) Finding {
	f := Finding{State: Fine, Found: fmt.Sprintf("%s: %d live, %d must sign in again, %d suspended",
		plain.Counted(n.all, "grant", "grants"), n.live, n.ended, n.suspended+n.superseded)}
	worse := func(s Condition, found, advice string) {
		if f.State != Broken {
			f.State, f.Advice = s, advice
		}
		f.Found += "; " + found
	}
	if n.unproven > 0 {
		f.Found += fmt.Sprintf(", %d not proven yet", n.unproven)
	}
	if n.dormant > 0 {
		f.Found += fmt.Sprintf(", %d dormant", n.dormant)
	}
	if n.signedOut > 0 {
		f.Found += fmt.Sprintf(", %d signed out", n.signedOut)
	}
	if n.superseded > 0 {
		worse(Warning,
			fmt.Sprintf("%d suspended because their tokens were superseded", n.superseded),
			fmt.Sprintf("as after a restore: %s store check", x.program))
	}
	if n.overdue > 0 {
		state, advice := Warning, fmt.Sprintf("is the provider well? For instance %v; "+
			"the reconciler wakes them within minutes", n.examples)
		if x.idle {
			state, advice = Broken, fmt.Sprintf("no worker runs that could renew them, "+
				"for instance %v: %s serve", n.examples, x.program)
		}
		worse(state,
			fmt.Sprintf("%d overdue, the latest by %v", n.overdue, n.latest.Round(time.Second)),
			advice)
	}
	if n.alone > 0 {
		worse(Warning, fmt.Sprintf("%d failed alone for a day or longer", n.alone),
			fmt.Sprintf("the provider fails for them and renews others, "+
				"but has not said that they must sign in again: ask it why, for instance about %v",
				n.odd))
	}
	if n.unsure > 0 {
		worse(Warning, fmt.Sprintf("%d refused in words that renewd does not know", n.unsure),
			fmt.Sprintf("if others are renewed meanwhile, they are told to sign in again after "+
				"three refusals, hours apart; a rule for this provider says at once what its "+
				"words mean. For instance %v", n.odd))
	}
	if n.untimed > 0 {
		worse(Broken, fmt.Sprintf("%d of %d live ones have no timer", n.untimed, n.looked),
			fmt.Sprintf("the running renewd sets them again once they are a minute late; "+
				"for instance %v. If it happens again, tell us: it must not", n.examples))
	}
	x.opened(n, worse)
	if streams && n.looked < n.live {
		f.Found += fmt.Sprintf("; timers of the first %d were looked at, see --grants", n.looked)
	}
	return f
}
