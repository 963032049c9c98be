package stream

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

const (
	headerVersion = "renewd-version"
	headerParent  = "renewd-parent"
	// headerCandidate marks the pair of a login that is not proven.
	headerCandidate = "renewd-candidate"
)

// Park stores the parcel in place of any other parcel of this grant, and returns its sequence.
func (e *Engine) Park(
	ctx context.Context, k grant.Key, p grant.Parcel,
) (sequence uint64, err error) {
	ack, err := e.publish(ctx, topology.Parked, e.parked(k), parcelHeader(p), p.Sealed)
	if err != nil {
		return 0, fmt.Errorf("park pair of %s: %w", k, err)
	}
	return ack.Sequence, nil
}

func parcelHeader(p grant.Parcel) schema.Header {
	h := schema.Header{}
	h.Set(headerVersion, strconv.FormatInt(p.Version, 10))
	h.Set(headerParent, p.Parent)
	if p.Candidate {
		h.Set(headerCandidate, "true")
	}
	return h
}

// Parked returns the grant's parcel; found is false if no parcel of renewd's is parked. Parked asks
// the leader, so a parcel stored by Park is seen.
func (e *Engine) Parked(ctx context.Context, k grant.Key) (p grant.Parcel, found bool, err error) {
	m, err := e.last(ctx, topology.Parked, e.parked(k))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return grant.Parcel{}, false, nil
	}
	if err != nil {
		return grant.Parcel{}, false, fmt.Errorf("look for parked pair of %s: %w", k, err)
	}
	if p, err = parcelOf(m); err != nil {
		e.foreign(ctx, m, err)
		return grant.Parcel{}, false, nil
	}
	return p, true, nil
}

// parcelOf is the inverse of parcelHeader.
func parcelOf(m *jetstream.RawStreamMsg) (grant.Parcel, error) {
	h := schema.Header(m.Header)
	version, err := strconv.ParseInt(h.Get(headerVersion), 10, 64)
	if err != nil {
		return grant.Parcel{}, fmt.Errorf("header %s: %w", headerVersion, err)
	}
	return grant.Parcel{
		Version:   version,
		Parent:    h.Get(headerParent),
		Candidate: h.Get(headerCandidate) != "",
		Sealed:    m.Data,
		Sequence:  m.Sequence,
		Time:      m.Time,
	}, nil
}

// Unpark removes the parcel returned by Parked, and leaves a newer parcel. Sequence 0 removes any
// parcel.
func (e *Engine) Unpark(ctx context.Context, k grant.Key, sequence uint64) error {
	if sequence == 0 {
		if err := e.purge(ctx, topology.Parked, []string{e.parked(k)}); err != nil {
			return fmt.Errorf("unpark pair of %s: %w", k, err)
		}
		return nil
	}
	s, err := e.js.Stream(ctx, e.config.Subjects.Name(topology.Parked))
	if err == nil {
		err = s.Purge(ctx, jetstream.WithPurgeSubject(e.parked(k)),
			jetstream.WithPurgeSequence(sequence+1))
	}
	if err != nil {
		return fmt.Errorf("unpark pair of %s: %w", k, err)
	}
	return nil
}

// ParkedPair is a parcel as found by a walk over PARKED.
type ParkedPair struct {
	grant.Key
	grant.Parcel
	// Err says why the message is not renewd's; Key and Parcel are then not filled in.
	Err error
}

// WalkParked shows each message of PARKED, oldest first, until see returns an error. A pair parked
// meanwhile is shown too.
func (e *Engine) WalkParked(ctx context.Context, see func(ParkedPair) error) error {
	subjects := topology.Prefixed(e.config.Subjects, topology.ParkedFront) + ".>"
	return e.each(ctx, topology.Parked, subjects, func(m *jetstream.RawStreamMsg) error {
		return see(e.parkedPair(ctx, m))
	})
}

func (e *Engine) parkedPair(ctx context.Context, m *jetstream.RawStreamMsg) ParkedPair {
	provider, user, err := parseUser(e.config.Subjects, topology.ParkedFront, m.Subject)
	p, notParcel := parcelOf(m)
	if err = errors.Join(err, notParcel); err != nil {
		e.foreign(ctx, m, err)
		return ParkedPair{Parcel: grant.Parcel{Sequence: m.Sequence, Time: m.Time}, Err: err}
	}
	return ParkedPair{Key: grant.Key{Provider: provider, User: user}, Parcel: p}
}
