package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"github.com/nats-io/nats.go/jetstream"
)

// version of a record's form. A record without a version was written before there were versions,
// and has the same form with fields missing. A form that these rules would misread needs the next
// number.
const version = 2

// version is the version to write s with. Version 1 would ignore the fields that it does not know:
// an operator's pause would be gone, and a doubt about our settings would be a doubt about users.
func (s State) version() int {
	if s.Paused != nil || s.Doubt != nil && s.Doubt.Reason != ReasonMassFailure {
		return version
	}
	return 1
}

// ErrRecord: the record is of a later version, or damaged. Such a record is never overwritten.
var ErrRecord = errors.New("the provider's record cannot be read")

// Load reads a provider's record. Without a record it returns the zero State and revision 0.
// ErrRecord if this version cannot read the record.
func Load(
	ctx context.Context, bucket jetstream.KeyValue, provider string,
) (s State, revision uint64, err error) {
	entry, err := bucket.Get(ctx, provider)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return State{}, 0, nil
	}
	if err != nil {
		return State{}, 0, fmt.Errorf("read state of provider %s: %w", provider, err)
	}
	if err := json.Unmarshal(entry.Value(), &s); err != nil {
		return State{}, 0, unreadable(bucket, provider, err)
	}
	if s.V > version {
		return State{}, 0, unreadable(bucket, provider, fmt.Errorf("version %d, %d is the newest "+
			"known here", s.V, version))
	}
	return s, entry.Revision(), nil
}

func unreadable(bucket jetstream.KeyValue, key string, why error) error {
	return fmt.Errorf("%w: %s in bucket %s: %w; run the renewd that wrote it, or forget what it "+
		"knows: nats kv del %s %s",
		ErrRecord, key, bucket.Bucket(), why, bucket.Bucket(), key)
}

// change stores f's change of the record, and keeps the result as the state last seen.
func (g *Guard) change(ctx context.Context, f func(State) State) error {
	next, err := change(ctx, g.Bucket, g.Provider, func(s State) (State, error) {
		return f(s), nil
	})
	if err != nil {
		return err
	}
	g.state.Store(&next)
	g.read.Store(true)
	return nil
}

// change stores f's change of a provider's record, again on each conflict, and returns the new
// record. Nothing is written if f leaves the record unchanged or returns an error.
func change(
	ctx context.Context, bucket jetstream.KeyValue, provider string, f func(State) (State, error),
) (State, error) {
	for {
		s, rev, err := Load(ctx, bucket, provider)
		if err != nil {
			return s, err
		}
		next, err := f(s)
		if err != nil {
			return s, err
		}
		if !reflect.DeepEqual(next, s) {
			next.V = next.version()
			err = put(ctx, bucket, provider, next, rev)
		}
		switch {
		case conflict(err):
			continue
		case err != nil:
			return s, fmt.Errorf("write state of provider %s: %w", provider, err)
		}
		return next, nil
	}
}

// put stores v in place of the revision that was read; 0: no revision was there.
func put(ctx context.Context, bucket jetstream.KeyValue, key string, v any, rev uint64) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if rev == 0 {
		_, err = bucket.Create(ctx, key, raw)
	} else {
		_, err = bucket.Update(ctx, key, raw, rev)
	}
	return err
}

// conflict reports whether another worker was faster. A replicated bucket says so in other words
// than a single bucket.
func conflict(err error) bool {
	return errors.Is(err, jetstream.ErrKeyExists) ||
		errors.Is(err, jetstream.ErrKeyRevisionMismatch)
}
