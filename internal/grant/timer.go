package grant

import (
	"fmt"
	"time"

	"github.com/renewd/renewd/schema"
)

// Timer is work waiting for its time. A grant has at most one timer.
type Timer struct {
	At   time.Time
	Work Work
}

// Over is the work that is to wait for a grant when t is armed while there waits already. If t
// changes nothing, the result is there itself.
//
// Neither a command nor an earlier time is ever lost. A timer takes the place of a later timer,
// never the place of a command. Work wanted by a command and a timer is done for the command, at
// the earlier time. Of two commands the newer command names the outcome, which answers both. Of two
// timers the timer from the newer record names the outcome: the older timer may have fired before,
// and an outcome may be published under its name. A timer from an older record than there gives
// way.
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
		!waits && !command && there.At.Before(t.At) &&
			there.Work.Mark.Version == t.Work.Mark.Version:
		next, other = there, t
	}
	next.Work = next.Work.Stronger(other.Work)
	if other.At.Before(next.At) {
		if next.At = other.At; !command && !waits {
			// The time in the timer's name is still to come.
			next.Work = next.Work.PutOff(next.At)
		}
	}
	return next
}

// PutOff is w to be done at another time. A command keeps its name, since its sender waits for an
// outcome with the name. A timer gets the name of the other time. A worker that died before the
// acknowledgement may have answered an earlier delivery, and the outcome at the other time is
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

// Names reports whether, of two commands that become one renewal, the outcome has to name w, even
// if o is newer: o is a login, and w is not. A login stays in the grant's record until it has an
// outcome; another command is nowhere else.
func (w Work) Names(o Work) bool {
	return IsCommand(w.Cause) && w.Cause.Type != schema.UserLogin &&
		o.Cause.Type == schema.UserLogin
}

// Stronger is w with the stronger want of both, and the latest mark of both.
func (w Work) Stronger(o Work) Work {
	if o.Want == schema.WantTokens {
		w.Want = o.Want
	}
	w.MinValid = max(w.MinValid, o.MinValid)
	w.Again = w.Again || o.Again
	w.Mark = w.Mark.Newest(o.Mark)
	return w
}

// Covers reports whether w does all the work of o, and knows everything o knows.
func (w Work) Covers(o Work) bool { return w.Stronger(o) == w }
