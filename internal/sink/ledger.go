package sink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/renewd/renewd/internal/bucket"
)

// waiting is the stored list of one user's waiting outcomes. The first of Sequences failed, and the
// rest wait behind the first.
type waiting struct {
	Sequences []uint64  `json:"sequences"` // in the stream of outcomes, oldest first
	Stored    time.Time `json:"stored"`    // when the first was stored
	Tries     int       `json:"tries"`     // of the first
	Next      time.Time `json:"next"`      // when the first is tried again
	FailedAt  time.Time `json:"failed_at"`
	Error     string    `json:"error"`
}

// ledger is the waiting outcomes and dead letters of one sink. The bucket has the whole ledger, and
// only the process that runs the sink changes it, but for an erasure. A ledger is safe for
// concurrent use.
type ledger struct {
	bucket Bucket
	sink   string

	mu      sync.Mutex
	users   map[string]*account
	dead    int
	changed chan struct{} // room for one signal: something may be due sooner
}

// account holds one user's waiting outcomes. The first fields are read and written under mu, which
// is held over a write to the bucket and never over a delivery.
type account struct {
	mu    sync.Mutex
	entry bucket.Entry[waiting]
	// unsure: a write had no answer, so the bucket may have another entry.
	unsure bool
	gone   bool // nothing waits any more: take another account

	about string // never changes

	// The fields below are read and written under the ledger's mu, which is held over no write, so
	// that a look at all accounts waits for no account.
	busy             bool // being tried
	next             time.Time
	outcomes         int // as in entry
	stored, failedAt time.Time
}

func newAccount(about string, e bucket.Entry[waiting]) *account {
	a := &account{entry: e, about: about, next: e.Value.Next}
	a.show()
	return a
}

// show makes what waits visible to a look at all accounts. The caller holds the ledger's mu, and
// the account's.
func (a *account) show() {
	w := a.entry.Value
	a.outcomes, a.stored, a.failedAt = len(w.Sequences), w.Stored, w.FailedAt
}

// openLedger reads the entries that earlier runs have left.
func openLedger(ctx context.Context, b Bucket, sink string) (*ledger, error) {
	l := &ledger{bucket: b, sink: sink, users: map[string]*account{},
		changed: make(chan struct{}, 1)}
	found, err := bucket.All[waiting](ctx, b.kv, keyWait+sink+".")
	if err != nil {
		return nil, err
	}
	for _, e := range found {
		about := strings.TrimPrefix(e.Key, keyWait+sink+".")
		if len(e.Value.Sequences) == 0 {
			if err := b.remove(ctx, e.Key, e.Revision); err != nil {
				return nil, err
			}
			continue
		}
		l.users[about] = newAccount(about, e)
	}
	dead, err := bucket.All[Letter](ctx, b.kv, keyDead+sink+".")
	l.dead = len(dead)
	return l, err
}

func (l *ledger) wake() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// behind has an outcome wait behind the waiting outcomes of the same user. waits is false if the
// user has no waiting outcome.
func (l *ledger) behind(ctx context.Context, about string, sequence uint64) (waits bool,
	err error) {
	l.mu.Lock()
	a := l.users[about]
	l.mu.Unlock()
	if a == nil {
		return false, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gone {
		return false, nil
	}
	err = l.change(ctx, a, func(w *waiting) { w.insert(sequence) })
	if errors.Is(err, bucket.ErrChanged) {
		return false, nil
	}
	return true, err
}

// insert puts a sequence in its place, but never before the first, which is being tried. The first
// may be later than the rest, because a replay has earlier outcomes come again. Behind those the
// first comes once more, so that the newest is delivered last.
func (w *waiting) insert(sequence uint64) {
	first := min(1, len(w.Sequences))
	at, there := slices.BinarySearch(w.Sequences[first:], sequence)
	if there || first+at == 1 && w.Sequences[0] == sequence {
		return
	}
	w.Sequences = slices.Insert(w.Sequences, first+at, sequence)
}

// change writes a changed account. The caller holds the account's mu. After ErrChanged an erasure
// has taken the account away, and nothing of the account is left here.
func (l *ledger) change(ctx context.Context, a *account, f func(*waiting)) error {
	for {
		next := a.entry
		next.Value.Sequences = slices.Clone(next.Value.Sequences)
		f(&next.Value)
		err := bucket.Put(ctx, l.bucket.kv, &next)
		if err == nil {
			a.entry, a.unsure = next, false
			l.show(a)
			return nil
		}
		if a.unsure = true; !errors.Is(err, bucket.ErrChanged) {
			return err
		}
		if done, err := l.adopt(ctx, a, next.Value); done || err != nil {
			return err
		}
	}
}

// adopt takes over the bucket's entry of an account, because a write whose answer was lost may have
// been stored. done: the bucket has what was written. The caller holds the account's mu. After
// ErrChanged an erasure has taken the account away.
func (l *ledger) adopt(ctx context.Context, a *account, written waiting) (done bool, err error) {
	e, err := l.read(ctx, a.about)
	if err != nil {
		return false, err
	}
	if a.unsure = false; e.Revision == 0 {
		l.drop(a)
		return false, bucket.ErrChanged
	}
	if a.entry.Revision = e.Revision; len(e.Value.Sequences) > 0 {
		a.entry.Value = e.Value
		l.show(a)
	}
	return same(e.Value, written), nil
}

// show makes one account's waiting outcomes visible to a look at all accounts. The caller holds the
// account's mu.
func (l *ledger) show(a *account) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a.show()
}

// same reports whether two values are stored alike.
func same(a, b waiting) bool {
	x, err := json.Marshal(a)
	y, failed := json.Marshal(b)
	return err == nil && failed == nil && bytes.Equal(x, y)
}

// read reads the bucket's entry of a user. A damaged value counts as a value without sequences,
// which is not taken over: the next write replaces the value.
func (l *ledger) read(ctx context.Context, about string) (bucket.Entry[waiting], error) {
	e, err := bucket.Get[waiting](ctx, l.bucket.kv, keyWait+l.sink+"."+about)
	if err != nil && e.Revision > 0 {
		e.Value, err = waiting{}, nil
	}
	return e, err
}

// drop forgets an account. The caller holds the account's mu.
func (l *ledger) drop(a *account) {
	a.gone = true
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users[a.about] == a {
		delete(l.users, a.about)
	}
}

// open has a failed outcome of a user wait, behind the user's outcomes that wait already.
func (l *ledger) open(ctx context.Context, about string, w waiting) error {
	e := bucket.Entry[waiting]{Key: keyWait + l.sink + "." + about, Value: w}
	for {
		waits, err := l.behind(ctx, about, w.Sequences[0])
		if waits || err != nil {
			return err
		}
		err = bucket.Put(ctx, l.bucket.kv, &e)
		if err == nil {
			l.add(about, e)
			return nil
		}
		if !errors.Is(err, bucket.ErrChanged) {
			return err
		}
		// A write whose answer was lost has stored an entry: take the entry over.
		found, err := l.read(ctx, about)
		if err != nil {
			return err
		}
		if e.Revision = found.Revision; len(found.Value.Sequences) > 0 {
			l.add(about, found)
		}
	}
}

// add takes up a stored account, unless the ledger has the account by now.
func (l *ledger) add(about string, e bucket.Entry[waiting]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users[about] == nil {
		l.users[about] = newAccount(about, e)
	}
	l.wake()
}

// first is the outcome of an account to try next, and how often it was tried.
func (a *account) first() (sequence uint64, tries int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.entry.Value.Sequences[0], a.entry.Value.Tries
}

// failed notes that the first outcome of an account failed once more.
func (l *ledger) failed(ctx context.Context, a *account, next, now time.Time, why string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := l.change(ctx, a, func(w *waiting) {
		w.Tries++
		w.Next, w.FailedAt, w.Error = next, now, why
	})
	if errors.Is(err, bucket.ErrChanged) {
		return nil
	}
	if err == nil {
		l.schedule(a, next)
	}
	return err
}

// done takes the first outcome away, and reports whether more wait behind it.
func (l *ledger) done(ctx context.Context, a *account, sequence uint64, now time.Time) (more bool,
	err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.unsure {
		if _, err := l.adopt(ctx, a, waiting{}); errors.Is(err, bucket.ErrChanged) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	if left := a.entry.Value.Sequences; len(left) > 1 || left[0] != sequence {
		err := l.change(ctx, a, func(w *waiting) {
			if w.Sequences[0] != sequence {
				return // the outcome is done already
			}
			w.Sequences = w.Sequences[1:]
			w.Tries, w.Next, w.Stored = 0, now, now
		})
		if errors.Is(err, bucket.ErrChanged) {
			return false, nil
		}
		return err == nil, err
	}
	if err := l.bucket.remove(ctx, a.entry.Key, a.entry.Revision); err != nil {
		return false, err
	}
	l.drop(a)
	return false, nil
}

// schedule sets when an account is tried next.
func (l *ledger) schedule(a *account, next time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a.next = next
	l.wake()
}

// due takes an account whose time has come, or returns when the next account's time comes; zero: no
// account waits. The caller gives the account back by release.
func (l *ledger) due(now time.Time) (a *account, next time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range l.users {
		if one.busy {
			continue
		}
		if !one.next.After(now) {
			one.busy = true
			return one, time.Time{}
		}
		next = earlier(next, one.next)
	}
	return nil, next
}

func (l *ledger) release(a *account) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a.busy = false
	l.wake()
}

// hurry has all accounts that failed at or after since tried at once: the target works again.
func (l *ledger) hurry(since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.users {
		if !a.failedAt.Before(since) {
			a.next = time.Time{}
		}
	}
	l.wake()
}

// bury keeps an undeliverable outcome as a dead letter.
func (l *ledger) bury(ctx context.Context, about string, letter Letter) error {
	key := l.letterKey(about, letter.Sequence)
	if err := bucket.Set(ctx, l.bucket.kv, key, letter); err != nil {
		return err
	}
	l.mu.Lock()
	l.dead++
	l.mu.Unlock()
	return nil
}

// letterKey is the key of a dead letter.
func (l *ledger) letterKey(about string, sequence uint64) string {
	return keyDead + l.sink + "." + about + "." + sequenced(sequence)
}

// revive has dead letters wait again, only those of one user unless about is empty. A letter whose
// outcome is no longer stored goes with the first try.
func (l *ledger) revive(ctx context.Context, about string, now time.Time) error {
	letters, err := bucket.All[Letter](ctx, l.bucket.kv, keyDead+l.sink+".")
	if err != nil {
		return err
	}
	slices.SortFunc(letters, func(a, b bucket.Entry[Letter]) int {
		return int(a.Value.Sequence) - int(b.Value.Sequence)
	})
	left := 0
	for _, e := range letters {
		of := strings.TrimPrefix(e.Key, keyDead+l.sink+".")
		of = of[:strings.LastIndexByte(of, '.')]
		if about != "" && of != about {
			left++
			continue
		}
		w := waiting{
			Sequences: []uint64{e.Value.Sequence}, Stored: e.Value.At, Next: now,
			FailedAt: e.Value.At, Error: e.Value.Error,
		}
		if err := l.open(ctx, of, w); err != nil {
			return err
		}
		if err := l.bucket.remove(ctx, e.Key, e.Revision); err != nil {
			return err
		}
	}
	l.mu.Lock()
	l.dead = left
	l.mu.Unlock()
	l.hurry(time.Time{})
	return nil
}

// counts are how many outcomes wait and are dead, and when the oldest waiting outcome was stored.
// counts waits for no write to the bucket.
func (l *ledger) counts() (wait, dead int, oldest time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.users {
		wait += a.outcomes
		oldest = earlier(oldest, a.stored)
	}
	return wait, l.dead, oldest
}
