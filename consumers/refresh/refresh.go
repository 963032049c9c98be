package refresh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nuid"
	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
	"go.opentelemetry.io/otel/metric"
)

// Client calls one provider. Errors are *grant.Fault, or one of grant.ErrAccessRefused and
// grant.ErrSubjectMismatch.
type Client interface {
	Refresh(ctx context.Context, refresh grant.Secret) (grant.Tokens, error)
	UserInfo(ctx context.Context, access grant.Secret, user string) (schema.Profile, error)
	// Revoke ends a refresh token and what was issued with it (RFC 7009).
	Revoke(ctx context.Context, refresh grant.Secret) error
}

// IDTokens reads the profile of user from the ID token that was issued with an access token; answered
// says that both came in one answer of the provider, and not with a login. Errors
// are those of Client.UserInfo; grant.ErrAccessRefused says that this ID token proves nothing of this
// access token, and that a refresh may bring one that does.
type IDTokens interface {
	Identify(ctx context.Context, id, access grant.Secret, answered bool, user string) (schema.Profile, error)
}

// Limiter paces the calls to one provider. Wait returns when one more may be made, or the context's
// error.
type Limiter interface {
	Wait(ctx context.Context) error
}

// Guard is what all workers together know about a provider's health.
type Guard interface {
	// Report counts how a call ended; f is nil for a success. again tells that this user was
	// refused before.
	Report(f *grant.Fault, again bool)
	// Wait is how long no call is to be made with the tokens of a login at this time; 0: it may be
	// made.
	Wait(login time.Time) time.Duration
	// WaitToPresent is the same for a refresh token, which may have been refused before: those of
	// newer logins, and those that were not, may not have to wait as long.
	WaitToPresent(login time.Time, refused bool) time.Duration
	// Renewing reports whether users were renewed lately.
	Renewing() bool
	// Hold says why a refusal of a token that was refused before, as v tells, is not to be believed
	// now; empty: it is.
	Hold(ctx context.Context, v grant.Verdict) (reason string, err error)
}

// Provider is one provider as this package needs it.
type Provider struct {
	Client  Client
	Policy  grant.Policy // zero fields take their defaults
	Limiter Limiter      // nil: no limit
	Guard   Guard        // nil: every confirmed refusal is believed, and the provider is never left alone
	// IDTokens reads profiles from ID tokens, at a provider that has no userinfo endpoint; nil: Client
	// is asked.
	IDTokens IDTokens
	// RevokeReplaced: the refresh token that a newer login replaced is revoked. Only for a provider
	// that ends no other session of the user by it.
	RevokeReplaced bool

	// named is when userinfo last named a user to this process, in Unix nanoseconds by the stream's
	// clock.
	named *atomic.Int64
}

// Stream is the engine: timers, outcomes, and the place where a pair waits that the store would not
// take.
type Stream interface {
	Arm(ctx context.Context, k grant.Key, at time.Time, w grant.Work) error
	// PublishMarked stores an outcome with the mark of the record it was made from.
	PublishMarked(ctx context.Context, e schema.Event, m grant.Mark) error
	// Newest is the latest mark that the stream knows of the grant's record.
	Newest(ctx context.Context, k grant.Key) (grant.Mark, error)
	// Published is the latest mark among the user's outcomes.
	Published(ctx context.Context, k grant.Key) (grant.Mark, error)
	Answered(ctx context.Context, k grant.Key, id string) (bool, error)
	// AnsweredSince reports the same of all outcomes since a time.
	AnsweredSince(ctx context.Context, k grant.Key, id string, since time.Time) (bool, error)
	// LoginWaits reports whether a login of the user was accepted that is not stored yet.
	LoginWaits(ctx context.Context, k grant.Key) (bool, error)
	Park(ctx context.Context, k grant.Key, p grant.Parcel) (sequence uint64, err error)
	Parked(ctx context.Context, k grant.Key) (p grant.Parcel, found bool, err error)
	Unpark(ctx context.Context, k grant.Key, sequence uint64) error
	Now() time.Time
}

// Config is what a Consumer stands on.
type Config struct {
	Store     grant.Store
	Stream    Stream
	Providers map[string]Provider
	// Subjects names the subject that a rejected login came on.
	Subjects schema.Subjects
	// Cipher seals a pair that is parked.
	Cipher grant.Cipher
	// Parse reads the grant and the work out of a due message.
	Parse func(subject string, h schema.Header) (grant.Key, grant.Work, error)
	// Source is the CloudEvents source of outcomes. Default "/renewd".
	Source string
	// ClaimFor is how long a claim lasts unless a beat extends it. Default 10 s; keep it at the
	// runner's AckWait.
	ClaimFor time.Duration
	// ParkAfter is how long the store may take to save a rotated pair before the pair is parked as
	// well. Default 250 ms.
	ParkAfter time.Duration
	// Unsaved is how many pairs may wait to be saved before no more tokens are presented. Default
	// 64.
	Unsaved int
	// SaveLimit is how long after the work's end a pair that is neither saved nor parked is still
	// offered to the store. Default 1 min.
	SaveLimit time.Duration
	// MaxProfile is the size of the largest profile that is stored and published, in bytes of JSON:
	// half of what the stream takes in one message, say. Of a larger one schema.FitProfile leaves
	// something out. Default 512 KiB.
	MaxProfile int
	// Rand draws from [0,1), for jitter; safe for concurrent use.
	Rand   func() float64
	Logger *slog.Logger
	Meter  metric.Meter
}

// Consumer handles due renewals.
type Consumer struct {
	Config
	meters  meters
	unsaved *backlog
}

// New checks c and fills in its defaults.
func New(c Config) (*Consumer, error) {
	for name, missing := range map[string]bool{
		"Store": c.Store == nil, "Stream": c.Stream == nil, "Cipher": c.Cipher == nil, "Parse": c.Parse == nil, "Rand": c.Rand == nil,
		"Logger": c.Logger == nil, "Meter": c.Meter == nil,
	} {
		if missing {
			return nil, fmt.Errorf("refresh: %s: missing", name)
		}
	}
	if c.Source == "" {
		c.Source = "/renewd"
	}
	if c.ClaimFor == 0 {
		c.ClaimFor = 10 * time.Second
	}
	if c.ParkAfter == 0 {
		c.ParkAfter = 250 * time.Millisecond
	}
	if c.Unsaved == 0 {
		c.Unsaved = 64
	}
	if c.SaveLimit == 0 {
		c.SaveLimit = time.Minute
	}
	if c.MaxProfile == 0 {
		c.MaxProfile = 512 << 10
	}
	providers := make(map[string]Provider, len(c.Providers))
	for id, p := range c.Providers {
		p.Policy = p.Policy.WithDefaults()
		if err := p.Policy.Validate(); err != nil {
			return nil, fmt.Errorf("refresh: provider %s: %w", id, err)
		}
		p.named = new(atomic.Int64)
		providers[id] = p
	}
	c.Providers = providers
	m, err := newMeters(c.Meter)
	if err != nil {
		return nil, err
	}
	return &Consumer{Config: c, meters: m, unsaved: &backlog{limit: c.Unsaved}}, nil
}

// Handle renews the grant of one due message. Its error is a verdict of package consumers; nil
// means that the outcome and the next timer are stored and the message may go.
func (c *Consumer) Handle(ctx context.Context, m *consumers.Message) error {
	t, err := c.task(m)
	if err != nil {
		return consumers.Reject(err)
	}
	err = t.run(ctx)
	if ownReason(err) == "" || !m.Held() {
		return err
	}
	// Trying again in a moment is no use, and would hold a place.
	if later := t.putOff(context.WithoutCancel(ctx), err); later != nil {
		return consumers.Retry(errors.Join(err, later), time.Second)
	}
	return nil
}

func (c *Consumer) task(m *consumers.Message) (*task, error) {
	key, work, err := c.Parse(m.Subject, m.Header)
	if err != nil {
		return nil, err
	}
	p, ok := c.Providers[key.Provider]
	if !ok {
		return nil, &schema.Malformed{
			Reason: schema.RejectUnknownProvider, Field: "provider",
			Message: fmt.Sprintf("%q is not among the providers in renewd's settings", key.Provider),
		}
	}
	return &task{Consumer: c, m: m, key: key, given: work, work: work, provider: p, nonce: nuid.Next(), began: c.Stream.Now()}, nil
}

// task is the handling of one message.
type task struct {
	*Consumer
	m        *consumers.Message
	key      grant.Key
	given    grant.Work // as the message says
	work     grant.Work // as it is done: a candidate's login, or a timer, may take the place of the cause
	provider Provider
	nonce    string
	began    time.Time
	resumed  bool         // an earlier delivery of this work left its outcome in the record
	met      bool         // an earlier one got as far as the pair, and may have published an outcome
	told     []string     // ids of outcomes that are known to be published
	out      []string     // of them, those that this task has published or looked for
	seen     time.Time    // when the record was last known to be there; zero: never
	loaded   *grant.Grant // the record as last loaded, to be claimed
	rotated  *rotated
	// first is the fingerprint of the refresh token whose side has a pair parked: that side comes
	// first, since there is one place for the pairs of all. Empty: none has.
	first string
}

// errAgain says that the record has changed under our feet: load it and decide anew.
var errAgain = errors.New("grant was changed meanwhile")

// rounds bounds how often one delivery starts anew. Each needs another writer to have got in
// between.
const rounds = 8

func (t *task) run(ctx context.Context) error {
	if t.m.Deliveries <= 1 && t.work.Cause.Type == schema.CauseTimer && t.work.Mark.Version > 0 && t.provider.Policy.ProfileEvery == 0 {
		// The timer was set for when tokens are due, so the claim will most likely be wanted: it
		// loads the record too.
		if err := t.refresh(ctx, grant.Grant{}); !errors.Is(err, errAgain) {
			return err
		}
	}
	for range rounds {
		g, err := t.Store.Load(ctx, t.key)
		switch {
		case errors.Is(err, grant.ErrNotFound):
			t.seen = time.Time{}
			return t.missing(ctx)
		case err == nil && g.Status == grant.Forgotten:
			t.seen = time.Time{}
			return t.answer(ctx, grant.Mark{}, schema.ReasonUnknownGrant)
		case err != nil:
			return consumers.Retry(err, time.Second)
		}
		t.seen, t.loaded = t.Stream.Now(), &g
		if err := t.look(ctx, g); err != nil {
			return err
		}
		turned := t.turned(g)
		t.met = t.met || grant.SameCause(turned.Cause, t.work.Cause) && turned.Progress == grant.Saved
		if err := t.tell(ctx, g); err != nil {
			return err
		}
		if g.Idle(t.given, t.Stream.Now()) {
			return t.arm(ctx, g, true)
		}
		if done, err := t.wasRejected(ctx, turned); done || err != nil {
			return err
		}
		if err := t.step(ctx, turned.Resumed(t.turn())); !errors.Is(err, errAgain) {
			return err
		}
	}
	return consumers.Retry(errAgain, time.Second)
}

// turned is a record as it is stored on the side that this work is about.
func (t *task) turned(stored grant.Grant) grant.Grant {
	given := t.given
	given.Cause = stored.TimerOf(given)
	given.Mark, given.Refused = t.work.Mark, t.work.Refused
	var g grant.Grant
	if holder, ok := stored.Holder(t.first); ok {
		g, t.work = holder.Only(given, t.Stream.Now())
	} else {
		g, t.work = stored.Turned(given, t.provider.Policy, t.Stream.Now())
	}
	if g.OnCandidate() && g.Login.Time.After(t.began) {
		t.began = t.Stream.Now() // the login came when the work was under way: what is done for it begins now
	}
	return g
}

// step does what is to be done with g, to the end.
func (t *task) step(ctx context.Context, g grant.Grant) error {
	switch grant.Decide(g, t.work, t.provider.Policy, t.Stream.Now()) {
	case grant.Refuse:
		if err := t.answer(ctx, g.Mark(), g.Refusal()); err != nil {
			return err
		}
		_, err := t.rest(ctx, g)
		return err
	case grant.Decline:
		if err := t.fail(ctx, g.Mark(), schema.ReasonNoRefreshToken); err != nil {
			return err
		}
		return t.arm(ctx, g, true)
	case grant.Suspend:
		return t.suspend(ctx, g)
	case grant.Publish:
		t.resumed = true
		return t.finish(ctx, g)
	case grant.SignOut:
		return t.signOut(ctx, g)
	case grant.Refresh:
		return t.refresh(ctx, g)
	case grant.Sync:
		return t.sync(ctx, g)
	default:
		_, err := t.rest(ctx, g) // grant.Drop
		return err
	}
}

// turn is what changes of the record made now have in common.
func (t *task) turn() grant.Turn {
	return grant.Turn{
		Work: t.work, Nonce: t.nonce, BeganAt: t.began, Now: t.Stream.Now(), Draw: t.Rand(), Policy: t.provider.Policy, Told: t.told,
	}
}

// signOut ends a grant that has no refresh token and whose access token has ended.
func (t *task) signOut(ctx context.Context, g grant.Grant) error {
	if g.OnCandidate() {
		return t.reject(ctx, g, "tokens.access_token", "has ended before the provider could be asked whose it is, and there is no refresh token")
	}
	if c := g.Candidate; c != nil {
		return t.afterLogin(ctx, g, c.NextDueAt)
	}
	if err := t.noLoginWaits(ctx); err != nil {
		return err
	}
	g, err := t.update(ctx, g, func(cur grant.Grant) (grant.Grant, bool) {
		if cur.Candidate != nil || grant.Decide(cur, t.work, t.provider.Policy, t.Stream.Now()) != grant.SignOut {
			return cur, false
		}
		return cur.SignedOut(t.turn(), grant.Verdict{Reason: schema.ReasonNoRefreshToken, At: t.Stream.Now()}), true
	})
	if err != nil {
		return err
	}
	return t.finish(ctx, g)
}

// afterLogin leaves a grant whose tokens have ended to a login that waits, which has its turn first.
// A command does not wait for long.
func (t *task) afterLogin(ctx context.Context, g grant.Grant, turn time.Time) error {
	wait := max(turn.Sub(t.Stream.Now()), t.provider.Policy.Floor)
	if wait <= deferMax || !grant.IsCommand(t.work.Cause) {
		return t.later(ctx, wait)
	}
	if err := t.fail(ctx, g.Mark(), schema.ReasonNoRefreshToken); err != nil {
		return err
	}
	if err := t.Stream.Arm(ctx, t.key, turn, g.NextTimer(turn)); err != nil {
		return consumers.Retry(err, time.Second)
	}
	return nil
}

// noLoginWaits is an error as long as a login of the user waits to be stored: nobody is told
// anything that it would make untrue.
func (t *task) noLoginWaits(ctx context.Context) error {
	waits, err := t.Stream.LoginWaits(ctx, t.key)
	if waits {
		err = errLoginWaits
	}
	if err != nil {
		return consumers.Retry(err, time.Second)
	}
	return nil
}

// answer says why a command cannot be worked on. A timer has nobody to answer.
func (t *task) answer(ctx context.Context, m grant.Mark, reason string) error {
	if !grant.IsCommand(t.work.Cause) {
		return nil
	}
	if err := t.noLoginWaits(ctx); err != nil {
		return err
	}
	return t.fail(ctx, m, reason)
}

// fail publishes a user.refresh_failed that is not stored.
func (t *task) fail(ctx context.Context, m grant.Mark, reason string) error {
	return t.publish(ctx, grant.Answer(t.key, t.turn(), m.Version, reason, t.Source), m)
}

// update saves what change makes of the record, again on each conflict, until it is stored or
// change says that it no longer applies (errAgain). change sees the record on the side that g is
// on.
func (t *task) update(ctx context.Context, g grant.Grant, change func(cur grant.Grant) (grant.Grant, bool)) (grant.Grant, error) {
	for range rounds {
		next, ok := change(g)
		if !ok {
			return g, errAgain
		}
		rev, err := t.Store.Save(ctx, next.AsStored())
		if err == nil {
			next.Revision, t.seen = rev, t.Stream.Now()
			return next, nil
		}
		if !errors.Is(err, grant.ErrConflict) {
			return g, consumers.Retry(err, time.Second)
		}
		cur, err := t.Store.Load(ctx, t.key)
		switch {
		case errors.Is(err, grant.ErrNotFound), err == nil && cur.Status == grant.Forgotten:
			return g, errAgain
		case err != nil:
			return g, consumers.Retry(err, time.Second)
		case cur.SavedBy == t.nonce && cur.Version == next.Version:
			cur, _ = next.Beside(cur)
			return cur, nil // it was stored and the reply was lost
		}
		t.note(cur)
		cur, ok = g.Beside(cur)
		if !ok {
			return g, errAgain
		}
		g = cur.Resumed(t.turn())
	}
	return g, errAgain
}
