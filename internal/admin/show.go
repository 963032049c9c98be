package admin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Shown is a grant as `user show` prints it.
type Shown struct {
	Provider    string       `json:"provider"`
	User        string       `json:"user"`
	Status      grant.Status `json:"status"`
	Version     int64        `json:"version"`
	Fingerprint string       `json:"refresh_token_fingerprint,omitempty"`
	ExpiresAt   time.Time    `json:"expires_at,omitzero"`
	NextDueAt   time.Time    `json:"next_due_at,omitzero"`
	LoginAt     time.Time    `json:"login_at,omitzero"`
	RefreshedAt time.Time    `json:"refreshed_at,omitzero"`
	SyncedAt    time.Time    `json:"synced_at,omitzero"`
	FailedAt    time.Time    `json:"failed_at,omitzero"`
	ActiveAt    time.Time    `json:"active_at,omitzero"`
	LastError   string       `json:"last_error,omitempty"`
	Attempts    int          `json:"attempts,omitempty"`
	Outages     int          `json:"outages,omitempty"`
	// FailingSince is when the first of the outages in a row was.
	FailingSince time.Time       `json:"failing_since,omitzero"`
	Verdict      *grant.Verdict  `json:"verdict,omitempty"`
	ClaimedTill  time.Time       `json:"claimed_until,omitzero"`
	Profile      *schema.Profile `json:"profile,omitempty"`
	// Unopened: there was no keyring to open the tokens with.
	Unopened bool `json:"-"`
}

// Show is what is stored about a user, without secrets. An error is grant.ErrNotFound where nothing
// is stored, or no more.
func Show(ctx context.Context, p *daemon.Resources, k grant.Key) (Shown, error) {
	g, err := p.Store.Load(ctx, k)
	unopened := errors.Is(err, daemon.ErrNoKeys)
	if err != nil && !unopened {
		return Shown{}, err
	}
	if g.Status == grant.Forgotten {
		return Shown{}, grant.ErrNotFound
	}
	profile, err := g.Profile.Decode()
	if err != nil {
		return Shown{}, fmt.Errorf("profile of %s: %w", k, err)
	}
	s := Shown{
		Provider: g.Provider, User: g.User, Status: g.Status, Version: g.Version,
		Fingerprint: g.Fingerprint(), ExpiresAt: g.Pair.ExpiresAt, NextDueAt: g.NextDueAt,
		LoginAt: g.LoginAt, RefreshedAt: g.RefreshedAt, SyncedAt: g.SyncedAt,
		FailedAt: g.FailedAt, ActiveAt: g.ActiveAt, LastError: g.LastError, Attempts: g.Attempts,
		Outages: g.Outages, FailingSince: g.FailingSince, Verdict: g.Verdict, Profile: profile,
		Unopened: unopened,
	}
	if g.Claim != nil {
		s.ClaimedTill = g.Claim.Until
	}
	return s, nil
}
