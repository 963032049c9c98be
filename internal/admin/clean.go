package admin

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/grant"
)

// Ended is a user whose session has ended. The record still holds the profile.
type Ended struct {
	Provider string       `json:"provider"`
	User     string       `json:"user"`
	Status   grant.Status `json:"status"`
	Reason   string       `json:"reason"` // why the session ended; a logout's is signed_out
	EndedAt  time.Time    `json:"ended_at"`

	version int64 // of the record
}

// Cleanup chooses users whose session has ended. The zero value takes all of them.
type Cleanup struct {
	Provider string    // empty: each
	Reasons  []string  // why the session ended; empty: for whatever reason
	Before   time.Time // the session ended before; zero: whenever
	Limit    int       // how many at most; 0: all
}

// Find shows the users that c takes, in the order of the store, until show returns an error. A user
// with a login that is not proven yet is not shown.
func (c Cleanup) Find(
	ctx context.Context, p *daemon.Resources, show func(Ended) error,
) error {
	shown := map[grant.Key]bool{} // a store may list a record twice if it is written meanwhile
	for page, err := range grant.Pages(ctx, p.Store) {
		if err != nil {
			return err
		}
		for _, g := range page {
			e, ended := endedOf(g)
			if !ended || shown[g.Key] || !c.takes(e) {
				continue
			}
			if err := show(e); err != nil {
				return err
			}
			if shown[g.Key] = true; len(shown) == c.Limit {
				return nil
			}
		}
	}
	return nil
}

func (c Cleanup) takes(e Ended) bool {
	return (c.Provider == "" || c.Provider == e.Provider) &&
		(len(c.Reasons) == 0 || slices.Contains(c.Reasons, e.Reason)) &&
		(c.Before.IsZero() || e.EndedAt.Before(c.Before))
}

// endedOf is the end of a record's session. ended is false for any other record.
func endedOf(g grant.ListEntry) (e Ended, ended bool) {
	u := listed(g)
	e = Ended{
		Provider: u.Provider, User: u.User, Status: u.Status, version: u.Version,
		Reason: cmp.Or(u.Reason, string(u.Status)),
	}
	switch {
	case g.Candidate != nil:
		return e, false
	case u.Status == grant.ReauthRequired && g.Verdict != nil:
		e.EndedAt = g.Verdict.At
	case u.Status == grant.ReauthRequired:
		e.EndedAt = g.FailedAt
	case u.Status == grant.SignedOff:
		e.EndedAt = later(g.Login.Time, g.FailedAt)
	default:
		return e, false
	}
	return e, true
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// EraseEnded erases a user as Erase does, if the record has not changed since Find and no login
// waits. A login that comes meanwhile stays. Nothing is revoked, since the session has ended.
// erased is false, without an error, for a user who has come back, or whom another hand has erased.
// The caller has asked Engine.MayErase, once for all users.
func EraseEnded(
	ctx context.Context, p *daemon.Resources, e Ended, by string,
) (erased bool, err error) {
	k := grant.Key{Provider: e.Provider, User: e.User}
	// First the place up to which logins are erased. A login of the user up to this place waits, or
	// is in the record that is read afterwards.
	began, newest, err := beginErasure(ctx, p)
	if err != nil {
		return false, err
	}
	if waits, err := p.Engine.LoginWaits(ctx, k); waits || err != nil {
		return false, err
	}
	g, err := p.Store.Load(ctx, k)
	if errors.Is(err, grant.ErrNotFound) || errors.Is(err, grant.ErrUnreadable) {
		return false, nil
	}
	if err != nil || g.Version != e.version {
		return false, err
	}
	return true, eraseUpTo(ctx, p, Erasure{Key: k, By: by, NoRevoke: true}, began, newest)
}
