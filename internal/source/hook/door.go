package hook

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// SourceOf is the CloudEvents source of the commands of a source.
func SourceOf(name string) string { return "/sources/" + name }

// Post is a message as it came.
type Post struct {
	// Header is the value of a header, whatever the letters of its name; empty: no such header.
	Header func(name string) string
	Body   []byte
}

// Answer is the reply to the sender of a message.
type Answer struct {
	Result Result
	Detail string // in words; empty: nothing to say
	// Again: the sender is to send the message again.
	Again bool
	// Status and Body are the answer where a standard prescribes it; 0: no standard does. A nil
	// Body is an empty body.
	Status int
	Body   map[string]string
}

// Deps is everything that a Door needs. All fields are required but Forget, Logger and Meter.
type Deps struct {
	JetStream jetstream.JetStream
	Subjects  schema.Subjects
	// Publisher makes the publisher of a source's commands, whose CloudEvents source is given.
	Publisher func(source string) (*publishers.Publisher, error)
	// Load is grant.Store's.
	Load func(ctx context.Context, k grant.Key) (grant.Grant, error)
	// Forget erases a user, on behalf of a source. Its error wraps grant.ErrNotFound if the store
	// has nothing of the user. nil: nothing can be erased here.
	Forget func(ctx context.Context, k grant.Key, source string) error
	// Calls makes the transport of calls to the issuer of the tokens about a provider's users. to
	// are the addresses of the settings, and may be called wherever they are.
	Calls func(provider string, to ...string) (http.RoundTripper, error)
	// Now is this machine's time, against which senders' clocks are held. Default time.Now.
	Now func() time.Time

	Logger *slog.Logger // nil: nothing is logged
	Meter  metric.Meter // nil: nothing is measured
}

// Door takes the messages of all sources. A Door is safe for concurrent use.
type Door struct {
	Deps
	sources map[string]*source
	ledger  *ledger
	meters  meters
}

// reader verifies a message and reads its content. Its error is a *refusal, or else says that the
// message could be neither believed nor refused.
type reader interface {
	read(ctx context.Context, p Post, now time.Time) (message, error)
}

// message is the content of a verified message.
type message struct {
	id string    // the sender's, the same each time that it is sent
	at time.Time // when the event happened, or else when the message was sent
	// undated: at is when the message was sent this time, which may be days after the event.
	undated bool
	what    string   // the message's type, from the settings or from a standard
	users   []string // ids that the user may have: the first known id counts
	do      Action
}

// source is one source.
type source struct {
	Config
	reader
	publisher *publishers.Publisher
	figures   figures
}

// New makes the door of all sources. Its errors begin with the name of the setting.
func New(all []Config, d Deps) (*Door, error) {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	if d.Meter == nil {
		d.Meter = noop.Meter{}
	}
	door := &Door{Deps: d, sources: map[string]*source{}, meters: newMeters(d.Meter)}
	door.ledger = &ledger{js: d.JetStream, subjects: d.Subjects}
	for _, c := range all {
		s, err := door.source(c.withDefaults())
		if err != nil {
			return nil, fmt.Errorf("sources.%s.%w", c.Name, err)
		}
		door.sources[c.Name] = s
	}
	return door, nil
}

func (d *Door) source(c Config) (s *source, err error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	s = &source{Config: c}
	switch c.Kind {
	case PropelAuth:
		s.reader, err = newStandard(c.Secrets, c.propelAuth)
	case Webhooks:
		s.reader, err = newStandard(c.Secrets, c.mapped)
	case Logout, SET:
		s.reader, err = d.tokens(c)
	default:
		err = fmt.Errorf("kind: %q: want one of %v", c.Kind, Kinds())
	}
	if err == nil {
		s.publisher, err = d.Publisher(SourceOf(c.Name))
	}
	return s, err
}

// tokens reads the tokens of an issuer.
func (d *Door) tokens(c Config) (reader, error) {
	calls, err := d.Calls(c.Provider, c.Issuer, c.JWKS)
	if err != nil {
		return nil, fmt.Errorf("provider: %w", err)
	}
	if i := newIssuer(c, calls, d.Now); c.Kind == SET {
		return set{i}, nil
	} else {
		return logout{i}, nil
	}
}

// Take takes one message. known is false where no source has the name. Take returns once the
// message's command, or the owed erasure, is stored.
func (d *Door) Take(ctx context.Context, name string, p Post) (a Answer, known bool) {
	s := d.sources[name]
	if s == nil {
		return Answer{}, false
	}
	now := d.Now()
	result, err := d.take(ctx, s, p, now)
	a.Result = result
	if why, ok := errors.AsType[*refusal](err); ok {
		a.Detail, a.Again = why.words, why.again
	} else if err != nil {
		a.Detail, a.Again = "renewd cannot take it now", true
		d.Logger.Warn("a message of a source could not be taken; its sender is told to send it "+
			"again", "source", name, "error", err)
	}
	s.figures.count(now, result, a.Detail)
	d.meters.count(ctx, name, result)
	return s.form(a, err), true
}

// take is Take without the answer and the figures.
func (d *Door) take(ctx context.Context, s *source, p Post, now time.Time) (Result, error) {
	m, err := s.read(ctx, p, now)
	if why, ok := errors.AsType[*refusal](err); ok {
		return why.result, err
	}
	if err != nil {
		return Failed, err
	}
	if m.do == Ignore {
		return Ignored, nil
	}
	k, g, err := d.whom(ctx, s, m)
	switch {
	case errors.Is(err, grant.ErrNotFound):
		return UnknownUser, nil
	case err != nil:
		return Failed, err
	}
	before, err := d.ledger.seen(ctx, s.Name, m.id)
	if err != nil {
		return Failed, err
	}
	if before {
		return Replayed, nil
	}
	if err := d.act(ctx, s, m, k, g); err != nil {
		return Failed, err
	}
	if err := d.ledger.see(ctx, s.Name, m.id); err != nil {
		return Failed, err // the command has the message's id, and is stored once
	}
	return Accepted, nil
}

// whom finds the user whom a message is about. Its error is grant.ErrNotFound if the store has none
// of the message's users, and never a *refusal.
func (d *Door) whom(ctx context.Context, s *source, m message) (grant.Key, grant.Grant, error) {
	for _, user := range m.users {
		k := grant.Key{Provider: s.Provider, User: user}
		if schema.CheckUser(user) != nil {
			continue
		}
		g, err := d.Load(ctx, k)
		switch {
		case errors.Is(err, grant.ErrNotFound):
		case err == nil && g.Status == grant.Forgotten:
		case err != nil && !errors.Is(err, grant.ErrUnreadable):
			return k, g, fmt.Errorf("load a grant: %w", err)
		default:
			return k, g, nil
		}
	}
	return grant.Key{}, grant.Grant{}, grant.ErrNotFound
}

const (
	// skew is by how much a sender's clock may be behind renewd's for a deletion to belong to the
	// login that renewd knows.
	skew = time.Minute
	// grain is how exact the times of most messages are.
	grain = time.Second
	// resent is for how long senders of webhooks send a message again: the schedule of Standard
	// Webhooks, rounded up.
	resent = 4 * 24 * time.Hour
)

// lastLogin is when the stream took the user's newest known login, proven or not.
func lastLogin(g grant.Grant) time.Time {
	last := g.LoginAt
	for c := g.Candidate; c != nil; c = c.Next {
		if c.Login.Time.After(last) {
			last = c.Login.Time
		}
	}
	return last
}

// weighed is the message's action after a comparison with the user's newest login. For an older
// message the provider is asked: the message ends no session of that login, and a surely older
// message erases nothing. A user who was deleted has hardly signed in again at once.
func (m message) weighed(g grant.Grant) Action {
	last := lastLogin(g)
	switch {
	case m.do == Forget && last.After(m.at.Add(skew)):
		return Ask // a deleted user who has signed in since is there again
	case m.do != SignOut:
		return m.do
	case m.undated && last.After(m.at.Add(-resent)), last.After(m.at.Add(grain)):
		return Ask
	}
	return SignOut
}

// act stores the command, or the owed erasure, of a message.
func (d *Door) act(ctx context.Context, s *source, m message, k grant.Key, g grant.Grant) error {
	do := m.weighed(g)
	reason := string(s.Kind) + " " + m.what
	options := []publishers.EventOption{
		func(e *schema.Event) { e.Sender = senders.HTTP }, publishers.WithID(commandID(m.id)),
	}
	var err error
	switch do {
	case Forget:
		return d.ledger.owe(ctx, s.Name, k, m)
	case SignOut:
		_, err = s.publisher.Logout(ctx, k.Provider, k.User, schema.Logout{Reason: reason},
			options...)
	case Ask:
		_, err = s.publisher.RefreshDue(ctx, k.Provider, k.User,
			schema.RefreshDue{Want: schema.WantTokens, Reason: reason}, options...)
	default:
		_, err = s.publisher.RefreshDue(ctx, k.Provider, k.User,
			schema.RefreshDue{Reason: reason}, options...)
	}
	return err
}

// commandID is the message's id, or a digest of an id that a command cannot have.
func commandID(id string) string {
	if len(id) <= schema.MaxID && schema.CheckUser(id) == nil {
		return id
	}
	return "id_" + digest(id)
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}
