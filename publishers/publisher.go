package publishers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/schema"
)

// Tokens are what a provider issued to a user who signed in. Printing it shows no token.
type Tokens struct {
	AccessToken  string // required
	RefreshToken string // without it the user must sign in again when the access token expires
	IDToken      string
	Scope        string
	// ExpiresIn is what is left of the access token's life now, ExpiresAt when it ends; one of them
	// is enough. With neither, renewd looks at the token itself, then at the provider's default.
	ExpiresIn time.Duration
	ExpiresAt time.Time
}

// Format prints a placeholder, whatever the verb.
func (t Tokens) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[redacted tokens]")) }

// MarshalJSON writes a placeholder.
func (t Tokens) MarshalJSON() ([]byte, error) { return []byte(`"[redacted tokens]"`), nil }

// Receipt says where an accepted event is.
type Receipt struct {
	Source   string    // the event's source, and
	ID       string    // its id: together the cause that its outcome names
	Stream   string    // that stored it
	Sequence uint64    // its place there
	Time     time.Time // when it was accepted, by this process's clock: compare it with no other
	// Duplicate: the same event (type, provider, user, source and id) was stored within the last
	// two minutes; this one was dropped.
	Duplicate bool
}

// Option changes how a Publisher works.
type Option func(*Publisher)

// WithPrefix sets the prefix of an installation that has one (RENEWD_NATS_PREFIX).
func WithPrefix(prefix string) Option { return func(p *Publisher) { p.prefix = prefix } }

// WithAPIPrefix sets under which name JetStream's API is imported into the connection's account, such
// as "$JS.renewd.API", where renewd has a NATS account of its own: renewd's public key is read
// through it. Default "$JS.API".
func WithAPIPrefix(prefix string) Option { return func(p *Publisher) { p.apiPrefix = prefix } }

// WithSource sets the CloudEvents source, which names this service in causes. Default "/".
func WithSource(source string) Option { return func(p *Publisher) { p.source = source } }

// WithTracer records a span for each event. Its context travels with the event in any case.
func WithTracer(t trace.Tracer) Option { return func(p *Publisher) { p.tracer = t } }

// WithJWKS fixes renewd's public key, a JSON Web Key Set, for services that may not read the KV
// bucket renewd_keys.
func WithJWKS(jwks []byte) Option { return func(p *Publisher) { p.keys.fixed = jwks } }

// WithKeyPin lets logins be sealed to no other public key than those with these thumbprints (RFC 7638,
// SHA-256, base64url), as `renewd keys list` shows them: whoever replaces the key in NATS reads
// nothing. Pin the next key too before it is promoted.
func WithKeyPin(thumbprints ...string) Option {
	return func(p *Publisher) { p.keys.pins = append(p.keys.pins, thumbprints...) }
}

// Publisher publishes events.
type Publisher struct {
	prefix    string
	apiPrefix string
	source    string
	tracer    trace.Tracer
	js        jetstream.JetStream
	subjects  schema.Subjects
	keys      keys
}

// New returns a publisher on nc. It sends nothing yet.
func New(nc *nats.Conn, opts ...Option) (*Publisher, error) {
	p := &Publisher{source: "/", tracer: noop.NewTracerProvider().Tracer("")}
	for _, opt := range opts {
		opt(p)
	}
	var err error
	if p.subjects, err = schema.NewSubjects(p.prefix); err != nil {
		return nil, fmt.Errorf("publishers: WithPrefix: %w", err)
	}
	if !attributeFits(p.source) {
		return nil, fmt.Errorf("publishers: WithSource: %s", wantAttribute)
	}
	if p.apiPrefix == "" {
		p.js, err = jetstream.New(nc)
	} else {
		p.js, err = jetstream.NewWithAPIPrefix(nc, p.apiPrefix)
	}
	if err != nil {
		return nil, fmt.Errorf("publishers: %w", err)
	}
	p.keys.js, p.keys.bucket = p.js, p.subjects.Name(keysBucket)
	return p, nil
}

// EventOption changes one event.
type EventOption func(*schema.Event)

// WithID sets the event's id, so that publishing it again within two minutes stores it once. One id
// may be used for many users, and by many sources: each is an event of its own. Default: random.
func WithID(id string) EventOption { return func(e *schema.Event) { e.ID = id } }

// Login says that a user signed in, with fresh tokens. The newest login of a user wins over all
// that renewd has or is doing. provider is renewd's id of the provider, user the provider's own id
// of the user, verbatim. Errors: a
// *schema.Malformed for what is wrong with the arguments; everything else is worth another try,
// also that the stream has no room: workers are behind, and nothing was stored.
func (p *Publisher) Login(ctx context.Context, provider, user string, t Tokens, opts ...EventOption) (Receipt, error) {
	if t.AccessToken == "" {
		return Receipt{}, malformed("AccessToken", "missing")
	}
	e, err := p.event(schema.UserLogin, provider, user, opts)
	if err != nil {
		return Receipt{}, err
	}
	jwe, err := p.seal(ctx, e, t)
	if err != nil {
		return Receipt{}, fmt.Errorf("publish login of %s/%s: %w", provider, user, err)
	}
	return p.publish(ctx, e, schema.Login{Tokens: jwe})
}

// RefreshDue asks for a user's profile, or tokens, to be fresh now. Asking again before anybody
// looked replaces the first request; the outcome answers both. Errors as for Login.
func (p *Publisher) RefreshDue(ctx context.Context, provider, user string, r schema.RefreshDue, opts ...EventOption) (Receipt, error) {
	e, err := p.event(schema.UserRefreshDue, provider, user, opts)
	if err != nil {
		return Receipt{}, err
	}
	return p.publish(ctx, e, r)
}

func (p *Publisher) event(typ schema.Type, provider, user string, opts []EventOption) (schema.Event, error) {
	e := schema.Event{
		ID: nuid.Next(), Source: p.source, Type: typ, Provider: provider, User: user, Time: time.Now().UTC(), DataSchema: schema.DataSchema(typ),
	}
	for _, opt := range opts {
		opt(&e)
	}
	if err := schema.CheckProvider(provider); err != nil {
		return e, malformed("provider", err.Error())
	}
	if err := schema.CheckUser(user); err != nil {
		return e, malformed("user", err.Error())
	}
	if !attributeFits(e.ID) {
		return e, malformed("WithID", wantAttribute)
	}
	return e, nil
}

var wantAttribute = fmt.Sprintf("want 1 to %d bytes of UTF-8 without control characters", schema.MaxID)

// attributeFits holds an id or a source against what renewd takes: the rules of a user id.
func attributeFits(v string) bool { return len(v) <= schema.MaxID && schema.CheckUser(v) == nil }

func malformed(field, message string) error {
	return &schema.Malformed{Reason: schema.RejectData, Field: field, Message: message}
}

func (p *Publisher) seal(ctx context.Context, e schema.Event, t Tokens) (string, error) {
	jwks, err := p.keys.get(ctx)
	if err != nil {
		return "", err
	}
	return seal.SealLogin(jwks, e.Provider, e.User, e.Time, seal.Tokens{
		Access: seal.NewToken(t.AccessToken), Refresh: seal.NewToken(t.RefreshToken), ID: seal.NewToken(t.IDToken), Scope: t.Scope,
		ExpiresIn: t.ExpiresIn, ExpiresAt: t.ExpiresAt,
	})
}

func (p *Publisher) publish(ctx context.Context, e schema.Event, data any) (Receipt, error) {
	raw, err := json.Marshal(data)
	if err != nil {
		return Receipt{}, fmt.Errorf("publish %s: %w", e.Type, err)
	}
	e.Data = raw
	if err := check(e); err != nil {
		return Receipt{}, err
	}
	ctx, span := p.tracer.Start(ctx, "publish "+string(e.Type), trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(
		attribute.String("messaging.system", "nats"), attribute.String("messaging.operation.type", "send"),
		attribute.String("messaging.operation.name", "publish"), attribute.String("messaging.destination.template", string(e.Type)),
		attribute.String("messaging.message.id", e.ID),
	))
	defer span.End()
	h, body := schema.Encode(e)
	propagation.TraceContext{}.Inject(ctx, h)
	ack, err := p.send(ctx, &nats.Msg{Subject: p.subjects.Of(e.Address()), Header: nats.Header(h), Data: body})
	if err != nil {
		span.SetStatus(codes.Error, "not stored")
		return Receipt{}, fmt.Errorf("publish %s of %s/%s: %w", e.Type, e.Provider, e.User, err)
	}
	return Receipt{Source: e.Source, ID: e.ID, Stream: ack.Stream, Sequence: ack.Sequence, Time: time.Now(), Duplicate: ack.Duplicate}, nil
}

// check holds the data against the rules that renewd will hold it against.
func check(e schema.Event) error {
	if e.Type == schema.UserLogin {
		return nil // made here
	}
	_, err := schema.Data[schema.RefreshDue](e)
	return err
}

// send waits out a stream that has no leader for a moment. The message id makes trying again safe.
func (p *Publisher) send(ctx context.Context, m *nats.Msg) (*jetstream.PubAck, error) {
	policy := backoff.WithContext(backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(100*time.Millisecond), backoff.WithMaxElapsedTime(5*time.Second)), ctx)
	ack, err := backoff.RetryWithData(func() (*jetstream.PubAck, error) {
		ack, err := p.js.PublishMsg(ctx, m)
		if err != nil && !errors.Is(err, jetstream.ErrNoStreamResponse) && !errors.Is(err, nats.ErrNoResponders) {
			return nil, backoff.Permanent(err)
		}
		return ack, err
	}, policy)
	if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
		return nil, fmt.Errorf("no stream takes %s; is renewd set up on this NATS (renewd streams apply), and the prefix right? %w", m.Subject, err)
	}
	return ack, err
}
