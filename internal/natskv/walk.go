package natskv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// List implements grant.Store. The cursor is a place in the bucket's stream.
func (s *Store) List(ctx context.Context, cursor string, limit int) (page []grant.Listed, next string, err error) {
	next, err = s.each(ctx, cursor, limit, func(k grant.Key, m *jetstream.RawStreamMsg, err error) {
		var g grant.Grant
		if err == nil {
			g, err = s.decode(k, m.Data, m.Sequence)
		}
		g.Key = k
		page = append(page, grant.Listed{Grant: g, Err: err})
	})
	return page, next, err
}

// ListDue implements grant.Store. The cursor is a place in the bucket's stream.
func (s *Store) ListDue(ctx context.Context, cursor string, limit int) (page []grant.Due, next string, err error) {
	next, err = s.each(ctx, cursor, limit, func(k grant.Key, m *jetstream.RawStreamMsg, err error) {
		var r record
		if err == nil && json.Unmarshal(m.Data, &r) != nil {
			r = record{}
		}
		d := r.Grant.Due()
		d.Key = k
		page = append(page, d)
	})
	return page, next, err
}

func (s *Store) keyOf(subject string) (grant.Key, error) {
	provider, token, _ := strings.Cut(strings.TrimPrefix(subject, "$KV."+s.config.Bucket+"."), ".")
	user, err := schema.UnescapeUser(token)
	return grant.Key{Provider: provider, User: user}, err
}

// place is where a walk stands: the next sequence to look at, how many sequences there lately were for one record, and how
// many sweeps in a row have come to the end.
type place struct{ at, stride, ends uint64 }

func (p place) String() string { return fmt.Sprintf("%d.%d.%d", p.at, p.stride, p.ends) }

func placeOf(cursor string) (p place, err error) {
	if cursor == "" {
		return place{at: 1, stride: 1}, nil
	}
	if _, err := fmt.Sscanf(cursor, "%d.%d.%d", &p.at, &p.stride, &p.ends); err != nil || p.String() != cursor || p.stride == 0 {
		return p, fmt.Errorf("list grants: cursor %q: not one of ours", cursor)
	}
	return p, nil
}

// endsMost is after how many sweeps in a row that came to the end a walk ends. Who was not met in any of them would have
// been written in each, just before it was looked at: a renewal writes its grant a handful of times, not that often within
// milliseconds.
const endsMost = 16

// each shows up to limit records from the cursor on. They are read from the stream's leader, one by one but many at a time:
// a consumer may sit on a replica that lags behind, and half a walk looks like a whole one.
//
// A record that is written during a walk moves behind the last sequence, ahead of the walk. None is missed, since a sweep
// never looks beyond what was the last sequence when it began. The walk ends with a sweep that comes to the end and finds
// every sequence up to there in its place: whoever was not met by then was nowhere. So it need not wait for a moment in
// which nobody writes, and endsMost bounds it in any case.
func (s *Store) each(
	ctx context.Context, cursor string, limit int, see func(grant.Key, *jetstream.RawStreamMsg, error),
) (next string, err error) {
	p, err := placeOf(cursor)
	if err != nil {
		return "", err
	}
	for seen := 0; seen <= limit/2; {
		first, last, err := s.ends(ctx)
		if err != nil {
			return "", fmt.Errorf("list grants: %w", err)
		}
		from := max(p.at, first)
		if from > last {
			return "", nil
		}
		found, next, err := s.sweep(ctx, from, last, p.stride, limit-seen)
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

// ends are the first and the last sequence of the bucket, as its leader knows them now.
func (s *Store) ends(ctx context.Context) (first, last uint64, err error) {
	now, err := s.js.Stream(ctx, "KV_"+s.config.Bucket)
	if err != nil {
		return 0, 0, err
	}
	state := now.CachedInfo().State
	return state.FirstSeq, state.LastSeq, nil
}

const (
	lanesMost = 32 // reads under way at a time
	laneLeast = 8  // records that are worth a lane
)

// sweep reads at most most messages, in order, from a sequence on, none after last, and says where the next sweep starts.
// Each lane reads a stretch of sequences in which, by stride, there are half as many messages as it may read.
func (s *Store) sweep(ctx context.Context, from, last, stride uint64, most int) (found []*jetstream.RawStreamMsg, next uint64, err error) {
	lanes := make([]lane, min(max(most/laneLeast, 1), lanesMost))
	quota := most / len(lanes)
	width := max(uint64(quota), uint64(quota)*stride/2)
	var wg sync.WaitGroup
	for i := range lanes {
		start := from + uint64(i)*width
		if start > last {
			lanes = lanes[:i]
			break
		}
		wg.Go(func() { lanes[i] = s.lane(ctx, start, min(start+width-1, last), last, quota) })
	}
	wg.Wait()
	for _, l := range lanes {
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

// lane is what was found in one stretch, and the first sequence that was not looked at. cut: quota was not enough.
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
