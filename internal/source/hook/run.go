package hook

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/bucket"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/topology"
)

const (
	// saveEvery is how often figures are stored, and owed erasures are looked for.
	saveEvery = 3 * time.Second
	saveLimit = 5 * time.Second
	// eraseLimit is how long one erasure may take. An erasure takes more than ten seconds.
	eraseLimit = 2 * time.Minute
	// longestRest is the longest wait before a failed erasure is tried again.
	longestRest = time.Hour
)

// erasers is how many owed erasures are tried at the same time.
const erasers = 4

// Run stores the figures, and does the owed erasures, until ctx ends.
func (d *Door) Run(ctx context.Context) error {
	var erasing sync.WaitGroup
	defer erasing.Wait()
	for _, s := range d.sources {
		if s.forgets() && d.Forget != nil {
			erasing.Go(func() { each(ctx, func() { d.eraseOwed(ctx, s) }) })
		}
	}
	save := func(ctx context.Context) {
		ctx, done := context.WithTimeout(ctx, saveLimit)
		defer done()
		d.save(ctx)
	}
	each(ctx, func() { save(ctx) })
	save(context.WithoutCancel(ctx))
	return nil
}

// each calls do every saveEvery until ctx ends.
func each(ctx context.Context, do func()) {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			do()
		}
	}
}

// eraseOwed tries the due erasures of a source. A failed erasure waits, and keeps no other erasure
// back.
func (d *Door) eraseOwed(ctx context.Context, s *source) {
	asking, done := context.WithTimeout(ctx, saveLimit)
	defer done()
	kv, err := d.ledger.bucket(asking, topology.BucketSources)
	if err != nil {
		return
	}
	found, err := bucket.All[Owed](asking, kv, keyForget+s.Name+".")
	if err != nil {
		return
	}
	var under sync.WaitGroup
	defer under.Wait()
	free := make(chan struct{}, erasers)
	for _, one := range found {
		if one.Value.Next.After(d.Now()) {
			continue
		}
		free <- struct{}{}
		under.Go(func() {
			defer func() { <-free }()
			if err := d.erase(ctx, s, kv, one); err != nil && ctx.Err() == nil {
				d.Logger.Warn("an erasure that a message asked for is not done yet",
					"source", s.Name, "tries", one.Value.Tries+1, "error", err)
			}
		})
	}
}

// erase tries one owed erasure, unless another process was faster. An erasure cut short by a
// shutdown is tried again by the next process, which is right for an erasure.
func (d *Door) erase(ctx context.Context, s *source, kv jetstream.KeyValue,
	one bucket.Entry[Owed]) error {
	one.Value.Tries++
	one.Value.Next = d.Now().Add(eraseLimit + saveLimit).UTC()
	if err := bucket.Put(ctx, kv, &one); err != nil {
		return unlessTaken(err)
	}
	o := &one.Value
	working, done := context.WithTimeout(ctx, eraseLimit)
	defer done()
	err := d.forget(working, s.Name, grant.Key{Provider: o.Provider, User: o.User}, *o)
	noting, done := context.WithTimeout(context.WithoutCancel(ctx), saveLimit)
	defer done()
	if err == nil {
		return d.ledger.remove(noting, kv, one.Key, one.Revision)
	}
	o.Next, o.Error = d.Now().Add(rest(o.Tries)).UTC(), shortened(err.Error())
	return errors.Join(err, unlessTaken(bucket.Put(noting, kv, &one)))
}

// shortened is a text of no more than some 300 bytes.
func shortened(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), 300)], "")
}

// forget erases a user, unless the user has signed in since the message: then the message is out of
// date, and there is nothing to do.
func (d *Door) forget(ctx context.Context, source string, k grant.Key, o Owed) error {
	g, err := d.Load(ctx, k)
	switch {
	case err != nil && !errors.Is(err, grant.ErrNotFound) && !errors.Is(err, grant.ErrUnreadable):
		return err
	case lastLogin(g).After(o.At.Add(skew)):
		return nil
	}
	err = d.Forget(ctx, k, source)
	if errors.Is(err, grant.ErrNotFound) {
		return nil
	}
	return err
}

// rest is how long after so many tries an erasure is tried again.
func rest(tries int) time.Duration {
	wait := 10 * time.Second << min(tries-1, 10)
	return min(wait, longestRest)
}

// unlessTaken returns no error where another process was faster.
func unlessTaken(err error) error {
	if errors.Is(err, bucket.ErrChanged) {
		return nil
	}
	return err
}
