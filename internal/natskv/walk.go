package natskv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// List implements grant.Store. The cursor is a place in the bucket's stream.
func (s *Store) List(
	ctx context.Context, cursor string, limit int,
) (page []grant.ListEntry, next string, err error) {
	next, err = s.each(ctx, cursor, limit, func(k grant.Key, m *jetstream.RawStreamMsg, err error) {
		l := grant.ListEntry{Err: err}
		if err == nil {
			l.Grant, l.Bound, l.Err = decode(s.config.Cipher, k, m.Data, m.Sequence,
				s.config.RequireBound)
		}
		l.Key = k
		page = append(page, l)
	})
	return page, next, err
}

// ListDue implements grant.Store. The cursor is a place in the bucket's stream.
func (s *Store) ListDue(
	ctx context.Context, cursor string, limit int,
) (page []grant.Due, next string, err error) {
	next, err = s.each(ctx, cursor, limit, func(k grant.Key, m *jetstream.RawStreamMsg, err error) {
		page = append(page, sealed(k, m, err).Due)
	})
	return page, next, err
}

// ListSealed implements grant.Store. The cursor is a place in the bucket's stream.
func (s *Store) ListSealed(
	ctx context.Context, cursor string, limit int,
) (page []grant.Sealed, next string, err error) {
	next, err = s.each(ctx, cursor, limit, func(k grant.Key, m *jetstream.RawStreamMsg, err error) {
		page = append(page, sealed(k, m, err))
	})
	return page, next, err
}

// sealed is the part of a record that can be read without opening the tokens.
func sealed(k grant.Key, m *jetstream.RawStreamMsg, err error) grant.Sealed {
	var r record
	if err == nil && json.Unmarshal(m.Data, &r) != nil {
		r = record{}
	}
	g := r.grant()
	l := grant.Sealed{
		Due:      g.Due(),
		Revision: m.Sequence,
		Head:     grant.HeadOf(r.Sealed),
		Bound:    r.Bound,
	}
	l.Key = k
	return l
}

func (s *Store) keyOf(subject string) (grant.Key, error) {
	provider, token, _ := strings.Cut(strings.TrimPrefix(subject, "$KV."+s.config.Bucket+"."), ".")
	user, err := schema.UnescapeUser(token)
	return grant.Key{Provider: provider, User: user}, err
}

// place is a walk's place: the next sequence to look at, the recent number of sequences for one
// record, and the number of sweeps in a row that came to the end.
type place struct{ at, stride, ends uint64 }

func (p place) String() string { return fmt.Sprintf("%d.%d.%d", p.at, p.stride, p.ends) }

func placeOf(cursor string) (p place, err error) {
	if cursor == "" {
		return place{at: 1, stride: 1}, nil
	}
	if _, err := fmt.Sscanf(cursor, "%d.%d.%d", &p.at, &p.stride, &p.ends); err != nil ||
		p.String() != cursor || p.stride == 0 {
		return p, fmt.Errorf("list grants: cursor %q: not one of ours", cursor)
	}
	return p, nil
}

// endsMost is the number of sweeps in a row to the end after which a walk ends. A record missed by
// all these sweeps would have been written during each sweep, just before the sweep looked at it. A
// renewal writes its grant a handful of times, not so often within milliseconds.
const endsMost = 16

// each shows up to limit records from the cursor on.
//
// A record written during a walk moves behind the last sequence, ahead of the walk. No record is
// missed, since a sweep never looks beyond the last sequence at the sweep's beginning. The walk
// ends with a sweep that comes to the end and finds every sequence up to there in its place. Then
// every record in the bucket was met. So the walk need not wait for a moment without writes, and
// endsMost bounds the walk in any case.
func (s *Store) each(
	ctx context.Context, cursor string, limit int,
	see func(grant.Key, *jetstream.RawStreamMsg, error),
) (next string, err error) {
	p, err := placeOf(cursor)
	if err != nil {
		return "", err
	}
	for seen := 0; seen <= limit/2; {
		now, err := s.js.Stream(ctx, "KV_"+s.config.Bucket)
		if err != nil {
			return "", fmt.Errorf("list grants: %w", err)
		}
		info := now.CachedInfo()
		from, last := max(p.at, info.State.FirstSeq), info.State.LastSeq
		if from > last {
			return "", nil
		}
		found, next, ok := s.pull(ctx, info.Config.Replicas, from, last, limit-seen)
		if !ok {
			found, next, err = s.sweep(ctx, from, last, p.stride, limit-seen)
		}
		if err != nil {
			return "", fmt.Errorf("list grants: %w", err)
		}
		for _, m := range found {
			if removed(m.Header) {
				continue
			}
			k, err := s.keyOf(m.Subject)
			see(k, m, err)
			seen++
		}
		looked := next - from
		p = place{next, max(1, looked/uint64(max(1, len(found)))), p.ends + 1}
		if next <= last {
			p.ends = 0
		} else if p.ends == endsMost || looked == uint64(len(found)) {
			return "", nil
		}
	}
	return p.String(), nil
}

// pull is sweep by a consumer, several times as quick. pull works for a stream of one replica only,
// where the consumer reads the same files as the leader. Elsewhere the consumer may sit on a
// replica that lags behind, and half a walk looks like a whole walk. ok: the messages found have no
// hole, and lead on.
func (s *Store) pull(ctx context.Context, replicas int, from, last uint64, most int) (
	found []*jetstream.RawStreamMsg, next uint64, ok bool,
) {
	if replicas > 1 || most < laneLeast {
		return nil, 0, false
	}
	c, err := s.stream.CreateConsumer(ctx, jetstream.ConsumerConfig{
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       from,
		AckPolicy:         jetstream.AckNonePolicy,
		MemoryStorage:     true,
		InactiveThreshold: pullsFor,
	})
	if err != nil {
		return nil, 0, false
	}
	defer func() { _ = s.stream.DeleteConsumer(ctx, c.CachedInfo().Name) }() // or it goes by itself
	pending := c.CachedInfo().NumPending
	batch, err := c.FetchNoWait(most)
	if err != nil {
		return nil, 0, false
	}
	next = from
	for m := range batch.Messages() {
		about, err := m.Metadata()
		if err != nil || about.Sequence.Consumer != uint64(len(found))+1 {
			break
		}
		if pending = about.NumPending; about.Sequence.Stream > last {
			return found, last + 1, true
		}
		found = append(found, &jetstream.RawStreamMsg{
			Subject:  m.Subject(),
			Sequence: about.Sequence.Stream,
			Header:   m.Headers(),
			Data:     m.Data(),
		})
		next = about.Sequence.Stream + 1
	}
	if pending == 0 && batch.Error() == nil {
		next = last + 1
	}
	return found, next, next > from
}

// pullsFor is how long a consumer stays after a failed deletion.
const pullsFor = 10 * time.Second

const (
	lanesMost = 32 // reads under way at a time
	laneLeast = 8  // the fewest records worth a lane
)

// sweep reads at most most messages, in order, from sequence from to last, and returns the start of
// the next sweep. The messages come from the stream's leader, each by one read, with many reads at
// a time. Each lane reads a stretch of sequences. By stride, a stretch holds half as many messages
// as its lane may read.
func (s *Store) sweep(ctx context.Context, from, last, stride uint64, most int) (
	found []*jetstream.RawStreamMsg, next uint64, err error,
) {
	lanes := make([]lane, min(max(most/laneLeast, 1), lanesMost))
	quota := most / len(lanes)
	width := max(uint64(quota), uint64(quota)*stride/2)
	var wg sync.WaitGroup
	used := 0
	for start := from; used < len(lanes) && start <= last; start += width {
		l := &lanes[used]
		wg.Go(func() { *l = s.lane(ctx, start, min(start+width-1, last), last, quota) })
		used++
	}
	wg.Wait()
	for _, l := range lanes[:used] {
		if l.err != nil {
			return nil, 0, l.err
		}
		found, next = append(found, l.found...), l.next
		if l.cut {
			break
		}
	}
	return found, next, nil
}

// lane is the messages found in one stretch, and the first sequence not looked at. cut: quota was
// not enough.
type lane struct {
	found []*jetstream.RawStreamMsg
	next  uint64
	cut   bool
	err   error
}

func (s *Store) lane(ctx context.Context, at, end, last uint64, quota int) (l lane) {
	for l.next = at; l.next <= end; {
		if l.cut = len(l.found) == quota; l.cut {
			break
		}
		m, err := s.stream.GetMsg(ctx, l.next, jetstream.WithGetMsgSubject(">"))
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
			l.next = last + 1
		case err != nil:
			l.err = err
			return l
		case m.Sequence > end:
			l.next = min(m.Sequence, last+1)
			return l
		default:
			l.found, l.next = append(l.found, m), m.Sequence+1
		}
	}
	return l
}
