package mail

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/renewd/renewd/internal/sink"
)

// window is how long the cap counts.
const window = time.Hour

// tally counts mails sent and mails held back. A tally is safe for concurrent use.
type tally struct {
	mu      sync.Mutex
	began   time.Time      // of this window
	sent    int            // in this window
	reasons map[string]int // of all mails that were due in this window
	told    bool           // the operator was, in this window
	held    int            // held back since the operator was told last

	digests sync.Mutex // held over a mail to the operator, for which all held-back mails wait
}

// digest is the content of a mail to the operator.
type digest struct {
	until   time.Time // no user is mailed
	most    int
	held    int
	reasons map[string]int
}

// pass mails by tell, or holds a mail back once as many as most were sent in this window. report
// tells the operator of the first mail held back in a window. Until report has succeeded no mail
// counts as held back, and its outcome is delivered again. The error of a mail held back is
// sink.ErrWithheld.
func (t *tally) pass(now time.Time, most int, reason string, tell func() error,
	report func(digest) error) error {
	reason = cmp.Or(reason, "none")
	if t.take(now, most, reason) {
		err := tell()
		if err != nil {
			t.giveBack(reason, 1)
		}
		return err
	}
	t.digests.Lock()
	defer t.digests.Unlock()
	if d := t.untold(most); d != nil {
		if err := report(*d); err != nil {
			t.giveBack(reason, 0)
			return err
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.told, t.held = true, 0
		return sink.ErrWithheld
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held++
	return sink.ErrWithheld
}

// take takes a mail's place in the window, if there is a free place.
func (t *tally) take(now time.Time, most int, reason string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.began) >= window {
		t.began, t.sent, t.told, t.reasons = now, 0, false, map[string]int{}
	}
	t.reasons[reason]++
	if t.sent >= most {
		return false
	}
	t.sent++
	return true
}

// giveBack takes back a mail that comes again, and so many places.
func (t *tally) giveBack(reason string, places int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sent = max(0, t.sent-places)
	if t.reasons[reason]--; t.reasons[reason] <= 0 {
		delete(t.reasons, reason)
	}
}

// untold is the digest that the operator must still get; nil: the operator has it in this window.
func (t *tally) untold(most int) *digest {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.told {
		return nil
	}
	return &digest{until: t.began.Add(window), most: most, held: t.held + 1,
		reasons: maps.Clone(t.reasons)}
}

// report mails the operator.
func (t *Target) report(ctx context.Context, d digest) error {
	until := d.until.UTC().Format(time.RFC3339)
	var text strings.Builder
	fmt.Fprintf(&text, "More than %d mails to users are due within an hour, so that renewd holds "+
		"the others back.\nUntil %s it sends none, and after that %d an hour at most.\n\n"+
		"Held back since the last such message: %d. Due in this hour so far, by reason:\n\n",
		d.most, until, d.most, d.held)
	for _, reason := range slices.Sorted(maps.Keys(d.reasons)) {
		fmt.Fprintf(&text, "    %-24s %d\n", reason, d.reasons[reason])
	}
	fmt.Fprintf(&text, "\nWhose they are:\n\n    renewd replay --since %s\n",
		d.until.Add(-window).UTC().Format(time.RFC3339))
	return t.send(ctx, letter{
		to: t.operator, subject: "renewd holds mails to users back", text: text.String(),
		id: "digest " + until,
	})
}
