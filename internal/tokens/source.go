package tokens

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// Request asks for one user's access token.
type Request struct {
	Provider string
	User     string // unescaped, as the provider gives it
	// MinValid is the least time for which the token is to be good. 0: schema.DefaultMinValid.
	// Negative: any living token.
	MinValid time.Duration
	// Reader names the caller, a client or a sender. It is the Sender of the cause that a renewal
	// names in its outcome, and each first read of a version is counted for it. Empty: not known.
	Reader string
	// Door is the way by which the request came, for the metrics. Empty: no door.
	Door Door
}

// Door is a way by which tokens are read.
type Door string

// The doors.
const (
	DoorHTTP Door = "http"
	DoorNATS Door = "nats"
)

// Token is a living access token. Printing a Token shows no token.
type Token struct {
	Access    secret.Value
	Type      string    // how the token is presented: "Bearer"
	Scope     string    // as last said by the provider; empty: unknown
	ExpiresAt time.Time // zero: the provider gave no end
	Version   int64     // of the user's record: grows with each renewal
	// Short says why the token is good for less than was asked for, by schema's constants. It is
	// empty if the token is good for as long.
	Short string
}

// Store is the part of a grant.Store from which tokens are read.
type Store interface {
	Load(ctx context.Context, k grant.Key) (grant.Grant, error)
}

// Asker has a grant renewed and returns when that was answered, whatever the answer is. An error is
// the error of ctx, or says why no renewal could be asked for. See NATS.
type Asker interface {
	Ask(ctx context.Context, k grant.Key, w grant.Work) error
}

// Config holds the dependencies and settings of a Source. Zero fields get the named default.
type Config struct {
	Store     Store
	Asker     Asker
	Providers []string // ids of the providers in the settings; any other is refused

	// Policies of the providers: the policies that end sessions, and let idle users rest. For a
	// provider without a policy neither holds.
	Policies map[string]grant.Policy
	// Save is the store's Save, needed only where a policy lets idle users rest: a read is then
	// written down in the record, each few minutes at most.
	Save func(ctx context.Context, g grant.Grant) (revision uint64, err error)

	// MaxWait is how long a caller waits for a renewal at most. Default 15 s.
	MaxWait time.Duration
	// MaxUsers is how many users of one provider may be waited for at a time. Default 1,000.
	MaxUsers int
	// MaxCallers is how many callers may wait for one user at a time, and half of how many may wait
	// for a provider's users beside the first caller of each. Default 10,000.
	MaxCallers int

	// Tell publishes a first read, for an audit. Tell is called apart from the reads, for several
	// reads at a time, and again after an error. nil: first reads are counted only.
	Tell func(ctx context.Context, f FirstRead) error

	Now    func() time.Time // the clock of all workers. Default: this machine's
	Logger *slog.Logger     // nil: nothing is logged
	Meter  metric.Meter     // nil: nothing is counted
}

func (c Config) withDefaults() Config {
	c.MaxWait = cmp.Or(c.MaxWait, 15*time.Second)
	c.MaxUsers = cmp.Or(c.MaxUsers, 1000)
	c.MaxCallers = cmp.Or(c.MaxCallers, 10_000)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Meter == nil {
		c.Meter = noop.Meter{}
	}
	return c
}

// Source hands out access tokens. Safe for concurrent use.
type Source struct {
	c       Config
	meters  meters
	readers readers
	telling telling

	base context.Context // of the waits; ended by Close
	end  context.CancelFunc
	runs sync.WaitGroup // of the waits, and of the tellers of first reads

	mu      sync.Mutex
	flights map[grant.Key]*flight
	notes   map[grant.Key]bool // of users whose read is being written down
	crowds  map[string]*crowd  // by provider; the map itself never changes

	loadMu sync.Mutex
	loads  map[grant.Key]*loading
}

// New returns a Source. Close ends its waits.
func New(c Config) (*Source, error) {
	if c.Store == nil || c.Asker == nil {
		return nil, errors.New("tokens: Store and Asker: want both")
	}
	c = c.withDefaults()
	s := &Source{
		c: c, flights: map[grant.Key]*flight{}, notes: map[grant.Key]bool{},
		crowds: map[string]*crowd{}, loads: map[grant.Key]*loading{},
	}
	for _, id := range c.Providers {
		s.crowds[id] = &crowd{}
	}
	var err error
	if s.meters, err = newMeters(c.Meter); err != nil {
		return nil, fmt.Errorf("tokens: %w", err)
	}
	s.base, s.end = context.WithCancel(context.Background())
	if c.Tell != nil {
		s.startTelling()
	}
	return s, nil
}

// Close ends all waits and returns when the waits are over and the last first reads are told, which
// takes some seconds at most. Renewals already asked for go on. A Get that would have to wait gets
// schema.TokenBusy from then on, or its short token.
func (s *Source) Close() {
	s.mu.Lock()
	s.end()
	s.mu.Unlock()
	s.runs.Wait()
}

// Get returns an access token of a user by the rules of the package. The error wraps a
// *schema.NoToken, or is that of ctx.
func (s *Source) Get(ctx context.Context, r Request) (Token, error) {
	t, err := s.get(ctx, r)
	s.count(ctx, r, t, err)
	if err != nil {
		return Token{}, fmt.Errorf("token of %s: %w",
			grant.Key{Provider: r.Provider, User: r.User}, err)
	}
	return t, nil
}

func (s *Source) get(ctx context.Context, r Request) (Token, error) {
	if err := s.check(r); err != nil {
		return Token{}, err
	}
	k := grant.Key{Provider: r.Provider, User: r.User}
	want := cmp.Or(r.MinValid, schema.DefaultMinValid)
	g, err := s.load(ctx, k)
	if err != nil {
		return Token{}, err
	}
	v := s.judge(g, want)
	asks := v.ask
	if asks {
		if v, err = s.wait(ctx, k, v, want, r.Reader); err != nil {
			return Token{}, err
		}
	}
	if v.none != nil {
		return Token{}, v.none
	}
	if !asks { // else the renewal was noted
		s.note(g)
	}
	return v.token, nil
}

// Refused counts a read refused by its door, with a code of schema.NoToken.
func (s *Source) Refused(r Request, code string) {
	s.countResult(context.Background(), r, code)
}

// check refuses a request without a valid user of a known provider.
func (s *Source) check(r Request) error {
	if err := cmp.Or(schema.CheckProvider(r.Provider), schema.CheckUser(r.User)); err != nil {
		return &schema.NoToken{Code: schema.TokenMalformed, Message: err.Error()}
	}
	if s.crowds[r.Provider] == nil {
		return &schema.NoToken{
			Code:    schema.TokenUnknownProvider,
			Message: "the provider is not among those in renewd's settings",
		}
	}
	return nil
}

// load reads the record; the error wraps a *schema.NoToken, or is that of ctx.
func (s *Source) load(ctx context.Context, k grant.Key) (grant.Grant, error) {
	g, err := s.read(ctx, k)
	if err != nil && ctx.Err() != nil {
		return g, context.Cause(ctx)
	}
	return g, refusal(err)
}

// refusal is a caller's error for the error of a load; nil for nil.
func refusal(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, grant.ErrNotFound):
		return unknownUser()
	}
	no := &schema.NoToken{
		Code:              schema.TokenStoreDown,
		Message:           "renewd's store does not answer",
		RetryAfterSeconds: 1,
	}
	if errors.Is(err, grant.ErrUnreadable) {
		no.Message = "the stored record cannot be opened: a key is missing, or it is damaged"
		no.RetryAfterSeconds = seconds(restMost)
	}
	return fmt.Errorf("%w: %w", no, err)
}
