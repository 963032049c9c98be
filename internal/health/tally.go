package health

import (
	"slices"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// Tally counts how calls ended.
type Tally struct {
	OK        int `json:"ok,omitempty"`
	Dead      int `json:"dead,omitempty"`      // users refused for the first time
	Again     int `json:"again,omitempty"`     // users refused once more
	Failed    int `json:"failed,omitempty"`    // outages: unsent, ambiguous
	Config    int `json:"config,omitempty"`    // our settings refused
	Throttled int `json:"throttled,omitempty"` // asked for patience
	// Unknown are the users refused for the first time in unknown words, UnknownAgain the users
	// refused in unknown words once more.
	Unknown      int `json:"unknown,omitempty"`
	UnknownAgain int `json:"unknown_again,omitempty"`
	// Quiet is the latest time until which a throttling answer asked to be left alone; zero: no
	// answer named a time.
	Quiet time.Time `json:"quiet,omitzero"`
}

// tallied is how one call ended; f is nil for a success.
func tallied(f *grant.Fault, again bool, now time.Time) Tally {
	switch {
	case f == nil:
		return Tally{OK: 1}
	case f.Class == grant.Permanent && again:
		return Tally{Again: 1}
	case f.Class == grant.Permanent:
		return Tally{Dead: 1}
	case f.Class == grant.Config:
		return Tally{Config: 1}
	case f.Class == grant.Unknown && again:
		return Tally{UnknownAgain: 1}
	case f.Class == grant.Unknown:
		return Tally{Unknown: 1}
	case f.Class == grant.Throttled && f.RetryAfter > 0:
		return Tally{Throttled: 1, Quiet: now.Add(min(f.RetryAfter, maxQuiet)).UTC()}
	case f.Class == grant.Throttled:
		return Tally{Throttled: 1}
	}
	return Tally{Failed: 1}
}

func (t Tally) add(u Tally) Tally {
	return Tally{
		OK:           t.OK + u.OK,
		Dead:         t.Dead + u.Dead,
		Again:        t.Again + u.Again,
		Failed:       t.Failed + u.Failed,
		Config:       t.Config + u.Config,
		Throttled:    t.Throttled + u.Throttled,
		Unknown:      t.Unknown + u.Unknown,
		UnknownAgain: t.UnknownAgain + u.UnknownAgain,
		Quiet:        later(t.Quiet, u.Quiet),
	}
}

// answers are the calls that say something about a user: the provider takes our settings.
func (t Tally) answers() int { return t.OK + t.Dead + t.Again }

// bad are the calls that say something against the provider, or our settings.
func (t Tally) bad() int { return t.Failed + t.Config + t.Throttled }

// denied are the calls that refused a user, in known or unknown words.
func (t Tally) denied() int { return t.Dead + t.Again + t.Unknown + t.UnknownAgain }

// refused are the calls that renewed no user, though the provider answered.
func (t Tally) refused() int { return t.denied() + t.Config }

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Answers are remembered in pieces of fine for fineFor, and in pieces of coarse for coarseFor. A
// verdict is weighed against the provider's answers to all users since the verdict was first given.
// In a backlog this can be long ago.
const (
	fine, fineFor     = 2 * time.Second, 2 * time.Minute
	coarse, coarseFor = time.Minute, time.Hour
	bucketsMost       = int(fineFor/fine + coarseFor/coarse + 4)
)

// Bucket counts the answers in one piece of time.
type Bucket struct {
	From time.Time `json:"from"`
	OK   int       `json:"ok,omitempty"`
	Dead int       `json:"dead,omitempty"`
	// Again are users refused once more, Unknown users refused for the first time in unknown words,
	// UnknownAgain users refused in unknown words once more.
	Again        int  `json:"again,omitempty"`
	Unknown      int  `json:"unknown,omitempty"`
	UnknownAgain int  `json:"unknown_again,omitempty"`
	Coarse       bool `json:"coarse,omitempty"`
}

// after counts the answers that came after at, or may have come after it. Of a piece across at,
// refusals count. If the piece is long, its successes do not count, so that successes before at
// speak against no user.
func (b Bucket) after(at time.Time) Tally {
	t := Tally{
		OK:           b.OK,
		Dead:         b.Dead,
		Again:        b.Again,
		Unknown:      b.Unknown,
		UnknownAgain: b.UnknownAgain,
	}
	switch {
	case b.Coarse && !b.From.Add(coarse).After(at), !b.Coarse && !b.From.Add(fine).After(at):
		return Tally{}
	case b.Coarse && b.From.Before(at):
		t.OK = 0
	}
	return t
}

// with is b with the counts of t added.
func (b Bucket) with(t Tally) Bucket {
	b.OK, b.Dead, b.Again = b.OK+t.OK, b.Dead+t.Dead, b.Again+t.Again
	b.Unknown, b.UnknownAgain = b.Unknown+t.Unknown, b.UnknownAgain+t.UnknownAgain
	return b
}

// lately is list with t at its end, older pieces made coarse, and too old pieces left out. The
// shared list stays unchanged.
func lately(list []Bucket, t Tally, now time.Time) []Bucket {
	if t.OK+t.denied() == 0 {
		return list
	}
	if n := len(list); n == 0 || list[n-1].Coarse || now.Sub(list[n-1].From) >= fine {
		list = append(slices.Clip(list), Bucket{From: now.UTC()})
	}
	out := make([]Bucket, 0, len(list))
	for _, b := range list {
		age := now.Sub(b.From)
		if age > coarseFor+coarse {
			continue
		}
		if age > fineFor && !b.Coarse {
			b.From, b.Coarse = b.From.Truncate(coarse), true
		}
		if n := len(out); n > 0 && b.Coarse && out[n-1].Coarse && out[n-1].From.Equal(b.From) {
			b = b.with(out[n-1].after(time.Time{}))
			out = out[:n-1]
		}
		out = append(out, b)
	}
	out[len(out)-1] = out[len(out)-1].with(t)
	return out[max(0, len(out)-bucketsMost):]
}

// since counts the answers after at, as far as remembered.
func (s State) since(at time.Time) Tally {
	var sum Tally
	for _, b := range s.Lately {
		sum = sum.add(b.after(at))
	}
	return sum
}

// Said counts the provider's answers to users since a time, as far as remembered.
func (s State) Said(since time.Time) Tally { return s.since(since) }

// renewed reports whether a user was renewed since.
func (s State) renewed(since time.Time) bool {
	return slices.ContainsFunc(s.Lately, func(b Bucket) bool {
		return b.OK > 0 && !b.From.Before(since)
	})
}

func share(part, whole int) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}
