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
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// Tokens are the tokens a provider issued to a user at sign-in. Printing Tokens shows no token.
type Tokens struct {
	AccessToken  string // required
	RefreshToken string // empty: the user must sign in again when the access token expires
	IDToken      string
	Scope        string
	// ExpiresIn is the rest of the access token's life now, ExpiresAt its end. Either is enough.
	// With neither, renewd looks at the token itself, then at the provider's default.
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
	ID       string    // the event's id: together the cause named in the outcome
	Stream   string    // the stream that stored the event
	Sequence uint64    // the event's place in the stream
	Time     time.Time // when accepted, by this process's clock: compare with no other clock
	// Duplicate: the same event (type, provider, user, source and id) was stored within the last
	// two minutes, and this event was dropped.
	Duplicate bool
}

// Option changes how a Publisher works.
type Option func(*Publisher)

// WithPrefix sets the prefix of the installation (RENEWD_NATS_PREFIX). Default: no prefix.
func WithPrefix(prefix string) Option { return func(p *Publisher) { p.prefix = prefix } }

// WithAPIPrefix sets under which name JetStream's API is imported into the connection's account,
// such as "$JS.renewd.API", where renewd has its own NATS account. renewd's public key is read
// through this name. Default "$JS.API".
func WithAPIPrefix(prefix string) Option { return func(p *Publisher) { p.apiPrefix = prefix } }

// WithSource sets the CloudEvents source, which names this service in causes. Default "/".
func WithSource(source string) Option { return func(p *Publisher) { p.source = source } }

// WithClock dates events, and the seal of logins, by another clock than this machine's. renewd
// rejects a login that was sealed more than five minutes before or after the stream took it
// (RENEWD_LOGIN_MAX_AGE), so a clock that follows the NATS server's keeps a machine whose own clock
// is wrong from losing logins. now must be safe for concurrent use.
func WithClock(now func() time.Time) Option { return func(p *Publisher) { p.now = now } }

// WithTracer records a span for each event. The trace context travels with the event in any case.
func WithTracer(t trace.Tracer) Option { return func(p *Publisher) { p.tracer = t } }

// WithJWKS fixes renewd's public key, a JSON Web Key Set, for services that may not read the KV
// bucket renewd_keys.
func WithJWKS(jwks []byte) Option { return func(p *Publisher) { p.keys.fixed = jwks } }

// WithKeyPin lets logins be sealed only to public keys with these thumbprints (RFC 7638, SHA-256,
// base64url), as `renewd keys list` shows. An attacker who replaces the key in NATS then reads
// nothing. Pin the next key too before its promotion.
func WithKeyPin(thumbprints ...string) Option {
	return func(p *Publisher) { p.keys.pins = append(p.keys.pins, thumbprints...) }
}

// WithKeyRoot lets logins be sealed only to public keys signed by one of these roots, for as long
// as the signature says. `renewd keys root new` makes a root, whose private half stays offline, and
// `renewd keys sign` signs. Publishers then need no change when keys are rotated. Several roots are
// for the change from an old root to a new root. With WithJWKS the fixed set is a signed set.
func WithKeyRoot(publicKeys ...string) Option {
	return func(p *Publisher) { p.keys.roots = append(p.keys.roots, publicKeys...) }
}

// Publisher publishes events.
type Publisher struct {
	prefix    string
	apiPrefix string
	source    string
	tracer    trace.Tracer
	now       func() time.Time
	js        jetstream.JetStream
	subjects  schema.Subjects
	keys      keys
}

// New returns a publisher on nc, and sends nothing yet.
func New(nc *nats.Conn, opts ...Option) (*Publisher, error) {
	p := &Publisher{source: "/", now: time.Now, tracer: noop.NewTracerProvider().Tracer("")}
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
	for _, root := range p.keys.roots {
		if err := seal.CheckRoot(root); err != nil {
			return nil, fmt.Errorf("publishers: WithKeyRoot: %w", err)
		}
	}
	if p.apiPrefix == "" {
		p.js, err = jetstream.New(nc)
	} else {
		p.js, err = jetstream.NewWithAPIPrefix(nc, p.apiPrefix)
	}
	if err != nil {
		return nil, fmt.Errorf("publishers: %w", err)
	}
	p.keys.js, p.keys.bucket = p.js, p.subjects.Name(schema.BucketKeys)
	return p, nil
}

// EventOption changes one event.
type EventOption func(*schema.Event)

// WithID sets the event's id, so that publishing the event again within two minutes stores it once.
// The same id may be used for many users, and by many sources: each such use is a separate event.
// Default: random.
func WithID(id string) EventOption { return func(e *schema.Event) { e.ID = id } }

// Login says that a user signed in, with fresh tokens. The newest login of a user wins over all
// that renewd has or is doing. provider is renewd's id of the provider, user the provider's own id
// of the user, verbatim. A *schema.Malformed error says what is wrong with the arguments. Every
// other error is worth another try, even if the stream has no room: then workers are behind, and
// nothing was stored.
func (p *Publisher) Login(
	ctx context.Context, provider, user string, t Tokens, opts ...EventOption,
) (Receipt, error) {
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

// RefreshDue asks for a user's profile, or tokens, to be fresh now. Requests that wait for a worker
// together are answered by one outcome. Of more than eight the oldest goes. Errors as for Login.
func (p *Publisher) RefreshDue(
	ctx context.Context, provider, user string, r schema.RefreshDue, opts ...EventOption,
) (Receipt, error) {
	e, err := p.event(schema.UserRefreshDue, provider, user, opts)
	if err != nil {
		return Receipt{}, err
	}
	return p.publish(ctx, e, r)
}

// Logout ends a user's session: renewd drops the tokens of the logins before it, and of no later
// login. With Revoke the tokens are revoked at the provider first. The outcome is user.signed_out,
// or user.refresh_failed with the reason unknown_grant. Errors as for Login.
func (p *Publisher) Logout(
	ctx context.Context, provider, user string, l schema.Logout, opts ...EventOption,
) (Receipt, error) {
	e, err := p.event(schema.UserLogout, provider, user, opts)
	if err != nil {
		return Receipt{}, err
	}
	return p.publish(ctx, e, l)
}

// Suspend stops the use of a user's tokens, so that nothing is presented and no access token handed
// out, until a Resume or a newer login. The session is kept. A renewal under way may finish. The
// outcome is user.suspended. If the session has ended, the outcome is user.refresh_failed with the
// reason. If the login was not proven yet, the outcome is user.signed_out. Errors as for Login.
func (p *Publisher) Suspend(
	ctx context.Context, provider, user string, s schema.Suspend, opts ...EventOption,
) (Receipt, error) {
	e, err := p.event(schema.UserSuspend, provider, user, opts)
	if err != nil {
		return Receipt{}, err
	}
	return p.publish(ctx, e, s)
}

// Resume ends a Suspend: the user is renewed at once, as by RefreshDue. So is a user who was not
// suspended. The outcomes are the same as for RefreshDue. Errors as for Login.
func (p *Publisher) Resume(
	ctx context.Context, provider, user string, r schema.Resume, opts ...EventOption,
) (Receipt, error) {
	e, err := p.event(schema.UserResume, provider, user, opts)
	if err != nil {
		return Receipt{}, err
	}
	return p.publish(ctx, e, r)
}

func (p *Publisher) event(
	typ schema.Type, provider, user string, opts []EventOption,
) (schema.Event, error) {
	e := schema.Event{
		ID:         nuid.Next(),
		Source:     p.source,
		Type:       typ,
		Provider:   provider,
		User:       user,
		Time:       p.now().UTC(),
		DataSchema: schema.DataSchema(typ),
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

var wantAttribute = fmt.Sprintf("want 1 to %d bytes of UTF-8 without control characters",
	schema.MaxID)

// attributeFits checks an id or a source against renewd's rules: the rules of a user id.
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
		Access:    secret.New(t.AccessToken),
		Refresh:   secret.New(t.RefreshToken),
		ID:        secret.New(t.IDToken),
		Scope:     t.Scope,
		ExpiresIn: t.ExpiresIn,
		ExpiresAt: t.ExpiresAt,
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
	ctx, span := p.tracer.Start(ctx, "publish "+string(e.Type),
		trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(
			attribute.String("messaging.system", "nats"),
			attribute.String("messaging.operation.type", "send"),
			attribute.String("messaging.operation.name", "publish"),
			attribute.String("messaging.destination.template", string(e.Type)),
			attribute.String("messaging.message.id", e.ID),
		))
	defer span.End()
	h, body := schema.Encode(e)
	propagation.TraceContext{}.Inject(ctx, h)
	ack, err := p.send(ctx, &nats.Msg{
		Subject: p.subjects.Of(e.Address()),
		Header:  nats.Header(h),
		Data:    body,
	})
	if err != nil {
		span.SetStatus(codes.Error, "not stored")
		return Receipt{}, fmt.Errorf("publish %s of %s/%s: %w", e.Type, e.Provider, e.User, err)
	}
	return Receipt{
		Source:    e.Source,
		ID:        e.ID,
		Stream:    ack.Stream,
		Sequence:  ack.Sequence,
		Time:      time.Now(),
		Duplicate: ack.Duplicate,
	}, nil
}

// check checks the data against the rules renewd will apply.
func check(e schema.Event) error {
	var err error
	switch e.Type {
	case schema.UserLogin: // made here
	case schema.UserLogout:
		_, err = schema.Data[schema.Logout](e)
	case schema.UserSuspend:
		_, err = schema.Data[schema.Suspend](e)
	case schema.UserResume:
		_, err = schema.Data[schema.Resume](e)
	default:
		_, err = schema.Data[schema.RefreshDue](e)
	}
	return err
}

// send waits while the stream has no leader for a moment. The message id makes another try safe.
func (p *Publisher) send(ctx context.Context, m *nats.Msg) (*jetstream.PubAck, error) {
	policy := backoff.WithContext(backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(100*time.Millisecond),
		backoff.WithMaxElapsedTime(5*time.Second)), ctx)
	ack, err := backoff.RetryWithData(func() (*jetstream.PubAck, error) {
		ack, err := p.js.PublishMsg(ctx, m)
		if err != nil && !errors.Is(err, jetstream.ErrNoStreamResponse) &&
			!errors.Is(err, nats.ErrNoResponders) {
			return nil, backoff.Permanent(err)
		}
		return ack, err
	}, policy)
	if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
		return nil, fmt.Errorf("no stream takes %s; is renewd set up on this NATS (renewd "+
			"streams apply), and the prefix right? %w", m.Subject, err)
	}
	return ack, err
}
