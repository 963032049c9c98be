package sink

import (
	"slices"
	"testing"

	"github.com/renewd/renewd/internal/runner"
)

// queue is a line, and which messages it has let pass.
type queue struct {
	*testing.T
	*line
	messages map[uint64]*runner.Message
}

func newQueue(t *testing.T, deliveries uint64, inHand int) *queue {
	return &queue{t, newLine(deliveries, inHand), map[uint64]*runner.Message{}}
}

// comes has a message of a user join as the delivery with this number.
func (q *queue) comes(user string, sequence, delivery, times uint64) {
	m := &runner.Message{Sequence: sequence, Delivery: delivery, Deliveries: times}
	if q.messages[sequence] == nil { // else it has its turn after the first of the two
		q.messages[sequence] = m
	}
	q.join(user, m)
}

// passes wants these messages, and no others, to have their turn.
func (q *queue) passes(want ...uint64) {
	q.Helper()
	var got []uint64
	for sequence, m := range q.messages {
		select {
		case <-q.places[m].turn:
			got = append(got, sequence)
		default:
		}
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		q.Errorf("passed %v, want %v", got, want)
	}
}

func (q *queue) leaves(sequence uint64, done bool) {
	q.leave(q.messages[sequence], done)
	delete(q.messages, sequence)
}

// pending has the line compared with what the server says is pending.
func (q *queue) pending(n int) { q.compare(q.roll(), n) }

// Nothing passes while a delivery is missing: it may be an earlier outcome of any user.
func TestMissingDeliveriesComeFirst(t *testing.T) {
	q := newQueue(t, 0, 0)
	q.comes("ann", 1, 1, 1)
	q.passes(1)
	q.leaves(1, true)
	q.comes("ann", 4, 4, 1) // those of 2 and 3 were lost
	q.comes("bob", 5, 5, 1)
	q.pending(4)
	q.passes()
	q.comes("ann", 3, 6, 2)
	q.pending(4)
	q.passes()
	q.comes("bob", 5, 7, 2) // came again too, since a server restarted
	q.pending(4)
	q.passes()
	q.comes("ann", 2, 8, 2)
	q.passes()
	q.pending(4)
	q.passes(2, 5)
	q.leaves(2, true)
	q.passes(3, 5)
	q.leaves(3, true)
	q.passes(4, 5)
}

// What leaves undelivered comes again before what is behind it.
func TestUndeliveredComesFirst(t *testing.T) {
	q := newQueue(t, 0, 0)
	q.comes("ann", 1, 1, 1)
	q.comes("ann", 2, 2, 1)
	q.passes(1)
	q.leaves(1, false)
	q.pending(2)
	q.passes()
	q.comes("ann", 1, 3, 2)
	q.pending(2)
	q.passes(1)
	q.leaves(1, true)
	q.passes(2)
}

// What another run had in hand comes first, and also what it took before this run took anything.
func TestWhatAnotherRunHadComesFirst(t *testing.T) {
	q := newQueue(t, 10, 1)
	q.comes("ann", 12, 12, 1) // that run was not dead yet, and took 11
	q.pending(3)
	q.passes()
	q.comes("ann", 10, 13, 2)
	q.pending(3)
	q.passes()
	q.comes("ann", 11, 14, 2)
	q.pending(3)
	q.passes(10)
}

// An answer of the server that is older than what was found missing since opens nothing.
func TestAnAnswerOfBeforeOpensNothing(t *testing.T) {
	q := newQueue(t, 1, 1)
	q.comes("ann", 1, 2, 2)
	before := q.roll()
	q.comes("ann", 4, 4, 1) // that of 3 was lost
	q.compare(before, 1)
	q.passes()
}
