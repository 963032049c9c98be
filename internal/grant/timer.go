package grant

import (
	"time"

	"github.com/renewd/renewd/schema"
)

// Timer is work that waits for its time. A grant has one at most.
type Timer struct {
	At   time.Time
	Work Work
}

// Over says what is to wait for a grant when t is armed where there waits already; it is there
// itself if t changes nothing.
//
// A command is never lost, nor is a time that was earlier: a timer takes the place of one that is
// later and no command. What a command and a timer both want is done for the command, at the
// earlier time; of two commands the newer one names the outcome, which answers both. A timer made
// from an older record than there knows less, and gives way.
func (t Timer) Over(there Timer) Timer {
	command, waits := IsCommand(t.Work.Cause), IsCommand(there.Work.Cause)
	if !command && there.Work.Mark.Version > t.Work.Mark.Version {
		return there
	}
	next, other := t, there
	switch {
	case t.Work.sameCause(there.Work):
		next.Work.Deferrals = max(t.Work.Deferrals, there.Work.Deferrals)
	case waits && !command,
		waits && there.Work.Cause.Time.After(t.Work.Cause.Time),
		!waits && !command && there.At.Before(t.At):
		next, other = there, t
	}
	next.Work = next.Work.Stronger(other.Work)
	if other.At.Before(next.At) {
		next.At = other.At
	}
	return next
}

func (w Work) sameCause(o Work) bool {
	return w.Cause.ID == o.Cause.ID && w.Cause.Source == o.Cause.Source && w.Cause.Type == o.Cause.Type
}

// Stronger is w with the stronger want of both, and the latest that both know of the record.
func (w Work) Stronger(o Work) Work {
	if o.Want == schema.WantTokens {
		w.Want = o.Want
	}
	w.MinValid = max(w.MinValid, o.MinValid)
	w.Mark = w.Mark.Newest(o.Mark)
	return w
}

// Covers reports whether doing w is all that o wants, and knows all that o knows.
func (w Work) Covers(o Work) bool { return w.Stronger(o) == w }
