package hook

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/renewd/renewd/internal/bucket"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// Figures are the stored results of a source's messages, over all workers.
type Figures struct {
	Since   time.Time         `json:"since,omitzero"` // when counting began
	LastAt  time.Time         `json:"last_at,omitzero"`
	Counts  map[Result]uint64 `json:"counts,omitempty"`
	Refused *Refused          `json:"last_refusal,omitempty"`
}

// Refused is the last message that was refused, or that could not be taken.
type Refused struct {
	At     time.Time `json:"at"`
	Result Result    `json:"result"`
	Why    string    `json:"why"`
}

// add adds the figures counted since.
func (f *Figures) add(o Figures) {
	if f.Since.IsZero() {
		f.Since = o.Since
	}
	if o.LastAt.After(f.LastAt) {
		f.LastAt = o.LastAt
	}
	if f.Counts == nil {
		f.Counts = map[Result]uint64{}
	}
	for result, n := range o.Counts {
		f.Counts[result] += n
	}
	if o.Refused != nil && (f.Refused == nil || o.Refused.At.After(f.Refused.At)) {
		f.Refused = o.Refused
	}
}

// figures are what this process has counted and not stored yet. figures are safe for concurrent
// use.
type figures struct {
	mu  sync.Mutex
	new Figures
}

func (f *figures) count(now time.Time, result Result, why string) {
	one := Figures{Since: now.UTC(), LastAt: now.UTC(), Counts: map[Result]uint64{result: 1}}
	if result.Refused() || result == Failed {
		one.Refused = &Refused{At: now.UTC(), Result: result, Why: why}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.new.add(one)
}

// take takes the counted figures away.
func (f *figures) take() Figures {
	f.mu.Lock()
	defer f.mu.Unlock()
	taken := f.new
	f.new = Figures{}
	return taken
}

func (f *figures) giveBack(o Figures) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.new.add(o)
}

// Look reads the figures of a source.
func Look(ctx context.Context, js jetstream.JetStream, subjects schema.Subjects, source string) (
	f Figures, err error) {
	kv, err := (&ledger{js: js, subjects: subjects}).bucket(ctx, topology.BucketSources)
	if err != nil {
		return f, err
	}
	e, err := figuresOf(ctx, kv, source)
	return e.Value, err
}

// LookOwed reads the owed erasures of a source.
func LookOwed(ctx context.Context, js jetstream.JetStream, subjects schema.Subjects,
	source string) (owed []Owed, err error) {
	kv, err := (&ledger{js: js, subjects: subjects}).bucket(ctx, topology.BucketSources)
	if err != nil {
		return nil, err
	}
	found, err := bucket.All[Owed](ctx, kv, keyForget+source+".")
	for _, one := range found {
		owed = append(owed, one.Value)
	}
	return owed, err
}

// figuresOf reads the stored figures. Where the figures are damaged, counting begins again.
func figuresOf(
	ctx context.Context, kv jetstream.KeyValue, source string,
) (bucket.Entry[Figures], error) {
	e, err := bucket.Get[Figures](ctx, kv, keyStatus+source)
	if err != nil && e.Revision > 0 {
		e.Value, err = Figures{}, nil
	}
	return e, err
}

// save adds the figures counted since to the stored figures. Figures that cannot be stored are kept
// for the next time.
func (d *Door) save(ctx context.Context) {
	kv, err := d.ledger.bucket(ctx, topology.BucketSources)
	if err != nil {
		return
	}
	for _, s := range d.sources {
		counted := s.figures.take()
		if len(counted.Counts) == 0 {
			continue
		}
		if !saved(ctx, kv, s.Name, counted) {
			s.figures.giveBack(counted)
		}
	}
}

// saved reports whether counted was added. Another process may have written meanwhile.
func saved(ctx context.Context, kv jetstream.KeyValue, source string, counted Figures) bool {
	for range 5 {
		e, err := figuresOf(ctx, kv, source)
		if err != nil {
			return false
		}
		e.Value.add(counted)
		if err := bucket.Put(ctx, kv, &e); !errors.Is(err, bucket.ErrChanged) {
			return err == nil
		}
	}
	return false
}

// meters are the figures of this process.
type meters struct{ messages metric.Int64Counter }

func newMeters(m metric.Meter) (out meters) {
	// The name is fixed and well-formed. A refused instrument would do nothing.
	out.messages, _ = m.Int64Counter("renewd.source.messages", metric.WithUnit("{message}"),
		metric.WithDescription("Messages that others posted, by source and by what became of "+
			"them."))
	return out
}

func (m meters) count(ctx context.Context, source string, result Result) {
	m.messages.Add(ctx, 1, metric.WithAttributes(attribute.String("source", source),
		attribute.String("result", string(result))))
}
