// Package login is the consumer of the LOGINS stream: of user.login, user.logout, user.suspend and
// user.resume, which have one order.
//
// A login: the consumer opens the sealed tokens, makes them the candidate of their user's grant,
// and wakes the grant. No other package creates grants. A login needs no call to a provider, and so
// never waits behind such a call. The refresh consumer finds out whether a candidate's tokens are
// its user's. Until then nothing proven of the user changes. A login never touches an outcome.
//
// A logout: the consumer drops the tokens of the logins before the logout, and tells. Where the
// logout asks for it, the refresh token is revoked first. Few such calls run at once, each for some
// seconds at most, so that a hanging provider holds up neither logins nor the logouts of other
// users.
//
// A suspension and its end: the consumer changes the state of the grant, tells of a suspension, and
// wakes the grant for a resumption.
//
// A Consumer is safe for concurrent use, by many messages and processes. The newest login of a user
// wins by its place in the stream, in whatever order the logins are handled.
package login

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nuid"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// Opened is a login's sealed part: whom the tokens were sealed for, and the tokens.
type Opened struct {
	Provider  string
	User      string
	SealedAt  time.Time
	Access    secret.Value
	Refresh   secret.Value
	ID        secret.Value
	Scope     string
	ExpiresAt time.Time     // zero if not said
	ExpiresIn time.Duration // 0 if not said; counts from SealedAt
}

// Stream is the engine.
type Stream interface {
	// Request makes a grant due now for a command, beside the work that waits already.
	Request(ctx context.Context, k grant.Key, w grant.Work) error
	// Newest is the latest mark of the grant's record known to the stream.
	Newest(ctx context.Context, k grant.Key) (grant.Mark, error)
	// OlderLoginWaits reports whether a login of the user from before this place is on its way.
	OlderLoginWaits(ctx context.Context, k grant.Key, place grant.Position) (bool, error)
	// PublishedUpTo is the latest mark up to which all outcomes are known to be published.
	PublishedUpTo(ctx context.Context, k grant.Key) (grant.Mark, error)
	// Answered reports whether the outcome with this id is among the user's last outcomes of each
	// type.
	Answered(ctx context.Context, k grant.Key, id string) (bool, error)
	// AnsweredSince reports whether the outcome with this id is among all outcomes of the user
	// since this time.
	AnsweredSince(ctx context.Context, k grant.Key, id string, since time.Time) (bool, error)
	// PublishMarked stores an outcome with the mark of its record.
	PublishMarked(ctx context.Context, e schema.Event, m grant.Mark) error
	// Disarm removes the grant's timer.
	Disarm(ctx context.Context, k grant.Key) error
	// Parked is the pair of the grant which the store did not take.
	Parked(ctx context.Context, k grant.Key) (p grant.Parcel, found bool, err error)
	// LoginsCreated is when the stream was made which gave a login this sequence.
	LoginsCreated(ctx context.Context, sequence uint64) (time.Time, error)
	// DeferLogin has the login come again at this time, on another subject, with its place among
	// all logins.
	DeferLogin(
		ctx context.Context, of schema.Address, at time.Time, position grant.Position,
		deferrals int, h schema.Header, data []byte,
	) error
	// ParseDeferred reads a login that DeferLogin put off: h is the login's own header.
	ParseDeferred(subject string, header schema.Header) (
		of schema.Address, position grant.Position, deferrals int, h schema.Header, err error,
	)
}

// Config holds the dependencies and settings of a Consumer.
type Config struct {
	Subjects schema.Subjects
	Store    grant.Store
	Stream   Stream
	// Policies of the providers in the settings; a login at any other is rejected.
	Policies map[string]grant.Policy
	// Refuse says why the sender may not publish a login, nil if it may. Default: each may.
	Refuse func(schema.Event) error
	// Admit says why a permitted login is not let in now: a *schema.Malformed, or an error that
	// another try may end. Default: each is let in.
	Admit func(context.Context, *runner.Message, schema.Event) error
	// Open opens the sealed tokens; its errors must not quote the tokens.
	Open func(jwe string) (Opened, error)
	// KeyMissing reports whether an error means a key missing in this worker's keyring: another
	// worker may have the key.
	KeyMissing func(error) bool
	// Revoke ends a refresh token at its provider (RFC 7009). The call ends with ctx, which lasts
	// some seconds. Errors: grant.ErrNoRevocation, else a *grant.Fault. Default: no provider can.
	Revoke func(ctx context.Context, provider string, token secret.Value) error
	// Cipher opens a parked pair, so that the pair is revoked too.
	Cipher grant.Cipher
	// Source is the CloudEvents source of outcomes. Default "/renewd".
	Source string
	// MaxSealAge is how long before the stream took a login its tokens may have been sealed.
	// Default 5 min; a publisher whose outbox may take longer needs more.
	MaxSealAge time.Duration
	Now        func() time.Time
	Rand       func() float64 // draws from [0,1); safe for concurrent use
	Logger     *slog.Logger
}

// Consumer handles logins.
type Consumer struct {
	c Config
	// revoking has a slot for each revocation under way, by provider.
	revoking map[string]chan struct{}
}

// New checks c.
func New(c Config) (*Consumer, error) {
	for name, missing := range map[string]bool{
		"Store":      c.Store == nil,
		"Stream":     c.Stream == nil,
		"Open":       c.Open == nil,
		"KeyMissing": c.KeyMissing == nil,
		"Now":        c.Now == nil,
		"Rand":       c.Rand == nil,
		"Logger":     c.Logger == nil,
		"Cipher":     c.Cipher == nil,
	} {
		if missing {
			return nil, fmt.Errorf("login: %s: missing", name)
		}
	}
	if c.MaxSealAge == 0 {
		c.MaxSealAge = skew
	}
	if c.Admit == nil {
		c.Admit = func(context.Context, *runner.Message, schema.Event) error { return nil }
	}
	if c.Refuse == nil {
		c.Refuse = func(schema.Event) error { return nil }
	}
	if c.Revoke == nil {
		c.Revoke = func(context.Context, string, secret.Value) error {
			return grant.ErrNoRevocation
		}
	}
	c.Source = cmp.Or(c.Source, "/renewd")
	revoking := map[string]chan struct{}{}
	for provider := range c.Policies {
		revoking[provider] = make(chan struct{}, revocations)
	}
	return &Consumer{c, revoking}, nil
}

const (
	// skew is how far a publisher's clock may be ahead of the stream's.
	skew = 5 * time.Minute
	// keyWait is how long a login waits for a worker with its key: while keys are rotated, not all
	// workers have the key.
	keyWait = time.Hour
	// recordWait is how often a login is put off, half a minute in all, before it takes the place
	// of a record whose key is missing. While keys are rotated, another worker can read the record.
	// Once the keyring is lost, no worker can.
	recordWait = 4
)

// arrived is a login on its way, as the stream took the login, however often put off since.
type arrived struct {
	m         *runner.Message
	subject   string
	stream    string
	header    schema.Header
	position  grant.Position // the place only
	deferrals int
}

// Handle makes one login the candidate of its user's grant and wakes the grant. The error is a
// verdict of package runner.
func (c *Consumer) Handle(ctx context.Context, m *runner.Message) error {
	a, err := c.arrival(ctx, m)
	if err != nil {
		return runner.Retry(err, time.Second)
	}
	return c.handle(ctx, a)
}

// HandleDeferred is Handle for a login that PutOff put off.
func (c *Consumer) HandleDeferred(ctx context.Context, m *runner.Message) error {
	a, err := c.deferred(m)
	if err != nil {
		return runner.Reject(err)
	}
	return c.handle(ctx, a)
}

func (c *Consumer) arrival(ctx context.Context, m *runner.Message) (arrived, error) {
	created, err := c.c.Stream.LoginsCreated(ctx, m.Sequence)
	if m.Time.Before(created) {
		// The login is of the stream before, so the login's time stands for the stream's: later
		// than all logins taken by then, and older than all logins to come.
		created = m.Time
	}
	position := grant.Position{Stream: created.UTC(), Sequence: m.Sequence, Time: m.Time.UTC()}
	return arrived{
		m:        m,
		subject:  m.Subject,
		stream:   m.Stream,
		header:   m.Header,
		position: position,
	}, err
}

func (c *Consumer) deferred(m *runner.Message) (arrived, error) {
	of, position, deferrals, header, err := c.c.Stream.ParseDeferred(m.Subject, m.Header)
	if err != nil {
		return arrived{}, err
	}
	return arrived{
		m: m, subject: c.c.Subjects.Of(of), stream: c.c.Subjects.Name(schema.StreamLogins),
		header: header, position: position, deferrals: deferrals,
	}, nil
}

func (c *Consumer) handle(ctx context.Context, a arrived) error {
	of, _ := c.c.Subjects.Parse(a.subject)
	switch of.Type {
	case schema.UserLogout:
		return c.logout(ctx, a)
	case schema.UserSuspend:
		return c.suspend(ctx, a)
	case schema.UserResume:
		return c.resume(ctx, a)
	}
	e, candidate, err := c.open(ctx, a)
	if err != nil && c.c.KeyMissing(err) {
		if later := c.putOff(ctx, a, err); later != nil { // another worker may have the key
			return runner.Retry(errors.Join(err, later), time.Second)
		}
		return nil
	}
	if err != nil {
		return runner.Refused(err)
	}
	k := grant.Key{Provider: e.Provider, User: e.User}
	what, wake, err := c.store(ctx, a, k, candidate)
	if err != nil && errors.Is(err, grant.ErrUnreadable) {
		if later := c.putOff(ctx, a, err); later != nil {
			return runner.Retry(errors.Join(err, later), time.Second)
		}
		return nil
	}
	if err != nil {
		return runner.Retry(err, time.Second)
	}
	if !wake {
		return nil
	}
	if candidate.Pair.Refresh.IsZero() {
		c.c.Logger.Warn("login without a refresh token: "+
			"the user must sign in again when the access token expires",
			"grant", k, "field", "refresh_token",
			"hint", "ask the provider for offline access, or seal refresh_token too")
	}
	// The answer to a login published again may be out, under the id of a version before.
	work := grant.Work{Cause: candidate.Cause, Again: what == grant.Repeated}
	if err := c.c.Stream.Request(ctx, k, work); err != nil {
		return runner.Retry(err, time.Second)
	}
	return nil
}

// PutOff has a login that failed again and again come back later, so that the login does not hold a
// place meanwhile. The signature is that of runner.Config.PutOff.
func (c *Consumer) PutOff(ctx context.Context, m *runner.Message, cause error) error {
	a, err := c.arrival(ctx, m)
	if err != nil {
		return err
	}
	return c.putOff(ctx, a, cause)
}

// PutOffDeferred is PutOff for a login that was put off before.
func (c *Consumer) PutOffDeferred(ctx context.Context, m *runner.Message, cause error) error {
	a, err := c.deferred(m)
	if err != nil {
		return err
	}
	return c.putOff(ctx, a, cause)
}

// The wait before a deferred login comes again doubles between these limits.
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
	c.c.Logger.Warn(string(e.Type)+" put off", "grant", k, "deferrals", a.deferrals+1, "wait", wait,
		"error", cause)
	at := c.c.Now().Add(wait)
	return c.c.Stream.DeferLogin(ctx, e.Address(), at, a.position, a.deferrals+1, a.header,
		a.m.Data)
}

func (c *Consumer) decode(a arrived) (schema.Event, error) {
	return c.c.Subjects.Decode(a.header, a.m.Data, schema.Arrival{
		Subject: a.subject, Stream: a.stream, Sequence: a.position.Sequence, Time: a.position.Time,
	})
}

// refuse checks the rights of a login's sender, once. A login that was put off was let in before,
// possibly by a version without senders.
func (c *Consumer) refuse(a arrived, e schema.Event) error {
	if a.deferrals > 0 {
		return nil
	}
	return c.c.Refuse(e)
}

// admit refuses a command about a provider missing in the settings, calls refuse, and asks
// Config.Admit.
func (c *Consumer) admit(ctx context.Context, a arrived, e schema.Event) error {
	if _, ok := c.c.Policies[e.Provider]; !ok {
		return &schema.Malformed{Reason: schema.RejectUnknownProvider, Field: "provider",
			Message: fmt.Sprintf("%q is not among the providers in renewd's settings", e.Provider)}
	}
	if err := c.refuse(a, e); err != nil || a.deferrals > 0 {
		return err
	}
	return c.c.Admit(ctx, a.m, e)
}

// open reads the message and its sealed part, and compares the two. A seal made for another user,
// provider or time is refused, so that the tokens of one user cannot be stored for another. The
// time is the stream's, since the time in an event is only its sender's word.
func (c *Consumer) open(ctx context.Context, a arrived) (schema.Event, grant.Candidate, error) {
	e, err := c.decode(a)
	if err != nil {
		return e, grant.Candidate{}, err
	}
	if err := c.admit(ctx, a, e); err != nil {
		return e, grant.Candidate{}, err
	}
	data, err := schema.Data[schema.Login](e)
	if err != nil {
		return e, grant.Candidate{}, err
	}
	o, err := c.c.Open(data.Tokens)
	if err != nil && c.c.KeyMissing(err) && c.c.Now().Sub(a.position.Time) < keyWait {
		return e, grant.Candidate{}, err
	}
	if err != nil {
		return e, grant.Candidate{}, &schema.Malformed{
			Reason:  schema.RejectSealed,
			Field:   "tokens",
			Message: err.Error(),
		}
	}
	if bad := c.refusal(e, o, a.position.Time); bad != nil {
		return e, grant.Candidate{}, bad
	}
	return e, candidateOf(e, o, a.position, c.policy(e.Provider)), nil
}

// policy is the policy of a provider in the settings.
func (c *Consumer) policy(provider string) *grant.Policy {
	return new(c.c.Policies[provider].WithDefaults())
}

// refusal says which part of the sealed tokens does not fit the event.
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
		return refuse("tokens.iat", fmt.Sprintf("sealed %v before it was published, %v at most: "+
			"seal the tokens again for each login, or, if an outbox takes longer, "+
			"raise login_max_age", age.Round(time.Second), c.c.MaxSealAge))
	case age < -skew:
		return refuse("tokens.iat", fmt.Sprintf("sealed %v after it was published: "+
			"set the publisher's clock by NTP", -age.Round(time.Second)))
	case o.Access.IsZero():
		return refuse("tokens.access_token", "missing")
	}
	return nil
}

// store makes the login the candidate of its user's grant, unless the record knows the login. what
// is the meaning of the login to the record, wake whether the grant is to be woken for it. The
// record's version goes beyond everything published of the user, also where the store has no
// record. Otherwise subscribers would take its outcomes for older than known outcomes.
func (c *Consumer) store(
	ctx context.Context, a arrived, k grant.Key, candidate grant.Candidate,
) (what grant.Arrival, wake bool, err error) {
	published, err := c.c.Stream.Newest(ctx, k)
	if err != nil {
		return "", false, err
	}
	for {
		cur, err := c.load(ctx, a, k)
		if err != nil {
			return "", false, err
		}
		t := grant.Turn{
			Work:   grant.Work{Mark: published},
			Nonce:  nuid.Next(),
			Now:    c.c.Now(),
			Draw:   c.c.Rand(),
			Policy: c.policy(k.Provider),
		}
		next, what := grant.LoggedIn(cur, k, candidate, t)
		switch what {
		case grant.Outdated, grant.Same:
			// A newer login, or this one, woke the grant. Its outcome answers this login too.
			return what, false, nil
		case grant.Stored:
			// Without a candidate the login's outcome is out: nothing is left to do.
			return what, cur.Candidate != nil, nil
		case grant.Repeated:
			c.c.Logger.Info("a login was published again; nothing of it was taken", "grant", k)
			return what, true, nil
		}
		if !a.m.Held() {
			return what, false, runner.ErrLeaseLost
		}
		_, err = c.c.Store.Save(ctx, next)
		if errors.Is(err, grant.ErrConflict) && ctx.Err() == nil {
			continue // also if only the reply of our save was lost: the next LoggedIn is Stored
		}
		return what, err == nil, err
	}
}

// load returns the record, or the zero Grant if the user has no record. Of a record that cannot be
// read, a login needs only the place. But while the key is missing in this keyring alone, another
// worker may read the record.
func (c *Consumer) load(ctx context.Context, a arrived, k grant.Key) (grant.Grant, error) {
	cur, err := c.c.Store.Load(ctx, k)
	switch {
	case errors.Is(err, grant.ErrNotFound):
		return grant.Grant{}, nil
	case errors.Is(err, grant.ErrUnreadable) && (!c.c.KeyMissing(err) || a.deferrals >= recordWait):
		c.c.Logger.Error("the stored record cannot be read: this login takes its place", "grant", k,
			"error", err)
		at := place(k, cur)
		if !at.Login.Plausible(a.position, c.c.Now()) {
			at.Login = grant.Position{}
		}
		return at, nil
	}
	return cur, err
}

// place is the part that counts of an unreadable record.
func place(k grant.Key, g grant.Grant) grant.Grant {
	return grant.Grant{
		Key: k, Revision: g.Revision, Version: g.Version, Login: g.Login, Status: grant.Unproven,
	}
}

// candidateOf measures the access token's life: by the login's word, else by the token's own exp,
// else by the policy. The life counts from when the tokens were sealed, or from when the stream
// took them if its clock says earlier.
func candidateOf(
	e schema.Event, o Opened, position grant.Position, policy *grant.Policy,
) grant.Candidate {
	from := o.SealedAt
	if position.Time.Before(from) {
		from = position.Time
	}
	p := grant.Pair{
		Access:    o.Access,
		Refresh:   o.Refresh,
		ID:        o.ID,
		Scope:     o.Scope,
		SentAt:    o.SealedAt,
		ExpiresAt: o.ExpiresAt,
	}
	if p.ExpiresAt.IsZero() && o.ExpiresIn > 0 {
		p.ExpiresAt = from.Add(o.ExpiresIn)
	}
	if p.ExpiresAt.IsZero() {
		p.ExpiresAt = jwtExpiry(o.Access.Reveal())
	}
	position.SealedAt, position.Token = from.UTC(), o.Refresh.Fingerprint()
	if o.Refresh.IsZero() {
		position.Token = o.Access.Fingerprint()
	} else {
		if p.ExpiresAt.IsZero() {
			p.ExpiresAt = from.Add(policy.Lifetime)
		}
		if latest := from.Add(policy.MaxLifetime); p.ExpiresAt.After(latest) {
			p.ExpiresAt = latest // a publisher does not decide when a user is looked at again
		}
	}
	if p.Lifetime = p.ExpiresAt.Sub(from); p.Lifetime <= 0 {
		p.Lifetime = policy.Lifetime // expired when sealed, or no lifetime was given
	}
	cause := schema.Cause{ID: e.ID, Type: e.Type, Source: e.Source, Time: e.Time, Sender: e.Sender}
	position.Event = grant.OutcomeID(grant.Key{Provider: e.Provider, User: e.User}, cause)
	return grant.Candidate{Pair: p, Cause: cause, Login: position}
}

// jwtExpiry reads exp of a JWT without any other check, since the token is the provider's business.
// Zero without an exp.
func jwtExpiry(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Exp float64 `json:"exp"`
	}
	if err != nil || json.Unmarshal(payload, &claims) != nil || claims.Exp <= 0 ||
		claims.Exp > 1e11 {
		return time.Time{}
	}
	return time.Unix(int64(claims.Exp), 0).UTC()
}
