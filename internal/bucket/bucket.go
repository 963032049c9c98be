// Package bucket reads and writes values in a KV bucket of NATS, as JSON.
//
// The package owns how a value is stored, compared and removed. It knows no key and makes no
// bucket. All functions are safe for concurrent use.
package bucket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Open opens an existing bucket. Otherwise its error wraps jetstream.ErrBucketNotFound.
func Open(ctx context.Context, js jetstream.JetStream, name string) (jetstream.KeyValue, error) {
	kv, err := js.KeyValue(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", name, err)
	}
	return kv, nil
}

// Entry is a stored value and its revision; 0: no value is stored.
type Entry[T any] struct {
	Key      string
	Value    T
	Revision uint64
}

// Get reads a value. With the error about a damaged value the Entry has its revision.
func Get[T any](ctx context.Context, kv jetstream.KeyValue, key string) (e Entry[T], err error) {
	e.Key = key
	stored, err := kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return e, nil
	}
	if err != nil {
		return e, fmt.Errorf("read from bucket %s: %w", kv.Bucket(), err)
	}
	e.Revision = stored.Revision()
	if err := json.Unmarshal(stored.Value(), &e.Value); err != nil {
		return e, fmt.Errorf("bucket %s: a damaged %T: %w", kv.Bucket(), e.Value, err)
	}
	return e, nil
}

// All reads the values whose keys are below front. A damaged value is left out.
func All[T any](
	ctx context.Context, kv jetstream.KeyValue, front string,
) (found []Entry[T], err error) {
	for {
		if found, err = tryAll[T](ctx, kv, front); !errors.Is(err, errNoEnd) {
			return found, err
		}
	}
}

// errNoEnd: the end of the values did not come. nats.go counts the values up to the end, and a
// value removed while being read is missing for good.
var errNoEnd = errors.New("the end did not come")

// endLimit is how long the next value, or the end, is waited for before all values are read again.
const endLimit = 5 * time.Second

func tryAll[T any](
	ctx context.Context, kv jetstream.KeyValue, front string,
) (found []Entry[T], err error) {
	w, err := kv.Watch(ctx, front+">", jetstream.IgnoreDeletes())
	if err != nil {
		return nil, fmt.Errorf("read bucket %s: %w", kv.Bucket(), err)
	}
	defer func() { err = errors.Join(err, w.Stop()) }()
	for {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(endLimit):
			return nil, errNoEnd
		case stored := <-w.Updates():
			if stored == nil {
				return found, nil
			}
			e := Entry[T]{Key: stored.Key(), Revision: stored.Revision()}
			if json.Unmarshal(stored.Value(), &e.Value) == nil {
				found = append(found, e)
			}
		}
	}
}

// ErrChanged: another process has written meanwhile.
var ErrChanged = errors.New("changed meanwhile by another process")

// Put writes e if the stored value is still at e's revision, and moves the revision on. Errors:
// ErrChanged.
func Put[T any](ctx context.Context, kv jetstream.KeyValue, e *Entry[T]) error {
	raw, err := json.Marshal(e.Value)
	if err != nil {
		return err
	}
	revision, err := kv.Update(ctx, e.Key, raw, e.Revision)
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return ErrChanged
	}
	if err != nil {
		return fmt.Errorf("write to bucket %s: %w", kv.Bucket(), err)
	}
	e.Revision = revision
	return nil
}

// Set writes a value, whatever value is stored.
func Set(ctx context.Context, kv jetstream.KeyValue, key string, value any) error {
	raw, err := json.Marshal(value)
	if err == nil {
		_, err = kv.Put(ctx, key, raw)
	}
	if err != nil {
		return fmt.Errorf("write to bucket %s: %w", kv.Bucket(), err)
	}
	return nil
}

// Remove removes a value from the bucket of the stream s, up to this revision. Remove leaves
// nothing behind: the mark of a deleted key would name a user forever.
func Remove(ctx context.Context, s jetstream.Stream, key string, revision uint64) error {
	name := strings.TrimPrefix(s.CachedInfo().Config.Name, "KV_")
	err := s.Purge(ctx, jetstream.WithPurgeSubject("$KV."+name+"."+key),
		jetstream.WithPurgeSequence(revision+1))
	if err != nil {
		return fmt.Errorf("remove from bucket %s: %w", name, err)
	}
	return nil
}
