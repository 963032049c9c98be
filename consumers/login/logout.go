package login

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/nats-io/nuid"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
)

// The limits of a revocation. A provider that is out of order does not keep a user signed in.
const (
	// revocations is how many are under way at once, of each provider and in each process.
	revocations = 4
	// revokeCall bounds all calls of one logout together.
	revokeCall = 5 * time.Second
	// revokeClaim keeps renewals away meanwhile: longer than revokeCall, since the claim lasts from
	// before the calls until the save.
	revokeClaim = 15 * time.Second
	// revokeWait is how long after its logout the revocation of a token is tried where the provider
	// fails, or a renewal is presenting the token.
	revokeWait = time.Minute
	// revokeQueue is how long a logout waits for its turn while many tokens are being revoked.
	revokeQueue = 30 * time.Minute
)

var (
	errLoginComes = errors.New("a login of before the logout is on its way")
	errInUse      = errors.New("a renewal is presenting the refresh token")
	errNoSlot     = errors.New("many tokens are being revoked at this provider")
)

// command is a logout on its way, or another command beside the logins.
type command struct {
	arrived
	key  grant.Key
	turn grant.Turn
}

// leaving is one logout on its way.
type leaving struct {
	command
	order schema.Logout
}

// logout ends the session of the earlier logins. Its error is a verdict of package runner.
func (c *Consumer) logout(ctx context.Context, a arrived) error {
	e, err := c.accepted(ctx, a)
	if err != nil {
		return runner.Refused(err)
	}
	order, err := schema.Data[schema.Logout](e)
	if err != nil {
		return runner.Refused(err)
	}
	return c.verdict(ctx, a, c.end(ctx, leaving{c.command(a, e, order.Reason), order}))
}

// verdict is the runner's verdict for a command whose handling ended with err.
func (c *Consumer) verdict(ctx context.Context, a arrived, err error) error {
	if errors.Is(err, grant.ErrUnreadable) || errors.Is(err, errNoSlot) || passing(err) {
		later := c.putOff(ctx, a, err) // trying again in a moment is no use
		if later == nil {
			return nil
		}
		err = errors.Join(err, later)
	}
	if err != nil {
		return runner.Retry(err, time.Second)
	}
	return nil
}

// accepted reads a command, and refuses a command that is not let in.
func (c *Consumer) accepted(ctx context.Context, a arrived) (schema.Event, error) {
	e, err := c.decode(a)
	if err != nil {
		return e, err
	}
	return e, c.admit(ctx, a, e)
}

// command is the command of this event.
func (c *Consumer) command(a arrived, e schema.Event, reason string) command {
	now := c.c.Now()
	return command{
		arrived: a, key: grant.Key{Provider: e.Provider, User: e.User}, turn: grant.Turn{
			Work: grant.Work{
				Cause: schema.Cause{
					ID:     e.ID,
					Type:   e.Type,
					Source: e.Source,
					Time:   e.Time,
					Reason: reason,
					Sender: e.Sender,
				},
			},
			Nonce:   nuid.Next(),
			BeganAt: now,
			Now:     now,
			Policy:  c.policy(e.Provider),
		},
	}
}

// end ends the user's session as the logout asks, and tells.
func (c *Consumer) end(ctx context.Context, l leaving) error {
	// First of all: a repeat must not take out a login that came after the repeated logout.
	repeat, err := c.repeats(ctx, l.command, (*grant.Grant).LogoutArrives)
	if repeat || err != nil {
		return err
	}
	upTo, err := c.comesNext(ctx, &l.command)
	if err != nil {
		return err
	}
	for {
		g, readable, err := c.stored(ctx, l.command)
		switch {
		case errors.Is(err, grant.ErrNotFound) || err == nil && g.Status == grant.Forgotten:
			return c.answer(ctx, l.command, schema.ReasonUnknownGrant)
		case err != nil:
			return err
		}
		switch g.LogoutArrives(l.position) {
		case grant.Outdated:
			return nil // the outcome of the later login answers the logout
		case grant.Stored:
			return c.told(ctx, l.command, g, upTo)
		}
		again, err := c.again(ctx, l.command)
		if again || err != nil {
			return err
		}
		l.turn.Told = g.ToldAt(upTo)
		next, err := c.dropped(ctx, l, g, readable)
		if errors.Is(err, grant.ErrConflict) && ctx.Err() == nil {
			continue // also if only the reply of our save was lost: LogoutArrives is Stored then
		}
		if err != nil {
			return err
		}
		return c.told(ctx, l.command, next, upTo)
	}
}

// comesNext calls published once no login from before the command is on its way. Earlier logins
// that were put off are taken out: only a command that ends logins may call comesNext.
func (c *Consumer) comesNext(ctx context.Context, l *command) (upTo grant.Mark, _ error) {
	waits, err := c.c.Stream.OlderLoginWaits(ctx, l.key, l.position)
	if waits {
		err = errLoginComes
	}
	if err != nil {
		return upTo, err
	}
	return c.published(ctx, l)
}

// published has the command know the latest mark of the record. The result is the mark up to which
// all outcomes are out.
func (c *Consumer) published(ctx context.Context, l *command) (upTo grant.Mark, _ error) {
	published, err := c.c.Stream.Newest(ctx, l.key)
	if err != nil {
		return upTo, err
	}
	upTo, err = c.c.Stream.PublishedUpTo(ctx, l.key)
	l.turn.Work.Mark = published.Newest(upTo)
	return upTo, err
}

// stored is the record. Of a record that cannot be read, a logout needs only the place. But while
// the key is missing in this keyring alone, another worker may read the record.
func (c *Consumer) stored(
	ctx context.Context, l command,
) (g grant.Grant, readable bool, err error) {
	g, err = c.c.Store.Load(ctx, l.key)
	if errors.Is(err, grant.ErrUnreadable) && (!c.c.KeyMissing(err) || l.deferrals >= recordWait) {
		c.c.Logger.Error("the stored record cannot be read: a logout drops it as it is",
			"grant", l.key, "error", err)
		return place(l.key, g), false, nil
	}
	return g, true, err
}

// repeats reports whether the command was carried out before its present delivery, at another place
// in the stream. Of a redelivery, whose place the record has, work may be left to do: arrives is
// the meaning of a place to a record.
func (c *Consumer) repeats(
	ctx context.Context, l command, arrives func(*grant.Grant, grant.Position) grant.Arrival,
) (bool, error) {
	g, _, err := c.stored(ctx, l)
	switch {
	case err == nil && arrives(&g, l.position) == grant.Stored:
		return false, nil
	case err != nil && !errors.Is(err, grant.ErrNotFound):
		return false, err
	}
	return c.again(ctx, l)
}

// again reports whether this very command was carried out before, and published again since, from
// an outbox or a recording. Such a repeat does not end a newer login, nor a newer command. Its
// answer may be long ago, or other outcomes may have followed: a user.resume is answered by a
// user.synced, like the next renewal.
func (c *Consumer) again(ctx context.Context, l command) (bool, error) {
	cause := l.turn.Work.Cause
	id := grant.OutcomeID(l.key, cause)
	out, err := c.c.Stream.Answered(ctx, l.key, id)
	if !out && err == nil {
		out, err = c.c.Stream.AnsweredSince(ctx, l.key, id, grant.SentSince(cause, c.c.Now()))
	}
	if out {
		c.c.Logger.Info("a command was published again; nothing was done for it",
			"grant", l.key, "type", cause.Type)
	}
	return out, err
}

// dropped stores g without the tokens of the logins before the logout. Where the logout asks for
// it, the tokens are revoked first.
func (c *Consumer) dropped(
	ctx context.Context, l leaving, g grant.Grant, readable bool,
) (grant.Grant, error) {
	revoked, problem := false, ""
	switch {
	case !l.order.Revoke:
	case !readable:
		problem = schema.RevokeUnreadable
	default:
		var err error
		if g, revoked, problem, err = c.revoke(ctx, l, g); err != nil {
			return g, err
		}
	}
	if !l.m.Held() {
		return g, runner.ErrLeaseLost
	}
	l.turn.Now = c.c.Now()
	next := g.LoggedOut(l.turn, l.position, revoked, problem)
	revision, err := c.c.Store.Save(ctx, next)
	next.Revision = revision
	return next, err
}

// told publishes all decided outcomes that are not out, the command's outcome last, and puts the
// grant to rest.
func (c *Consumer) told(ctx context.Context, l command, g grant.Grant, upTo grant.Mark) error {
	if g.NextDueAt.IsZero() {
		return nil // an earlier delivery did all of it
	}
	for _, p := range g.Untold(schema.Cause{}, g.ToldAt(upTo)) {
		if !l.m.Held() {
			return runner.ErrLeaseLost
		}
		e := g.Told(p, c.c.Source, c.c.Now(), l.turn.Policy.Shown)
		mark := grant.Mark{Version: p.Version, Token: g.Mark().Token}
		if err := c.c.Stream.PublishMarked(ctx, e, mark); err != nil {
			return err
		}
	}
	if g.Candidate == nil { // else the candidate has the timer
		if err := c.c.Stream.Disarm(ctx, l.key); err != nil {
			return err
		}
	}
	_, err := c.c.Store.Save(ctx, g.Rested(l.turn))
	if errors.Is(err, grant.ErrConflict) {
		return nil // another writer works on the grant, and finds that all was told
	}
	return err
}

// answer answers a command that cannot be carried out: for an unknown user, for instance.
func (c *Consumer) answer(ctx context.Context, l command, reason string) error {
	e := grant.Answer(l.key, l.turn, 0, reason, c.c.Source)
	if l.m.Deliveries > 1 || l.deferrals > 0 {
		out, err := c.c.Stream.Answered(ctx, l.key, e.ID)
		if out || err != nil {
			return err
		}
	}
	if !l.m.Held() {
		return runner.ErrLeaseLost
	}
	return c.c.Stream.PublishMarked(ctx, e, grant.Mark{})
}

// revoke ends, at the provider, the refresh tokens that the logout takes from g. revoke claims the
// grant first, so that no renewal presents such a token meanwhile. A pair in flight is saved before
// the claim, and revoked. Its error asks for another try; problem says why no other try is made.
func (c *Consumer) revoke(
	ctx context.Context, l leaving, g grant.Grant,
) (claimed grant.Grant, revoked bool, problem string, err error) {
	if len(g.Revocable(l.position)) == 0 {
		return g, false, schema.RevokeNoToken, nil
	}
	slot := c.revoking[l.key.Provider]
	select {
	case slot <- struct{}{}:
		defer func() { <-slot }()
	default:
		if c.waited(l.command) < revokeQueue {
			return g, false, "", errNoSlot
		}
		return g, false, schema.RevokeFailed, nil
	}
	claimed, _, err = c.c.Store.Claim(ctx, l.key, grant.ClaimRequest{
		Nonce: l.turn.Nonce, For: revokeClaim, Cause: l.turn.Work.Cause,
	})
	switch {
	case errors.Is(err, grant.ErrClaimed) && c.waited(l.command) < revokeWait:
		return g, false, "", errInUse
	case errors.Is(err, grant.ErrClaimed):
		return g, false, schema.RevokeBusy, nil
	case errors.Is(err, grant.ErrNotFound):
		return g, false, "", grant.ErrConflict
	case err != nil:
		return g, false, "", err
	}
	if claimed.LogoutArrives(l.position) != grant.Fresh {
		return g, false, "", errors.Join(grant.ErrConflict, c.giveBack(ctx, claimed))
	}
	err = c.revokeAll(ctx, l, claimed)
	if err == nil {
		return claimed, true, "", nil
	}
	if ours := problemOf(err) == ""; ours || passing(err) && c.waited(l.command) < patience(err) {
		return claimed, false, "", errors.Join(err, c.giveBack(ctx, claimed))
	}
	c.c.Logger.Warn("tokens are dropped that were not revoked: the session may live on",
		"grant", l.key, "error", err)
	return claimed, false, problemOf(err), nil
}

// patience is how long after its logout a failed revocation is tried again. For a throttling
// provider this is as long as the queue lasts: a crowd of logouts is when providers throttle.
func patience(err error) time.Duration {
	if f, ok := errors.AsType[*grant.Fault](err); ok && f.Class == grant.Throttled {
		return revokeQueue
	}
	return revokeWait
}

// waited is how long ago the stream took the logout.
func (c *Consumer) waited(l command) time.Duration { return c.c.Now().Sub(l.position.Time) }

// revokeAll revokes the tokens that the logout takes from g, and the token of a parked pair.
func (c *Consumer) revokeAll(ctx context.Context, l leaving, g grant.Grant) error {
	tokens := g.Revocable(l.position)
	parcel, found, err := c.c.Stream.Parked(ctx, l.key)
	if err != nil {
		return err
	}
	if found && g.Holds(parcel.Parent) {
		park := grant.PurposePark
		pair, err := grant.OpenPair(c.c.Cipher, park, l.key, parcel.Version, parcel.Sealed)
		if err != nil {
			code := schema.RevokeUnreadable
			return &grant.Fault{Class: grant.Unknown, Op: "revoke", Code: code, Err: err}
		}
		tokens = append(tokens, pair.Refresh)
	}
	ctx, cancel := context.WithTimeout(ctx, revokeCall)
	defer cancel()
	for _, token := range tokens {
		if err := c.c.Revoke(ctx, l.key.Provider, token); err != nil {
			return err
		}
	}
	return nil
}

// giveBack ends the claim on g without a change.
func (c *Consumer) giveBack(ctx context.Context, g grant.Grant) error {
	g.Claim = nil
	if _, err := c.c.Store.Save(ctx, g); err != nil && !errors.Is(err, grant.ErrConflict) {
		return err
	}
	return nil
}

// passing reports whether a failed revocation may work another time.
func passing(err error) bool {
	f, ok := errors.AsType[*grant.Fault](err)
	return ok &&
		(f.Class == grant.Throttled || f.Class == grant.Unsent || f.Class == grant.Ambiguous)
}

// problemOf is the revoke_error of a failed revocation; empty if the provider was not asked.
func problemOf(err error) string {
	f, ok := errors.AsType[*grant.Fault](err)
	switch {
	case errors.Is(err, grant.ErrNoRevocation):
		return schema.RevokeUnsupported
	case !ok:
		return ""
	case passing(err):
		return schema.RevokeFailed
	}
	return cmp.Or(f.Code, schema.RevokeFailed)
}
