package stream

import (
	"context"
	"fmt"
	"slices"
)

// Size is how much of its room one stream has used.
type Size struct {
	Stream string // before a prefix
	Bytes  uint64
	Limit  uint64 // 0: none
}

// Full is the share of the limit that is used; 0 without a limit.
func (s Size) Full() float64 {
	if s.Limit == 0 {
		return 0
	}
	return float64(s.Bytes) / float64(s.Limit)
}

// crowdedAt is the share of a stream's limit from which on there is an alarm.
const crowdedAt = 0.75

// Crowded reports whether the stream is so full that it is time to do something.
func (s Size) Crowded() bool { return s.Full() >= crowdedAt }

// Hint says what comes if nothing is done about a crowded stream, and what to do.
func (s Size) Hint() string {
	if s.Stream == Outcomes {
		return "once it is full the oldest outcomes go, also those that a subscriber has not read: " +
			"raise outcome_bytes and apply it (streams apply), or keep outcomes for less long " +
			"(synced_age, outcome_age)"
	}
	return "once it is full its publishers get an error: is renewd running and keeping up? " +
		"Else raise command_bytes and apply it (streams apply)"
}

// alarm logs that a stream is filling up, once until there is room again. Only Run calls it.
func (e *Engine) alarm(ctx context.Context, sizes []Size) {
	for _, s := range sizes {
		was := slices.Contains(e.crowded, s.Stream)
		switch {
		case s.Crowded() && !was:
			e.crowded = append(e.crowded, s.Stream)
			e.config.Logger.ErrorContext(ctx, "a stream is filling up", "stream", s.Stream,
				"used", percent(s.Full()), "bytes", s.Bytes, "limit", s.Limit, "hint", s.Hint())
		case !s.Crowded() && was:
			e.crowded = slices.DeleteFunc(e.crowded, func(n string) bool { return n == s.Stream })
			e.config.Logger.InfoContext(ctx, "the stream has room again", "stream", s.Stream,
				"used", percent(s.Full()))
		}
	}
}

func percent(share float64) string { return fmt.Sprintf("%.0f %%", 100*share) }

// WithoutBounds is c without the limits of bytes that streams which are there do not have yet, and
// the names of those streams: an operator decides about them. With cutOnly it leaves out only the
// limits that the server would delete messages for.
func (c Changes) WithoutBounds(cutOnly bool) (rest Changes, left []string) {
	rest = Changes{Items: slices.Clone(c.Items), Force: c.Force}
	for i := range rest.Items {
		if item := &rest.Items[i]; item.leaveBounds(cutOnly) {
			left = append(left, item.Name)
		}
	}
	return rest, left
}

func (c *Change) leaveBounds(cutOnly bool) bool {
	bound := func(d Difference) bool { return d.Field == "max_bytes" || d.Field == "discard" }
	cuts := func(d Difference) bool { return bound(d) && d.Refused != "" }
	if c.Action != Update || c.Kind != "stream" || c.stream.MaxBytes <= 0 ||
		!slices.ContainsFunc(c.Differences, bound) {
		return false
	}
	if cutOnly && !slices.ContainsFunc(c.Differences, cuts) {
		return false
	}
	c.stream.MaxBytes, c.stream.Discard = c.have.MaxBytes, c.have.Discard
	c.Differences = slices.DeleteFunc(slices.Clone(c.Differences), bound)
	c.settle()
	return true
}
