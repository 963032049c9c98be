package postgres

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// row is a grant as the table has it.
type row struct {
	key           grant.Key
	was, revision int64 // was 0: insert
	version       int64
	status        string
	fingerprint   string
	tokens        []byte
	times         [7]pgtype.Timestamptz // expires, next due, login, refreshed, synced, failed, active
	attempts      int32
	outages       int32
	lastError     string
	claim         claimRow
	profile       *string
	state         string
}

// claimRow is a claim as the table has it.
type claimRow struct {
	nonce *string
	until pgtype.Timestamptz
	rest  *string
}

// state is what of a grant has no column of its own.
type state struct {
	SavedBy   string         `json:"saved_by,omitempty"`
	Verdict   *grant.Verdict `json:"verdict,omitempty"`
	Doubt     *grant.Doubt   `json:"doubt,omitempty"`
	Cause     schema.Cause   `json:"cause,omitzero"`
	BeganAt   time.Time      `json:"began_at,omitzero"`
	Progress  grant.Progress `json:"progress,omitempty"`
	Pending   *grant.Pending `json:"pending,omitempty"`
	Refreshed bool           `json:"refreshed,omitempty"`
	Recovered bool           `json:"recovered,omitempty"`
	Login     grant.Order    `json:"login,omitzero"`
	// Candidate is there with the grant's own due time, since the column has that of whichever
	// comes first.
	Candidate *grant.Candidate `json:"candidate,omitempty"`
	NextDueAt time.Time        `json:"next_due_at,omitzero"`
	Owed      []grant.Pending  `json:"owed,omitempty"`
	// FailingSince is kept from this version on.
	FailingSince time.Time `json:"failing_since,omitzero"`
	ToldAlone    bool      `json:"told_alone,omitempty"`
}

// claimRest is what of a claim has no column of its own. Presented is last and always there:
// claimSQL reads it off the end.
type claimRest struct {
	Fingerprint string        `json:"fingerprint"`
	Cause       schema.Cause  `json:"cause"`
	For         time.Duration `json:"for"`
	Presented   bool          `json:"presented"`
}

func (s *Store) rowOf(g grant.Grant) (*row, error) {
	tokens, err := grant.SealTokens(s.cipher, g, s.private)
	if err != nil {
		return nil, err
	}
	more := state{
		g.SavedBy, g.Verdict, g.Doubt, g.Cause, g.BeganAt, g.Progress, g.Pending, g.Refreshed, g.Recovered, g.Login, g.Candidate, time.Time{}, g.Owed, g.FailingSince, g.ToldAlone,
	}
	if g.Candidate != nil {
		more.NextDueAt = g.NextDueAt
	}
	rest, err := json.Marshal(more)
	if err != nil {
		return nil, err
	}
	r := &row{
		key: g.Key, was: int64(g.Revision), revision: int64(g.Revision) + 1, version: g.Version, status: string(g.Status),
		fingerprint: g.Fingerprint(), tokens: tokens, attempts: int32(g.Attempts), outages: int32(g.Outages), lastError: g.LastError, state: string(rest),
		times: [7]pgtype.Timestamptz{
			stamp(g.Pair.ExpiresAt), stamp(g.Due().At), stamp(g.LoginAt), stamp(g.RefreshedAt), stamp(g.SyncedAt), stamp(g.FailedAt), stamp(g.ActiveAt),
		},
	}
	if g.Revision == 0 {
		// Never again a number that an erased record of this user had: what was read then must not
		// pass for this one.
		r.revision = time.Now().UnixMicro()
	}
	if g.Claim != nil {
		rest, err := json.Marshal(claimRest{g.Claim.Fingerprint, g.Claim.Cause, g.Claim.For, g.Claim.Presented})
		if err != nil {
			return nil, err
		}
		r.claim = claimRow{&g.Claim.Nonce, stamp(g.Claim.Until), text(rest)}
	}
	switch {
	case g.Profile == "" || s.private:
	case g.Profile == g.Kept && g.Revision != 0:
		r.profile = new(string) // as it is: it is by far the widest column
	default:
		r.profile = text(g.Profile)
	}
	return r, nil
}

func text[T ~string | ~[]byte](raw T) *string {
	s := string(raw)
	return &s
}

// stamp is t, or NULL for the zero time; at is its inverse.
func stamp(t time.Time) pgtype.Timestamptz {
	return pgtype.Timestamptz{Time: t.UTC(), Valid: !t.IsZero()}
}

func at(s pgtype.Timestamptz) time.Time {
	if !s.Valid {
		return time.Time{}
	}
	return s.Time.UTC()
}

// columns are those that scan reads, in its order; wide are the last of them.
const (
	narrow = `g.provider, g.user_id, g.revision, g.version, g.status, g.next_due_at, g.login_at, g.refreshed_at,
	g.synced_at, g.failed_at, g.active_at, g.attempts, g.outages, g.last_error, g.claim_nonce, g.claim_until, g.claim::text`
	columns = narrow + `, g.tokens, g.profile::text, g.state::text`
)

// targets are what one row is scanned into.
func (r *row) targets() []any {
	return append([]any{
		&r.key.Provider, &r.key.User, &r.revision, &r.version, &r.status,
		&r.times[1], &r.times[2], &r.times[3], &r.times[4], &r.times[5], &r.times[6], &r.attempts, &r.outages, &r.lastError,
	}, append(r.claim.targets(), &r.tokens, &r.profile, &r.state)...)
}

func (r *claimRow) targets() []any { return []any{&r.nonce, &r.until, &r.rest} }

func (r *claimRow) claim() (*grant.Claim, error) {
	if r.nonce == nil {
		return nil, nil
	}
	c := &grant.Claim{Nonce: *r.nonce, Until: at(r.until)}
	if r.rest != nil {
		var rest claimRest
		if err := json.Unmarshal([]byte(*r.rest), &rest); err != nil {
			return c, fmt.Errorf("claim: %w", err)
		}
		c.Fingerprint, c.Cause, c.For, c.Presented = rest.Fingerprint, rest.Cause, rest.For, rest.Presented
	}
	return c, nil
}

// grant is the inverse of rowOf. Beside ErrUnreadable it returns all that can be read but the pair.
func (r *row) grant(c grant.Cipher) (grant.Grant, error) {
	g := grant.Grant{
		Key: r.key, Revision: uint64(r.revision), Version: r.version, Status: grant.Status(r.status), Attempts: int(r.attempts), Outages: int(r.outages),
		LastError: r.lastError, NextDueAt: at(r.times[1]), LoginAt: at(r.times[2]), RefreshedAt: at(r.times[3]),
		SyncedAt: at(r.times[4]), FailedAt: at(r.times[5]), ActiveAt: at(r.times[6]),
	}
	if r.profile != nil {
		g.Profile = grant.Profile(*r.profile)
		g.Kept = g.Profile
	}
	var s state
	damage := json.Unmarshal([]byte(r.state), &s) // fills what it can
	g.SavedBy, g.Verdict, g.Doubt, g.Cause, g.BeganAt, g.Progress, g.Pending = s.SavedBy, s.Verdict, s.Doubt, s.Cause, s.BeganAt, s.Progress, s.Pending
	g.Refreshed, g.Recovered, g.Login, g.Candidate, g.Owed = s.Refreshed, s.Recovered, s.Login, s.Candidate, s.Owed
	g.FailingSince, g.ToldAlone = s.FailingSince, s.ToldAlone
	if g.Candidate != nil {
		g.NextDueAt = s.NextDueAt
	}
	if damage != nil {
		damage = fmt.Errorf("state: %w", damage)
	}
	var err error
	if g.Claim, err = r.claim.claim(); damage == nil {
		damage = err
	}
	if damage != nil {
		return g, fmt.Errorf("%w: it is damaged: %w", grant.ErrUnreadable, damage)
	}
	err = grant.OpenTokens(c, &g, r.tokens)
	return g, err
}

func scan(rows pgx.Rows, more ...any) (*row, error) {
	r := new(row)
	return r, rows.Scan(append(r.targets(), more...)...)
}
