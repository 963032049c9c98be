package postgres

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
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
	// expires, next due, login, refreshed, synced, failed, active
	times     [7]pgtype.Timestamptz
	attempts  int32
	outages   int32
	lastError string
	claim     claimRow
	profile   *string
	state     string
}

// claimRow is a claim as the table has it.
type claimRow struct {
	nonce *string
	until pgtype.Timestamptz
	rest  *string
}

// state is the part of a grant without separate columns.
type state struct {
	// Bound is first, so that it can be read off the text. See boundMark.
	Bound     bool           `json:"bound,omitempty"`
	SavedBy   string         `json:"saved_by,omitempty"`
	Verdict   *grant.Verdict `json:"verdict,omitempty"`
	Doubt     *grant.Doubt   `json:"doubt,omitempty"`
	Cause     schema.Cause   `json:"cause,omitzero"`
	BeganAt   time.Time      `json:"began_at,omitzero"`
	Progress  grant.Progress `json:"progress,omitempty"`
	Pending   *grant.Pending `json:"pending,omitempty"`
	Refreshed bool           `json:"refreshed,omitempty"`
	Recovered bool           `json:"recovered,omitempty"`
	Login     grant.Position `json:"login,omitzero"`
	// Candidate is stored with the grant's own due time, since the column has the earlier of the
	// two due times.
	Candidate *grant.Candidate `json:"candidate,omitempty"`
	NextDueAt time.Time        `json:"next_due_at,omitzero"`
	Owed      []grant.Pending  `json:"owed,omitempty"`
	// FailingSince is kept since this version.
	FailingSince time.Time      `json:"failing_since,omitzero"`
	ToldAlone    bool           `json:"told_alone,omitempty"`
	Disproven    grant.Position `json:"disproven,omitzero"`
	Hold         grant.Position `json:"hold,omitzero"`
}

// claimRest is the part of a claim without separate columns. Presented is last and always there:
// claimSQL reads Presented off the end.
type claimRest struct {
	Fingerprint string        `json:"fingerprint"`
	Cause       schema.Cause  `json:"cause"`
	For         time.Duration `json:"for"`
	Presented   bool          `json:"presented"`
}

func (s *Store) rowOf(g grant.Grant) (*row, error) {
	more := state{
		Bound:        true,
		SavedBy:      g.SavedBy,
		Verdict:      g.Verdict,
		Doubt:        g.Doubt,
		Cause:        g.Cause,
		BeganAt:      g.BeganAt,
		Progress:     g.Progress,
		Pending:      g.Pending,
		Refreshed:    g.Refreshed,
		Recovered:    g.Recovered,
		Login:        g.Login,
		Candidate:    g.Candidate,
		Owed:         g.Owed,
		FailingSince: g.FailingSince,
		ToldAlone:    g.ToldAlone,
		Disproven:    g.Disproven,
		Hold:         g.Hold,
	}
	if g.Candidate != nil {
		more.NextDueAt = g.NextDueAt
	}
	rest, err := json.Marshal(more)
	if err != nil {
		return nil, err
	}
	r := &row{
		key:         g.Key,
		was:         int64(g.Revision),
		revision:    int64(g.Revision) + 1,
		version:     g.Version,
		status:      string(g.Status),
		fingerprint: g.Fingerprint(),
		attempts:    int32(g.Attempts),
		outages:     int32(g.Outages),
		lastError:   g.LastError,
		state:       string(rest),
		times: [7]pgtype.Timestamptz{
			stamp(g.Pair.ExpiresAt), stamp(g.Due().At), stamp(g.LoginAt), stamp(g.RefreshedAt),
			stamp(g.SyncedAt), stamp(g.FailedAt), stamp(g.ActiveAt),
		},
	}
	if g.Revision == 0 {
		// Never use a revision again that an erased record of this user had. A record read before
		// the erasure must not pass for this record.
		r.revision = time.Now().UnixMicro()
	}
	if g.Claim != nil {
		rest, err := json.Marshal(claimRest{
			g.Claim.Fingerprint, g.Claim.Cause, g.Claim.For, g.Claim.Presented,
		})
		if err != nil {
			return nil, err
		}
		r.claim = claimRow{&g.Claim.Nonce, stamp(g.Claim.Until), text(rest)}
	}
	if g.Profile != "" && !s.private {
		r.profile = text(g.Profile)
	}
	if r.tokens, err = grant.SealTokens(s.cipher, &g, s.private, r.digest()); err != nil {
		return nil, err
	}
	if r.profile != nil && g.Profile == g.StoredProfile && g.Revision != 0 {
		r.profile = new(string) // unchanged: by far the widest column
	}
	return r, nil
}

// boundMark is the beginning of a row's state when the row is bound to its tokens.
const boundMark = `{"bound":true`

func (r *row) bound() bool { return strings.HasPrefix(r.state, boundMark) }

// bind marks an unbound row as bound.
func (r *row) bind() error {
	members, isObject := strings.CutPrefix(r.state, "{")
	switch {
	case !isObject || !json.Valid([]byte(r.state)):
		return fmt.Errorf("%w: its state is damaged", grant.ErrUnreadable)
	case strings.TrimSpace(members) == "}":
		r.state = boundMark + members
	default:
		r.state = boundMark + "," + members
	}
	return nil
}

// digest covers all columns but the key and the version, to which the tokens are bound directly.
// digest also leaves out these columns, which are written without the tokens, or say no more than
// the tokens:
//
//   - revision, and the claim's three: a claim is one statement for many rows, and reads no row. A
//     forged claim holds its user's renewals up, or has an attempt taken for an attempt of unknown
//     end: the same token is then presented again, and a refusal is told as rotation_lost. If a
//     worker's claim is taken away, a second worker may present the same token;
//   - fingerprint, which is the tokens' and only copied into a claim;
//   - expires_at, which is not read.
//
// A json column keeps its text as written.
func (r *row) digest() grant.Digest {
	const read = 1 // times from this index on are read
	numbers := make([]byte, 0, len(r.times)*9+8)
	for _, t := range r.times[read:] {
		if numbers = append(numbers, 0); t.Valid {
			numbers[len(numbers)-1] = 1
			numbers = binary.BigEndian.AppendUint64(numbers, uint64(t.Time.UnixMicro()))
		}
	}
	numbers = binary.BigEndian.AppendUint32(numbers, uint32(r.attempts))
	numbers = binary.BigEndian.AppendUint32(numbers, uint32(r.outages))
	profile := ""
	if r.profile != nil {
		profile = *r.profile
	}
	return grant.DigestOf(r.status, r.lastError, string(numbers), profile, r.state)
}

// beside describes the columns beside the row's tokens.
func (r *row) beside(required bool) grant.Beside {
	return grant.Beside{Digest: r.digest(), Marked: r.bound(), Required: required}
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

// columns are the columns scan reads, in its order; wide are the last of them.
const (
	narrow = `g.provider, g.user_id, g.revision, g.version, g.status, g.next_due_at,
	g.login_at, g.refreshed_at, g.synced_at, g.failed_at, g.active_at, g.attempts, g.outages,
	g.last_error, g.claim_nonce, g.claim_until, g.claim::text`
	columns = narrow + `, g.tokens, g.profile::text, g.state::text`
)

// targets are the places one row is scanned into.
func (r *row) targets() []any {
	return append([]any{
		&r.key.Provider, &r.key.User, &r.revision, &r.version, &r.status,
		&r.times[1], &r.times[2], &r.times[3], &r.times[4], &r.times[5], &r.times[6], &r.attempts,
		&r.outages, &r.lastError,
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
		c.Fingerprint, c.Cause, c.For, c.Presented = rest.Fingerprint, rest.Cause, rest.For,
			rest.Presented
	}
	return c, nil
}

// grantOf is the inverse of rowOf. With ErrUnreadable it returns everything readable but the pair.
func (s *Store) grantOf(r *row) (grant.Grant, error) {
	g := grant.Grant{
		Key:         r.key,
		Revision:    uint64(r.revision),
		Version:     r.version,
		Status:      grant.Status(r.status),
		Attempts:    int(r.attempts),
		Outages:     int(r.outages),
		LastError:   r.lastError,
		NextDueAt:   at(r.times[1]),
		LoginAt:     at(r.times[2]),
		RefreshedAt: at(r.times[3]),
		SyncedAt:    at(r.times[4]),
		FailedAt:    at(r.times[5]),
		ActiveAt:    at(r.times[6]),
	}
	if r.profile != nil {
		g.Profile = grant.Profile(*r.profile)
		g.StoredProfile = g.Profile
	}
	var m state
	damage := json.Unmarshal([]byte(r.state), &m) // fills every readable field
	g.SavedBy, g.Verdict, g.Doubt, g.Cause, g.BeganAt = m.SavedBy, m.Verdict, m.Doubt, m.Cause,
		m.BeganAt
	g.Progress, g.Pending, g.Refreshed, g.Recovered = m.Progress, m.Pending, m.Refreshed,
		m.Recovered
	g.Login, g.Candidate, g.Owed = m.Login, m.Candidate, m.Owed
	g.FailingSince, g.ToldAlone, g.Disproven = m.FailingSince, m.ToldAlone, m.Disproven
	g.Hold = m.Hold
	if g.Candidate != nil {
		g.NextDueAt = m.NextDueAt
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
	err = grant.OpenTokens(s.cipher, &g, r.tokens, r.beside(s.bound))
	return g, err
}

func scan(rows pgx.Rows, more ...any) (*row, error) {
	r := new(row)
	return r, rows.Scan(append(r.targets(), more...)...)
}
