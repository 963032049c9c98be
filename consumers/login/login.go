// Package login is the consumer of user.login: it opens the sealed tokens, stores the grant, and wakes its first renewal.
//
// It is the only place where a grant comes to be. It makes no call to a provider and so never waits behind one, and it
// never touches an outcome. A Consumer is safe for concurrent use, by many messages and processes: the newest login of a
// user wins by its place in the stream, whatever order they are handled in.
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
	// Wake makes a grant due now, for the given work.
	Wake(ctx context.Context, k grant.Key, w grant.Work) error
	// Newest is the latest mark that the stream knows of the grant's record.
	Newest(ctx context.Context, k grant.Key) (grant.Mark, error)
}

// Config is what a Consumer stands on.
type Config struct {
	Subjects schema.Subjects
	Store    grant.Store
	Stream   Stream
	// Policies of the providers in the settings; a login at any other is rejected.
	Policies map[string]grant.Policy
	// Open opens the sealed tokens; its errors must not quote them.
	Open func(jwe string) (Opened, error)
	// Created is when the LOGINS stream was created: with the sequence it orders logins also across a new stream.
	Created time.Time
	Now     func() time.Time
	Rand    func() float64 // draws from [0,1); safe for concurrent use
	Logger  *slog.Logger
}

// Consumer handles logins.
type Consumer struct{ c Config }

// New checks c.
func New(c Config) (*Consumer, error) {
	for name, missing := range map[string]bool{
		"Store": c.Store == nil, "Stream": c.Stream == nil, "Open": c.Open == nil, "Now": c.Now == nil, "Rand": c.Rand == nil,
		"Logger": c.Logger == nil,
	} {
		if missing {
			return nil, fmt.Errorf("login: %s: missing", name)
		}
	}
	return &Consumer{c}, nil
}

// skew is how far the time in the seal may be from the event's: the two are set by one machine moments apart.
const skew = 5 * time.Minute

// Handle stores the grant of one login and wakes it. Its error is a verdict of package consumers.
func (c *Consumer) Handle(ctx context.Context, m *consumers.Message) error {
	e, opened, err := c.open(m)
	if err != nil {
		return consumers.Reject(err)
	}
	k := grant.Key{Provider: e.Provider, User: e.User}
	order := grant.Order{Stream: c.c.Created.UTC(), Sequence: m.Sequence, Time: m.Time.UTC()}
	g, newest, err := c.store(ctx, m, k, opened, order)
	if err != nil {
		return consumers.Retry(err, time.Second)
	}
	if !newest {
		return nil // a newer login is stored, and woke the grant: its outcome answers this one too
	}
	if opened.Refresh.IsZero() {
		c.c.Logger.Warn("login without a refresh token: the user must sign in again when the access token expires", "grant", k,
			"field", "refresh_token", "hint", "ask the provider for offline access, or seal refresh_token too")
	}
	cause := schema.Cause{ID: e.ID, Type: e.Type, Source: e.Source, Time: e.Time}
	if err := c.c.Stream.Wake(ctx, k, grant.Work{Cause: cause, Mark: g.Mark()}); err != nil {
		return consumers.Retry(err, time.Second)
	}
	return nil
}

// open reads the message and its sealed part, and holds the two against each other: a seal made for another user,
// provider or time is refused, so that nobody's tokens can be filed under somebody else.
func (c *Consumer) open(m *consumers.Message) (schema.Event, Opened, error) {
	e, err := c.c.Subjects.Decode(m.Header, m.Data, schema.Arrival{Subject: m.Subject, Stream: m.Stream, Sequence: m.Sequence, Time: m.Time})
	if err != nil {
		return e, Opened{}, err
	}
	if _, ok := c.c.Policies[e.Provider]; !ok {
		return e, Opened{}, &schema.Malformed{Reason: schema.RejectUnknownProvider, Field: "provider",
			Message: fmt.Sprintf("%q is not among the providers in renewd's settings", e.Provider)}
	}
	data, err := schema.Data[schema.Login](e)
	if err != nil {
		return e, Opened{}, err
	}
	o, err := c.c.Open(data.Tokens)
	if err != nil {
		return e, o, &schema.Malformed{Reason: schema.RejectSealed, Field: "tokens", Message: err.Error()}
	}
	refuse := func(field, message string) (schema.Event, Opened, error) {
		return e, Opened{}, &schema.Malformed{Reason: schema.RejectSealed, Field: field, Message: message}
	}
	switch {
	case o.Provider != e.Provider:
		return refuse("tokens.iss", "sealed for another provider than the subject's")
	case o.User != e.User:
		return refuse("tokens.sub", "sealed for another user than the subject's")
	case o.SealedAt.Sub(e.Time).Abs() > skew:
		return refuse("tokens.iat", "sealed at another time than the event's: seal the tokens anew for each login")
	case o.Access.IsZero():
		return refuse("tokens.access_token", "missing")
	}
	return e, o, nil
}

// store writes the grant unless a newer login is there, and returns it as it is stored; newest tells that this login is
// (still) the stored one. Its version goes beyond all that was published of the user, also where the store has none of it:
// else subscribers would take its outcomes for older than what they know.
func (c *Consumer) store(ctx context.Context, m *consumers.Message, k grant.Key, o Opened, order grant.Order) (g grant.Grant, newest bool, err error) {
	policy := c.c.Policies[k.Provider].WithDefaults()
	pair := pairOf(o, policy)
	published, err := c.c.Stream.Newest(ctx, k)
	if err != nil {
		return g, false, err
	}
	for {
		cur, err := c.c.Store.Load(ctx, k)
		if err != nil && !errors.Is(err, grant.ErrNotFound) {
			return g, false, err
		}
		t := grant.Turn{Work: grant.Work{Mark: published}, Nonce: nuid.Next(), Now: c.c.Now(), Draw: c.c.Rand(), Policy: policy}
		next, stale := grant.LoggedIn(cur, k, pair, order, t)
		if stale {
			return cur, cur.Login.Stream.Equal(order.Stream) && cur.Login.Sequence == order.Sequence, nil
		}
		if !m.Held() {
			// Stalled: the user may have been erased meanwhile, by somebody who waited for us and took us for dead.
			return g, false, consumers.ErrLeaseLost
		}
		_, err = c.c.Store.Save(ctx, next)
		if errors.Is(err, grant.ErrConflict) && ctx.Err() == nil {
			continue // also when the reply of our own save was lost: then it is found stored
		}
		return next, err == nil, err
	}
}

// pairOf measures the access token's life: by what the login says, else by the token's own exp, else by the policy.
func pairOf(o Opened, policy grant.Policy) grant.Pair {
	p := grant.Pair{Access: o.Access, Refresh: o.Refresh, ID: o.ID, Scope: o.Scope, SentAt: o.SealedAt, ExpiresAt: o.ExpiresAt}
	if p.ExpiresAt.IsZero() && o.ExpiresIn > 0 {
		p.ExpiresAt = o.SealedAt.Add(o.ExpiresIn)
	}
	if p.ExpiresAt.IsZero() {
		p.ExpiresAt = jwtExpiry(o.Access.Reveal())
	}
	if p.ExpiresAt.IsZero() {
		p.ExpiresAt = o.SealedAt.Add(policy.Lifetime)
	}
	if p.Lifetime = p.ExpiresAt.Sub(o.SealedAt); p.Lifetime <= 0 {
		p.Lifetime = policy.Lifetime // expired when it was sealed: renewed at once
	}
	return p
}

// jwtExpiry reads exp of a JWT without checking anything else: the token is the provider's business. Zero if there is none.
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
