package senders

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/renewd/renewd/schema"
)

// Gate holds commands against the rate of their senders: so many commands of each type a second,
// over all workers. A Gate is safe for concurrent use.
//
// A command beyond the rate is refused at once. It could wait instead, but then a flood would fill
// the place where commands wait. So its sender learns of the refusal by an answer, and nothing of
// the flood reaches the queue that all senders share, the store or the provider.
//
// While the permits that all workers share cannot be reached, no command is refused. Each process
// lets in as many as the rate allows it alone, and the rest at their redelivery.
type Gate struct {
	now      func() time.Time
	limiters map[kind]limiter
}

// kind is one type of command of one sender.
type kind struct {
	sender string
	of     schema.Type
}

type limiter struct {
	shared Permits       // nil: own is the only limit
	own    *rate.Limiter // of this process, while the shared permits cannot be reached
	rights Rights
}

// Permits are how many commands of one type and one sender all workers together may let in.
type Permits interface {
	// Take reports whether another command may be let in now. An error leaves the question open.
	Take(ctx context.Context) (bool, error)
}

// Share makes the permits of a rate and burst that all workers share. The name is the same at every
// worker, and no other permits have the name.
type Share func(name string, rate float64, burst int) Permits

// NewGate returns the gate of a list. A sender without a rate is let through. Without share this
// process counts for itself.
func NewGate(l List, now func() time.Time, share Share) *Gate {
	g := &Gate{now: now, limiters: map[kind]limiter{}}
	for sender, rights := range l {
		if rights.Rate <= 0 {
			continue
		}
		for _, of := range schema.Commands() {
			own := rate.NewLimiter(rate.Limit(rights.Rate), rights.burst())
			limit := limiter{own: own, rights: rights}
			if share != nil {
				limit.shared = share(sender+"."+string(of), rights.Rate, rights.burst())
			}
			g.limiters[kind{sender, of}] = limit
		}
	}
	return g
}

// burst is how many commands may come at once: ten seconds' worth, unless the rights set a burst.
func (r Rights) burst() int {
	if r.Burst > 0 {
		return r.Burst
	}
	return max(1, int(10*r.Rate))
}

// Admit says why a command is beyond its sender's rate; nil if it is not. The error is a
// *schema.Malformed, or an error of rejected or of the shared permits: then the command is to be
// delivered again.
//
// A redelivered command is not counted a second time. It is refused if its rejection is out, as
// rejected tells, and else let in, so that it does not get two answers.
func (g *Gate) Admit(
	ctx context.Context, e schema.Event, deliveries uint64,
	rejected func(context.Context) (bool, error),
) error {
	limit, limited := g.limiters[kind{e.Sender, e.Type}]
	if !limited {
		return nil
	}
	if deliveries > 1 {
		if before, err := rejected(ctx); err != nil || !before {
			return err
		}
	} else if ok, err := limit.allows(ctx, g.now()); ok || err != nil {
		return err
	}
	return &schema.Malformed{
		Reason: schema.RejectSenderRate, Field: "sender",
		Message: fmt.Sprintf("%s publishes more %s than renewd's setting senders.%s.rate allows, "+
			"%g a second after %d at once: nothing was done for this one; publish it again later",
			e.Sender, e.Type, e.Sender, limit.rights.Rate, limit.rights.burst()),
	}
}

// allows reports whether another command may be let in. An error leaves the question open, and
// means that this process has let in its share meanwhile.
func (l limiter) allows(ctx context.Context, now time.Time) (bool, error) {
	if l.shared == nil {
		return l.own.AllowN(now, 1), nil
	}
	ok, err := l.shared.Take(ctx)
	if err != nil && l.own.AllowN(now, 1) {
		return true, nil
	}
	return ok, err
}
