package sink

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/renewd/renewd/internal/runner"
)

// line lets one outcome of each user pass at a time, in the order of the stream. Messages that were
// delivered and are not in the line come again, in any order: messages left from an earlier run,
// lost with a connection, delivered too late, or undelivered when they left the line. Until they
// are back nothing passes, because any of them may be an earlier outcome of any user. A line is
// safe for concurrent use.
type line struct {
	waits chan struct{} // has a value once the line waits for such messages

	mu       sync.Mutex
	waiting  bool
	missed   int    // how often a message was found missing
	delivery uint64 // the newest delivery of the durable seen so far
	users    map[string][]*place
	places   map[*runner.Message]*place
}

// place is one message's place in its user's line.
type place struct {
	user     string
	sequence uint64
	time     time.Time
	turn     chan struct{} // closed when it is this message's turn
	called   bool
}

// newLine is a line after so many deliveries of the durable, of which some are being handled
// elsewhere.
func newLine(deliveries uint64, inHand int) *line {
	l := &line{
		waits: make(chan struct{}, 1), delivery: deliveries,
		users: map[string][]*place{}, places: map[*runner.Message]*place{},
	}
	if inHand > 0 {
		l.await()
	}
	return l
}

// await has nothing pass before the missing messages have come again.
func (l *line) await() {
	l.waiting = true
	l.missed++
	select {
	case l.waits <- struct{}{}:
	default:
	}
}

// awaits reports whether messages are missing.
func (l *line) awaits() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting
}

// roll is the content of a line at a moment.
type roll struct {
	in     map[uint64]bool // the sequences of its messages
	missed int
}

func (l *line) roll() roll {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.content()
}

func (l *line) content() roll {
	r := roll{map[uint64]bool{}, l.missed}
	for _, p := range l.places {
		r.in[p.sequence] = true
	}
	return r
}

// compare has messages pass again if no message is missing: the line still holds at least as many
// messages of before as were pending at the server, counted after before.
func (l *line) compare(before roll, pending int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.content()
	for sequence := range before.in {
		if now.in[sequence] {
			pending--
		}
	}
	if l.waiting && pending <= 0 && now.missed == before.missed {
		l.pass()
	}
}

// join gives m its place. Messages must join in the order in which they came.
func (l *line) join(user string, m *runner.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m.Delivery > l.delivery+1 {
		l.await()
	}
	l.delivery = m.Delivery
	p := &place{user: user, sequence: m.Sequence, time: m.Time, turn: make(chan struct{})}
	queue := l.users[user]
	at, _ := slices.BinarySearchFunc(queue, p, func(a, b *place) int {
		if a.called || a.sequence <= b.sequence {
			return -1
		}
		return 1
	})
	l.users[user], l.places[m] = slices.Insert(queue, at, p), p
	l.call(user)
}

// open lets messages pass although missing messages may not have come again.
func (l *line) open() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pass()
}

func (l *line) pass() {
	l.waiting = false
	for user := range l.users {
		l.call(user)
	}
}

// call tells the first message in a user's line that its turn has come.
func (l *line) call(user string) {
	queue := l.users[user]
	if l.waiting || len(queue) == 0 || queue[0].called {
		return
	}
	queue[0].called = true
	close(queue[0].turn)
}

// wait waits for the turn of m, or for ctx to end. In both cases leave must follow.
func (l *line) wait(ctx context.Context, m *runner.Message) error {
	l.mu.Lock()
	p := l.places[m]
	l.mu.Unlock()
	select {
	case <-p.turn:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// leave takes m out of the line. A message that is not done comes again.
func (l *line) leave(m *runner.Message, done bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !done {
		l.await()
	}
	p := l.places[m]
	delete(l.places, m)
	queue := slices.DeleteFunc(l.users[p.user], func(q *place) bool { return q == p })
	if len(queue) == 0 {
		delete(l.users, p.user)
		return
	}
	l.users[p.user] = queue
	l.call(p.user)
}

// oldest is when the oldest outcome in the line was stored; zero: the line is empty.
func (l *line) oldest() (at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.places {
		at = earlier(at, p.time)
	}
	return at
}

// earlier is the earlier of two times, where zero means no time.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
