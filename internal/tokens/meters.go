package tokens

import (
	"cmp"
	"context"
	"errors"
	"hash/maphash"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/renewd/renewd/schema"
)

// meters are the figures of this package. No figure carries a user id or a reader.
type meters struct {
	reads  metric.Int64Counter // by provider, door and result
	first  metric.Int64Counter // by provider
	asks   metric.Int64Counter // by provider
	untold metric.Int64Counter // by provider

	known *sync.Map // the option of each combination of labels that occurs: there are few
}

func newMeters(m metric.Meter) (meters, error) {
	out := meters{known: new(sync.Map)}
	var errs [4]error
	out.reads, errs[0] = m.Int64Counter("renewd.token.reads", metric.WithDescription(
		"Reads of access tokens, by provider, door and result: "+
			"ok, why it is short, or why there is none."))
	out.first, errs[1] = m.Int64Counter("renewd.token.first_reads", metric.WithDescription(
		"First reads of a version of a user's tokens by one reader, "+
			"as far as this process remembers."))
	out.asks, errs[2] = m.Int64Counter("renewd.token.renewals", metric.WithDescription(
		"Renewals asked for because a token was read that was not good for long enough."))
	out.untold, errs[3] = m.Int64Counter("renewd.token.reads_untold", metric.WithDescription(
		"First reads that token_audit asked for and that were not published, "+
			"as in a long outage of NATS."))
	return out, errors.Join(errs[:]...)
}

func (m meters) asked(ctx context.Context, provider string) {
	m.asks.Add(ctx, 1, m.with(labels{provider: provider}))
}

// labels are the labels of one figure.
type labels struct {
	provider, result string
	door             Door
}

// with is the option of l, made once.
func (m meters) with(l labels) metric.MeasurementOption {
	if known, ok := m.known.Load(l); ok {
		return known.(metric.MeasurementOption)
	}
	attributes := []attribute.KeyValue{attribute.String("provider", l.provider)}
	if l.result != "" {
		attributes = append(attributes, attribute.String("result", l.result))
	}
	if l.door != "" {
		attributes = append(attributes, attribute.String("door", string(l.door)))
	}
	made := metric.WithAttributeSet(attribute.NewSet(attributes...))
	m.known.Store(l, made)
	return made
}

// hungUp is the result of a read whose caller went away.
const hungUp = "hung_up"

// count notes a read.
func (s *Source) count(ctx context.Context, r Request, t Token, err error) {
	result := cmp.Or(t.Short, "ok")
	if err != nil {
		result = hungUp
		if no, ok := errors.AsType[*schema.NoToken](err); ok {
			result = no.Code
		}
	}
	s.countResult(ctx, r, result)
	this := read{
		door:     r.Door,
		reader:   r.Reader,
		provider: r.Provider,
		user:     r.User,
		version:  t.Version,
	}
	if err == nil && s.readers.first(this) {
		s.meters.first.Add(ctx, 1, s.meters.with(labels{provider: r.Provider}))
		s.tell(FirstRead{
			Provider: r.Provider, User: r.User, Reader: r.Reader, Door: r.Door,
			Version: t.Version, ExpiresAt: t.ExpiresAt, At: s.c.Now(),
		})
	}
}

// countResult notes the result of a read. Providers missing in the settings share one label.
func (s *Source) countResult(ctx context.Context, r Request, result string) {
	l := labels{provider: r.Provider, result: result, door: r.Door}
	if s.crowds[r.Provider] == nil {
		l.provider = "unknown"
	}
	s.meters.reads.Add(ctx, 1, s.meters.with(l))
}

// read is one reader's read of one version of a user's tokens.
type read struct {
	door                   Door
	reader, provider, user string
	version                int64
}

// readersKept is how many reads a generation of readers remembers: 64 Ki of 8 bytes each.
const readersKept = 1 << 16

// readers remembers, as hashes, which reader has read which version. When full, readers forgets the
// older half, so a read may count as a first read again. Safe for concurrent use.
type readers struct {
	mu       sync.Mutex
	seed     maphash.Seed
	now, old map[uint64]struct{}
}

// first reports whether r was not read before, as far as is remembered.
func (s *readers) first(r read) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		s.seed, s.now = maphash.MakeSeed(), map[uint64]struct{}{}
	}
	sum := maphash.Comparable(s.seed, r)
	if _, known := s.now[sum]; known {
		return false
	}
	_, known := s.old[sum]
	if len(s.now) >= readersKept {
		s.old, s.now = s.now, make(map[uint64]struct{}, readersKept)
	}
	s.now[sum] = struct{}{}
	return !known
}
