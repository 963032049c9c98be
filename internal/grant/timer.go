package grant

import (
	"fmt"
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
// earlier time; of two commands the newer one names the outcome, which answers both. Of two timers
// the one made from the newer record names it: an older one may have fired before, and its name be
// that of an outcome that is out. A timer made from an older record than there gives way.
func (t Timer) Over(there Timer) Timer {
	command, waits := IsCommand(t.Work.Cause), IsCommand(there.Work.Cause)
	if !command && there.Work.Mark.Version > t.Work.Mark.Version {
		return there
	}
	next, other := t, there
	switch {
	case SameCause(t.Work.Cause, there.Work.Cause):
		next.Work.Deferrals = max(t.Work.Deferrals, there.Work.Deferrals)
	case t.Work.Names(there.Work):
	case waits && !command,
		there.Work.Names(t.Work),
		waits && there.Work.Cause.Time.After(t.Work.Cause.Time),
		!waits && !command && there.At.Before(t.At) && there.Work.Mark.Version == t.Work.Mark.Version:
		next, other = there, t
	}
	next.Work = next.Work.Stronger(other.Work)
	if other.At.Before(next.At) {
		if next.At = other.At; !command && !waits {
			next.Work = next.Work.PutOff(next.At) // the time that it has its name from is still to come
		}
	}
	return next
}

// PutOff is w to be done at another time. A command keeps its name, since its sender waits for an
// outcome that names it. A timer gets the name of the other time: an earlier delivery may have been
// answered by a worker that died before the acknowledgement, and what is found at the other time is
// another answer.
func (w Work) PutOff(at time.Time) Work {
	w.Again = true
	if w.Cause.Type == schema.CauseTimer && w.Mark.Version > 0 {
		w.Cause.ID, w.Cause.Time = timerID(w.Mark.Version, at), at.UTC()
	}
	return w
}

func timerID(version int64, at time.Time) string {
	return fmt.Sprintf("timer-%d-%d", version, at.Unix())
}

// Names reports whether, of two commands that become one renewal, w has to be the one that its
// outcome names, whichever is newer: o is a login, and w is not. A login stays in the grant's
// record until it has an outcome; another command is nowhere else.
func (w Work) Names(o Work) bool {
	return IsCommand(w.Cause) && w.Cause.Type != schema.UserLogin && o.Cause.Type == schema.UserLogin
}

// Stronger is w with the stronger want of both, and the latest that both know of the record.
func (w Work) Stronger(o Work) Work {
	if o.Want == schema.WantTokens {
		w.Want = o.Want
	}
	w.MinValid = max(w.MinValid, o.MinValid)
	w.Again = w.Again || o.Again
	w.Mark = w.Mark.Newest(o.Mark)
	return w
}

// Covers reports whether doing w is all that o wants, and knows all that o knows.
func (w Work) Covers(o Work) bool { return w.Stronger(o) == w }
