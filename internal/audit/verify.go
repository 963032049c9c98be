package audit

import (
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/renewd/renewd/schema"
)

// Ages are how long outcomes are kept at least.
type Ages struct {
	Outcome, Synced, Rejected time.Duration
}

// of is how long an outcome of a type is kept at least. A failure can be about a user of whom
// nothing is stored, and is then kept as shortly as a rejection.
func (a Ages) of(t schema.Type) time.Duration {
	switch t {
	case schema.UserSynced, schema.TokenRead:
		return a.Synced
	case schema.MessageRejected, schema.UserRefreshFailed:
		return a.Rejected
	}
	return a.Outcome
}

// expires is the age from which an outcome of a type may be gone. The age in the stream counts by
// another clock than the outcome's own time, hence the overlap. Where outcomes are kept for as long
// as the overlap only, half of it must do, or no outcome would be missed.
func (a Ages) expires(t schema.Type) time.Duration {
	age := a.of(t)
	return age - min(overlap, age/2)
}

// Report compares a chain with the stored outcomes.
type Report struct {
	Present int    `json:"present"` // in the chain, and stored as they were
	Expired int    `json:"expired"` // in the chain, and gone after their time
	Erased  int    `json:"erased"`  // in the chain, and gone since their user was erased
	Missing int    `json:"missing"` // in the chain, and gone before their time
	Foreign int    `json:"foreign"` // stored between the chain's outcomes: changed, or put in
	Moved   int    `json:"moved"`   // stored in another order
	Newer   int    `json:"newer"`   // stored after the chain's newest outcome
	Head    string `json:"head"`
	// First names some of the missing, foreign or moved outcomes.
	First []string `json:"first,omitempty"`
}

// Intact reports whether nothing was removed, changed, put in or moved.
func (r Report) Intact() bool { return r.Missing+r.Foreign+r.Moved == 0 }

// mostNamed is how many outcomes a report names.
const mostNamed = 10

func (r *Report) name(n *int, what, text string) {
	*n++
	if len(r.First) < mostNamed {
		r.First = append(r.First, what+" "+text)
	}
}

// Verify compares the chain with all stored outcomes, the oldest first.
func (c *Chain) Verify(
	outcomes iter.Seq2[schema.Event, error], ages Ages, now time.Time,
) (Report, error) {
	r := Report{Head: c.head}
	found := make([]bool, len(c.lines))
	erased := map[string]time.Time{} // a user, and when erased
	var unknown []schema.Event       // since the newest outcome of the chain
	next := 0
	for e, err := range outcomes {
		if bad, foreign := errors.AsType[*schema.Malformed](err); foreign {
			r.name(&r.Foreign, "foreign", bad.Error())
			continue
		}
		if err != nil {
			return r, err
		}
		if e.Type == schema.UserForgotten {
			erased[c.userOf(e)] = e.Time
		}
		at, known := c.at[c.lineOf(e).digest]
		switch {
		case !known:
			unknown = append(unknown, e)
			continue
		case at < next:
			r.name(&r.Moved, "moved", c.lines[at].front())
		default:
			next = at + 1
		}
		found[at] = true
		for _, e := range unknown {
			r.name(&r.Foreign, "foreign", fmt.Sprintf("%s %s %s", e.Time.Format(time.RFC3339),
				e.Type, e.ID))
		}
		unknown = nil
	}
	r.Newer = len(unknown)
	c.count(&r, found, erased, ages, now)
	return r, nil
}

// count tells for each line why its outcome is, or is not, stored.
func (c *Chain) count(
	r *Report, found []bool, erased map[string]time.Time, ages Ages, now time.Time,
) {
	for i, l := range c.lines {
		forgotten, ok := erased[l.user]
		switch {
		case found[i]:
			r.Present++
		case now.Sub(l.time) >= ages.expires(l.of):
			r.Expired++
		case ok && !l.time.After(forgotten):
			r.Erased++
		default:
			r.name(&r.Missing, "missing", l.front())
		}
	}
}
