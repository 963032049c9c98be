package stream

import (
	"context"
	"fmt"
	"github.com/renewd/renewd/internal/topology"
	"slices"
)

// Size is how much of its room a stream has used.
type Size struct {
	Stream string // before a prefix
	Bytes  uint64
	Limit  uint64 // 0: no limit
}

// Full is the used share of the limit; 0 without a limit.
func (s Size) Full() float64 {
	if s.Limit == 0 {
		return 0
	}
	return float64(s.Bytes) / float64(s.Limit)
}

// crowdedAt is the share of a stream's limit from which on there is an alarm.
const crowdedAt = 0.75

// Crowded reports whether the stream is so full that an operator has to act.
func (s Size) Crowded() bool { return s.Full() >= crowdedAt }

// Hint says what comes if a crowded stream is left as it is, and what to do.
func (s Size) Hint() string {
	if s.Stream == topology.Outcomes {
		return "once it is full the oldest outcomes go, " +
			"also those that a subscriber has not read: " +
			"raise outcome_bytes and apply it (streams apply), or keep outcomes for less long " +
			"(synced_age, outcome_age)"
	}
	return "once it is full its publishers get an error: is renewd running and keeping up? " +
		"Else raise command_bytes and apply it (streams apply)"
}

// alarm logs a stream that is filling up, once until there is room again. Only Run calls it.
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
