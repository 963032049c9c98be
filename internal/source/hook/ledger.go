package hook

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/bucket"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// The keys of the bucket of sources begin with the kind of the value, and then the source's name.
const (
	keyStatus = "status."
	keyForget = "forget." // provider and user follow
)

// ledger is the stored state of the sources: ids of messages that were taken, for as long as the
// bucket keeps them (topology.SeenAge), erasures that are owed, and figures. The ledger opens its
// buckets when they are first needed. A ledger is safe for concurrent use.
type ledger struct {
	js       jetstream.JetStream
	subjects schema.Subjects

	mu     sync.Mutex
	opened map[string]jetstream.KeyValue
}

func (l *ledger) bucket(ctx context.Context, base string) (jetstream.KeyValue, error) {
	name := l.subjects.Name(base)
	l.mu.Lock()
	kv := l.opened[name]
	l.mu.Unlock()
	if kv != nil {
		return kv, nil
	}
	kv, err := bucket.Open(ctx, l.js, name)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, fmt.Errorf("%w: renewd streams apply makes it", err)
	}
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.opened == nil {
		l.opened = map[string]jetstream.KeyValue{}
	}
	l.opened[name] = kv
	return kv, nil
}

func seenKey(source, id string) string { return source + "." + digest(id) }

// seen reports whether a message was taken before.
func (l *ledger) seen(ctx context.Context, source, id string) (bool, error) {
	kv, err := l.bucket(ctx, topology.BucketSeen)
	if err != nil {
		return false, err
	}
	_, err = kv.Get(ctx, seenKey(source, id))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return false, nil
	}
	return err == nil, err
}

// see notes that a message was taken.
func (l *ledger) see(ctx context.Context, source, id string) error {
	kv, err := l.bucket(ctx, topology.BucketSeen)
	if err == nil {
		_, err = kv.Put(ctx, seenKey(source, id), nil)
	}
	return err
}

// Owed is an erasure that a message asked for and that is not done yet.
type Owed struct {
	Provider string    `json:"provider"`
	User     string    `json:"user"`
	ID       string    `json:"id"` // of the message
	At       time.Time `json:"at"` // when the user was deleted there
	Tries    int       `json:"tries,omitempty"`
	Next     time.Time `json:"next,omitzero"` // when the erasure is tried again
	Error    string    `json:"error,omitempty"`
}

// owe stores that a user is to be erased: once, with the newest time of the user's deletion.
func (l *ledger) owe(ctx context.Context, source string, k grant.Key, m message) error {
	kv, err := l.bucket(ctx, topology.BucketSources)
	if err != nil {
		return err
	}
	owed := Owed{Provider: k.Provider, User: k.User, ID: commandID(m.id), At: m.at.UTC()}
	for range 5 {
		e, err := bucket.Get[Owed](ctx, kv, forgetKey(source, k))
		switch {
		case err != nil && e.Revision == 0:
			return err
		case err == nil && e.Revision > 0 && !owed.At.After(e.Value.At):
			return nil
		}
		e.Value = owed // also where the stored value is damaged
		if err := bucket.Put(ctx, kv, &e); !errors.Is(err, bucket.ErrChanged) {
			return err
		}
	}
	return errors.New("the erasure that is owed changes all the time")
}

func forgetKey(source string, k grant.Key) string {
	return keyForget + source + "." + k.Provider + "." + schema.EscapeUser(k.User)
}

// remove takes a value of a bucket away as of a revision.
func (l *ledger) remove(
	ctx context.Context, kv jetstream.KeyValue, key string, revision uint64,
) error {
	s, err := l.js.Stream(ctx, topology.BucketStream(kv.Bucket()))
	if err != nil {
		return fmt.Errorf("remove from bucket %s: %w", kv.Bucket(), err)
	}
	return bucket.Remove(ctx, s, key, revision)
}
