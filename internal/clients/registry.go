package clients

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrNotFound: there is no client of that name.
var ErrNotFound = errors.New("no such client")

// ErrExists: a client of that name exists.
var ErrExists = errors.New("a client of that name exists")

// Registry is the clients of an installation, as a worker knows them. The zero value knows no
// client until Watch runs. Safe for concurrent use.
type Registry struct {
	mu    sync.RWMutex
	known map[string]Client
}

// Fixed is a registry of these clients, which stay.
func Fixed(all []Client) *Registry {
	r := &Registry{}
	for _, c := range all {
		r.put(c)
	}
	return r
}

// Authenticate returns the client whose secret this is. It takes as long for an unknown name.
func (r *Registry) Authenticate(secret string) (Client, bool) {
	name, _ := nameIn(secret)
	r.mu.RLock()
	c, known := r.known[name]
	r.mu.RUnlock()
	return c, c.matches(secret) && known && c.digest != [sha256.Size]byte{}
}

func (r *Registry) put(c Client) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil {
		r.known = map[string]Client{}
	}
	r.known[c.Name] = c
}

func (r *Registry) drop(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, name)
}

// rewatch is the pause before a watch that ended begins again.
const rewatch = time.Second

// Watch keeps the registry as the bucket is, until ctx ends. ready is called once all stored
// clients are known. A client that cannot be read is logged and left out.
func (r *Registry) Watch(
	ctx context.Context,
	js jetstream.JetStream,
	bucket string,
	ready func(),
	logger *slog.Logger,
) {
	once := sync.OnceFunc(ready)
	for failed := false; ctx.Err() == nil; {
		err := r.watch(ctx, js, bucket, once, logger)
		if err != nil && ctx.Err() == nil && !failed {
			logger.Warn(
				"the clients of the HTTP port cannot be watched; those known so far stay",
				"err",
				err,
			)
		}
		failed = err != nil
		select {
		case <-ctx.Done():
		case <-time.After(rewatch):
		}
	}
}

func (r *Registry) watch(
	ctx context.Context,
	js jetstream.JetStream,
	bucket string,
	ready func(),
	logger *slog.Logger,
) error {
	kv, err := js.KeyValue(ctx, bucket)
	if err != nil {
		return fmt.Errorf("open bucket %s: %w", bucket, err)
	}
	w, err := kv.WatchAll(ctx)
	if err != nil {
		return fmt.Errorf("watch bucket %s: %w", bucket, err)
	}
	defer func() { _ = w.Stop() }()
	seen, whole := map[string]bool{}, false
	for {
		select {
		case <-ctx.Done():
			return nil
		case entry, open := <-w.Updates():
			switch {
			case !open:
				return errors.New("the watch ended")
			case entry == nil: // all that was stored when the watch began
				r.keep(seen)
				whole = true
				ready()
			default:
				r.take(entry, logger)
				if !whole {
					seen[entry.Key()] = true
				}
			}
		}
	}
}

// take applies one change.
func (r *Registry) take(entry jetstream.KeyValueEntry, logger *slog.Logger) {
	if entry.Operation() != jetstream.KeyValuePut {
		r.drop(entry.Key())
		return
	}
	c, err := decode(entry.Key(), entry.Value())
	if err != nil {
		r.drop(entry.Key())
		logger.Error("a client of the HTTP port is left out", "err", err)
		return
	}
	r.put(c)
}

// keep drops the clients removed while no watch ran.
func (r *Registry) keep(names map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.known {
		if !names[name] {
			delete(r.known, name)
		}
	}
}

// Add stores a client. The error wraps ErrExists where the name is taken.
func Add(ctx context.Context, kv jetstream.KeyValue, c Client) error {
	stored, err := c.encode()
	if err != nil {
		return fmt.Errorf("add client %s: %w", c.Name, err)
	}
	_, err = kv.Create(ctx, c.Name, stored)
	if errors.Is(err, jetstream.ErrKeyExists) {
		err = ErrExists
	}
	if err != nil {
		return fmt.Errorf("add client %s: %w", c.Name, err)
	}
	return nil
}

// Remove ends a client: its secret is refused within moments. The error wraps ErrNotFound if the
// client does not exist.
func Remove(ctx context.Context, kv jetstream.KeyValue, name string) error {
	_, err := kv.Get(ctx, name)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		err = ErrNotFound
	}
	if err == nil {
		err = kv.Delete(ctx, name)
	}
	if err != nil {
		return fmt.Errorf("remove client %s: %w", name, err)
	}
	return nil
}

// List returns all clients, by name. The error names the clients that cannot be read, beside the
// rest.
func List(ctx context.Context, kv jetstream.KeyValue) ([]Client, error) {
	names, err := kv.Keys(ctx)
	if errors.Is(err, jetstream.ErrNoKeysFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list clients: %w", err)
	}
	var all []Client
	var errs []error
	for _, name := range names {
		entry, err := kv.Get(ctx, name)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue // removed meanwhile
		}
		if err == nil {
			var c Client
			if c, err = decode(name, entry.Value()); err == nil {
				all = append(all, c)
			}
		}
		errs = append(errs, err)
	}
	sortByName(all)
	return all, errors.Join(errs...)
}

func sortByName(all []Client) {
	slices.SortFunc(all, func(a, b Client) int { return strings.Compare(a.Name, b.Name) })
}
