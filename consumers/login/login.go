// Package login is the consumer of user.login: it opens the sealed tokens, makes them the candidate
// of their user's grant, and wakes it.
//
// It is the only place where a grant comes to be. It makes no call to a provider and so never waits
// behind one: whether a candidate's tokens are its user's is for the refresh consumer to find out,
// and until then nothing that is proven of the user changes. It never touches an outcome. A
// Consumer is safe for concurrent use, by many messages and processes: the newest login of a user
// wins by its place in the stream, whatever order they are handled in.
package login

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nuid"
	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Opened is a login's sealed part: whom the tokens were sealed for, and the tokens.
type Opened struct {
	Provider  string
	User      string
	SealedAt  time.Time
	Access    grant.Secret
	Refresh   grant.Secret
	ID        grant.Secret
	Scope     string
	ExpiresAt time.Time     // zero if not said
	ExpiresIn time.Duration // 0 if not said; counts from SealedAt
}

// Stream is the engine.
type Stream interface {
	// Request makes a grant due now for a command, beside what waits for it.
	Request(ctx context.Context, k grant.Key, w grant.Work) error
	// Newest is the latest mark that the stream knows of the grant's record.
	Newest(ctx context.Context, k grant.Key) (grant.Mark, error)
	// LoginsCreated is when the stream was made that gave a login this sequence.
	LoginsCreated(ctx context.Context, sequence uint64) (time.Time, error)
	// DeferLogin has the login come again at that time, on another subject, with its place among
	// all logins.
	DeferLogin(
		ctx context.Context, of schema.Address, at time.Time, order grant.Order, deferrals int,
		h schema.Header, data []byte,
	) error
	// ParseDeferred reads a login that DeferLogin put off: h is its own header.
	ParseDeferred(subject string, header schema.Header) (
		of schema.Address, order grant.Order, deferrals int, h schema.Header, err error,
	)
}

// Config is what a Consumer stands on.
type Config struct {
	Subjects schema.Subjects
	Store    grant.Store
	Stream   Stream
	// Policies of the providers in the settings; a login at any other is rejected.
	Policies map[string]grant.Policy
	// Refuse says why its sender may not publish a login, nil if it may. Default: each may.
	Refuse func(schema.Event) error
	// Open opens the sealed tokens; its errors must not quote them.
	Open func(jwe string) (Opened, error)
	// KeyMissing reports whether an error says that the key is not in this worker's keyring:
	// another worker may have it.
	KeyMissing func(error) bool
	// MaxSealAge is how long before the stream took a login its tokens may have been sealed.
	// Default 5 min; a publisher whose outbox may take longer needs more.
	MaxSealAge time.Duration
	Now        func() time.Time
	Rand       func() float64 // draws from [0,1); safe for concurrent use
	Logger     *slog.Logger
}

// Consumer handles logins.
type Consumer struct{ c Config }

// New checks c.
func New(c Config) (*Consumer, error) {
	for name, missing := range map[string]bool{
		"Store": c.Store == nil, "Stream": c.Stream == nil, "Open": c.Open == nil, "KeyMissing": c.KeyMissing == nil, "Now": c.Now == nil,
		"Rand": c.Rand == nil, "Logger": c.Logger == nil,
	} {
		if missing {
			return nil, fmt.Errorf("login: %s: missing", name)
		}
	}
	if c.MaxSealAge == 0 {
		c.MaxSealAge = skew
	}
	if c.Refuse == nil {
		c.Refuse = func(schema.Event) error { return nil }
	}
	return &Consumer{c}, nil
}

const (
	// skew is how far a publisher's clock may be ahead of the stream's.
	skew = 5 * time.Minute
	// keyWait is how long a login waits for a worker that has its key: while keys are rotated, not
	// all have it.
	keyWait = time.Hour
	// recordWait is how often a login is put off, half a minute in all, before it takes the place
	// of a record whose key is missing: while keys are rotated another worker can read it, and once
	// the keyring is lost nobody can.
	recordWait = 4
)

// loginsStream is where a login that was put off came from.
const loginsStream = "LOGINS"

// arrived is a login on its way, as the stream took it, however often it was put off since.
type arrived struct {
	m         *consumers.Message
	subject   string
	stream    string
	header    schema.Header
	order     grant.Order // the place only
	deferrals int
}

// Handle makes one login the candidate of its user's grant and wakes the grant. Its error is a
// verdict of package consumers.
func (c *Consumer) Handle(ctx context.Context, m *consumers.Message) error {
	a, err := c.arrival(ctx, m)
	if err != nil {
		return consumers.Retry(err, time.Second)
	}
	return c.handle(ctx, a)
}

// HandleDeferred is Handle for a login that PutOff put off.
func (c *Consumer) HandleDeferred(ctx context.Context, m *consumers.Message) error {
	a, err := c.deferred(m)
	if err != nil {
		return consumers.Reject(err)
	}
	return c.handle(ctx, a)
}

func (c *Consumer) arrival(ctx context.Context, m *consumers.Message) (arrived, error) {
	created, err := c.c.Stream.LoginsCreated(ctx, m.Sequence)
	if m.Time.Before(created) {
		created = m.Time // of the stream before this one: later than all that came in by then, and older than what comes now
	}
	order := grant.Order{Stream: created.UTC(), Sequence: m.Sequence, Time: m.Time.UTC()}
	return arrived{m: m, subject: m.Subject, stream: m.Stream, header: m.Header, order: order}, err
}

func (c *Consumer) deferred(m *consumers.Message) (arrived, error) {
	of, order, deferrals, header, err := c.c.Stream.ParseDeferred(m.Subject, m.Header)
	if err != nil {
		return arrived{}, err
	}
	return arrived{
		m: m, subject: c.c.Subjects.Of(of), stream: c.c.Subjects.Name(loginsStream),
		header: header, order: order, deferrals: deferrals,
	}, nil
}

func (c *Consumer) handle(ctx context.Context, a arrived) error {
	e, candidate, err := c.open(a)
	if err != nil && c.c.KeyMissing(err) {
		if later := c.putOff(ctx, a, err); later != nil { // another worker may have the key
			return consumers.Retry(errors.Join(err, later), time.Second)
		}
		return nil
	}
	if err != nil {
		return consumers.Reject(err)
	}
	k := grant.Key{Provider: e.Provider, User: e.User}
	wake, err := c.store(ctx, a, k, candidate)
	if err != nil && errors.Is(err, grant.ErrUnreadable) {
		if later := c.putOff(ctx, a, err); later != nil {
			return consumers.Retry(errors.Join(err, later), time.Second)
		}
		return nil
	}
	if err != nil {
		return consumers.Retry(err, time.Second)
	}
	if !wake {
		return nil
	}
	if candidate.Pair.Refresh.IsZero() {
		c.c.Logger.Warn("login without a refresh token: the user must sign in again when the access token expires", "grant", k,
			"field", "refresh_token", "hint", "ask the provider for offline access, or seal refresh_token too")
	}
	if err := c.c.Stream.Request(ctx, k, grant.Work{Cause: candidate.Cause}); err != nil {
		return consumers.Retry(err, time.Second)
	}
	return nil
}

// PutOff has a login that failed again and again come back later, so that it does not hold a place
// meanwhile. Its signature is that of consumers.Config.PutOff.
func (c *Consumer) PutOff(ctx context.Context, m *consumers.Message, cause error) error {
	a, err := c.arrival(ctx, m)
	if err != nil {
		return err
	}
	return c.putOff(ctx, a, cause)
}

// PutOffDeferred is PutOff for a login that was put off before.
func (c *Consumer) PutOffDeferred(ctx context.Context, m *consumers.Message, cause error) error {
	a, err := c.deferred(m)
	if err != nil {
		return err
	}
	return c.putOff(ctx, a, cause)
}

// The wait before a login that was put off comes again doubles between these.
const (
	deferMin = 2 * time.Second
	deferMax = 30 * time.Second
)

func (c *Consumer) putOff(ctx context.Context, a arrived, cause error) error {
	e, err := c.decode(a)
	if err != nil {
		return err
	}
	if err := c.refuse(a, e); err != nil {
		return err
	}
	k := grant.Key{Provider: e.Provider, User: e.User}
	wait := min(deferMin<<min(a.deferrals, 10), deferMax)
	c.c.Logger.Warn("login put off", "grant", k, "deferrals", a.deferrals+1, "wait", wait, "error", cause)
	at := c.c.Now().Add(wait)
	return c.c.Stream.DeferLogin(ctx, e.Address(), at, a.order, a.deferrals+1, a.header, a.m.Data)
}

func (c *Consumer) decode(a arrived) (schema.Event, error) {
	return c.c.Subjects.Decode(a.header, a.m.Data, schema.Arrival{
		Subject: a.subject, Stream: a.stream, Sequence: a.order.Sequence, Time: a.order.Time,
	})
}

// refuse holds a login against the rights of its sender, once: one that was put off was let in
// before, possibly by a version that knew of no senders.
func (c *Consumer) refuse(a arrived, e schema.Event) error {
	if a.deferrals > 0 {
		return nil
	}
	return c.c.Refuse(e)
}

// open reads the message and its sealed part, and holds the two against each other: a seal made for
// another user, provider or time is refused, so that nobody's tokens can be filed under somebody
// else. The time is the stream's, since what an event says of its own time is its sender's word.
func (c *Consumer) open(a arrived) (schema.Event, grant.Candidate, error) {
	e, err := c.decode(a)
	if err != nil {
		return e, grant.Candidate{}, err
	}
	policy, ok := c.c.Policies[e.Provider]
	if !ok {
		return e, grant.Candidate{}, &schema.Malformed{Reason: schema.RejectUnknownProvider, Field: "provider",
			Message: fmt.Sprintf("%q is not among the providers in renewd's settings", e.Provider)}
	}
	if err := c.refuse(a, e); err != nil {
		return e, grant.Candidate{}, err
	}
	data, err := schema.Data[schema.Login](e)
	if err != nil {
		return e, grant.Candidate{}, err
	}
	o, err := c.c.Open(data.Tokens)
	if err != nil && c.c.KeyMissing(err) && c.c.Now().Sub(a.order.Time) < keyWait {
		return e, grant.Candidate{}, err
	}
	if err != nil {
		return e, grant.Candidate{}, &schema.Malformed{Reason: schema.RejectSealed, Field: "tokens", Message: err.Error()}
	}
	if bad := c.refusal(e, o, a.order.Time); bad != nil {
		return e, grant.Candidate{}, bad
	}
	return e, candidateOf(e, o, a.order, policy.WithDefaults()), nil
}

// refusal says what of the sealed part does not fit the event.
func (c *Consumer) refusal(e schema.Event, o Opened, took time.Time) error {
	refuse := func(field, message string) error {
		return &schema.Malformed{Reason: schema.RejectSealed, Field: field, Message: message}
	}
	switch age := took.Sub(o.SealedAt); {
	case o.Provider != e.Provider:
		return refuse("tokens.iss", "sealed for another provider than the subject's")
	case o.User != e.User:
		return refuse("tokens.sub", "sealed for another user than the subject's")
	case age > c.c.MaxSealAge:
		return refuse("tokens.iat", fmt.Sprintf("sealed %v before it was published, %v at most: seal the tokens anew for each login, or, if an outbox takes longer, raise login_max_age",
			age.Round(time.Second), c.c.MaxSealAge))
	case age < -skew:
		return refuse("tokens.iat", fmt.Sprintf("sealed %v after it was published: set the publisher's clock by NTP", -age.Round(time.Second)))
	case o.Access.IsZero():
		return refuse("tokens.access_token", "missing")
	}
	return nil
}

// store makes the login the candidate of its user's grant, unless the record knows of it already,
// and tells whether the grant is to be woken for it. The record's version goes beyond all that was
// published of the user, also where the store has none of it: else subscribers would take its
// outcomes for older than what they know.
func (c *Consumer) store(ctx context.Context, a arrived, k grant.Key, candidate grant.Candidate) (wake bool, err error) {
	published, err := c.c.Stream.Newest(ctx, k)
	if err != nil {
		return false, err
	}
	for {
		cur, err := c.load(ctx, a, k)
		if err != nil {
			return false, err
		}
		t := grant.Turn{
			Work: grant.Work{Mark: published}, Nonce: nuid.Next(), Now: c.c.Now(), Draw: c.c.Rand(), Policy: c.c.Policies[k.Provider].WithDefaults(),
		}
		next, what := grant.LoggedIn(cur, k, candidate, t)
		switch what {
		case grant.Outdated, grant.Same:
			return false, nil // a newer login, or this one, woke the grant: its outcome answers this one too
		case grant.Stored:
			return cur.Candidate != nil, nil // without one its outcome is out: there is nothing left to do
		case grant.Repeated:
			c.c.Logger.Info("a login was published again; nothing of it was taken", "grant", k)
			return true, nil
		}
		if !a.m.Held() {
			return false, consumers.ErrLeaseLost
		}
		_, err = c.c.Store.Save(ctx, next)
		if errors.Is(err, grant.ErrConflict) && ctx.Err() == nil {
			continue // also when the reply of our own save was lost: then it is found stored
		}
		return err == nil, err
	}
}

// load returns the record, the zero Grant if there is none. Of one that cannot be read a login
// needs the place only; but as long as a key is missing in this keyring alone, another worker may
// read it.
func (c *Consumer) load(ctx context.Context, a arrived, k grant.Key) (grant.Grant, error) {
	cur, err := c.c.Store.Load(ctx, k)
	switch {
	case errors.Is(err, grant.ErrNotFound):
		return grant.Grant{}, nil
	case errors.Is(err, grant.ErrUnreadable) && (!c.c.KeyMissing(err) || a.deferrals >= recordWait):
		c.c.Logger.Error("the stored record cannot be read: this login takes its place", "grant", k, "error", err)
		return grant.Grant{Key: k, Revision: cur.Revision, Version: cur.Version, Login: cur.Login, Status: grant.Unproven}, nil
	}
	return cur, err
}

// candidateOf measures the access token's life: by what the login says, else by the token's own
// exp, else by the policy. It counts from when the tokens were sealed, or from when the stream took
// them if that was earlier by its clock.
func candidateOf(e schema.Event, o Opened, order grant.Order, policy grant.Policy) grant.Candidate {
	from := o.SealedAt
	if order.Time.Before(from) {
		from = order.Time
	}
	p := grant.Pair{Access: o.Access, Refresh: o.Refresh, ID: o.ID, Scope: o.Scope, SentAt: o.SealedAt, ExpiresAt: o.ExpiresAt}
	if p.ExpiresAt.IsZero() && o.ExpiresIn > 0 {
		p.ExpiresAt = from.Add(o.ExpiresIn)
	}
	if p.ExpiresAt.IsZero() {
		p.ExpiresAt = jwtExpiry(o.Access.Reveal())
	}
	order.SealedAt, order.Token = from.UTC(), o.Refresh.Fingerprint()
	if o.Refresh.IsZero() {
		order.Token = o.Access.Fingerprint()
	} else {
		if p.ExpiresAt.IsZero() {
			p.ExpiresAt = from.Add(policy.Lifetime)
		}
		if latest := from.Add(policy.MaxLifetime); p.ExpiresAt.After(latest) {
			p.ExpiresAt = latest // a publisher does not decide when a user is looked at again
		}
	}
	if p.Lifetime = p.ExpiresAt.Sub(from); p.Lifetime <= 0 {
		p.Lifetime = policy.Lifetime // expired when it was sealed, or nobody said
	}
	cause := schema.Cause{ID: e.ID, Type: e.Type, Source: e.Source, Time: e.Time, Sender: e.Sender}
	order.Event = grant.OutcomeID(grant.Key{Provider: e.Provider, User: e.User}, cause)
	return grant.Candidate{Pair: p, Cause: cause, Login: order}
}

// jwtExpiry reads exp of a JWT without checking anything else: the token is the provider's
// business. Zero if there is none.
func jwtExpiry(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Exp float64 `json:"exp"`
	}
	if err != nil || json.Unmarshal(payload, &claims) != nil || claims.Exp <= 0 || claims.Exp > 1e11 {
		return time.Time{}
	}
	return time.Unix(int64(claims.Exp), 0).UTC()
}
