package stream

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

const (
	headerVersion = "renewd-version"
	headerParent  = "renewd-parent"
	// headerCandidate marks the pair of a login that is not proven.
	headerCandidate = "renewd-candidate"
)

// Park stores the parcel in place of any other of this grant, and returns its sequence.
func (e *Engine) Park(ctx context.Context, k grant.Key, p grant.Parcel) (sequence uint64, err error) {
	ack, err := e.publish(ctx, Parked, e.parked(k), parcelHeader(p), p.Sealed)
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

// Parked returns the grant's parcel; found is false if there is none that is renewd's. It asks the
// leader, so what Park stored is seen.
func (e *Engine) Parked(ctx context.Context, k grant.Key) (p grant.Parcel, found bool, err error) {
	m, err := e.last(ctx, Parked, e.parked(k))
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
	return grant.Parcel{Version: version, Parent: h.Get(headerParent), Candidate: h.Get(headerCandidate) != "", Sealed: m.Data, Sequence: m.Sequence, Time: m.Time}, nil
}

// Unpark removes the parcel that Parked returned, and leaves a newer one. Sequence 0 removes
// whatever there is.
func (e *Engine) Unpark(ctx context.Context, k grant.Key, sequence uint64) error {
	if sequence == 0 {
		if err := e.purge(ctx, Parked, []string{e.parked(k)}); err != nil {
			return fmt.Errorf("unpark pair of %s: %w", k, err)
		}
		return nil
	}
	s, err := e.js.Stream(ctx, e.config.Subjects.Name(Parked))
	if err == nil {
		err = s.Purge(ctx, jetstream.WithPurgeSubject(e.parked(k)), jetstream.WithPurgeSequence(sequence+1))
	}
	if err != nil {
		return fmt.Errorf("unpark pair of %s: %w", k, err)
	}
	return nil
}
