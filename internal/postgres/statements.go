package postgres

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/renewd/renewd/internal/grant"
)

// retried runs a statement. The statement runs again after an error of the database that means:
// nothing was done, and trying again helps (a deadlock, a lost serialization). Each run must start
// from scratch, since the results of an earlier try never happened.
func (s *Store) retried(run func(ctx context.Context) error) error {
	var err error
	for range 3 {
		ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
		err = run(ctx)
		cancel()
		pg, ok := errors.AsType[*pgconn.PgError](err)
		if !ok || pg.Code != "40P01" && pg.Code != "40001" {
			break
		}
	}
	return told(err)
}

// told is err, as ErrRefused if the database works and refuses the data: class 22 is malformed
// data, 54 more data than the database can hold.
func told(err error) error {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok &&
		(strings.HasPrefix(pg.Code, "22") || strings.HasPrefix(pg.Code, "54")) {
		return fmt.Errorf("%w: %w", grant.ErrRefused, err)
	}
	return err
}

func keys(in []grant.Key) (providers, users []string) {
	for _, k := range in {
		providers, users = append(providers, k.Provider), append(users, k.User)
	}
	return providers, users
}

const loadSQL = `SELECT ` + columns + ` FROM renewd.grants g
	JOIN unnest($1::text[], $2::text[]) AS r(provider, user_id)
		ON g.provider = r.provider AND g.user_id = r.user_id`

// runLoads returns nil for a missing row. The caller of each load decodes its row, since all calls
// of a batch wait for any work done in the batch itself.
func (s *Store) runLoads(in []grant.Key) ([]*row, error) {
	byKey := make(map[grant.Key]*row, len(in))
	err := s.retried(func(ctx context.Context) error {
		clear(byKey)
		providers, users := keys(in)
		rows, err := s.pool.Query(ctx, loadSQL, providers, users)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			r, err := scan(rows)
			if err != nil {
				return err
			}
			byKey[r.key] = r
		}
		return rows.Err()
	})
	if err != nil {
		return nil, err
	}
	out := make([]*row, len(in))
	for i, k := range in {
		out[i] = byKey[k]
	}
	return out, nil
}

type claim struct {
	key     grant.Key
	request grant.ClaimRequest
}

type claimed struct {
	row    *row
	loaded *grant.Grant // the record before the claim; nil: the row is whole
	prior  claimRow
	err    error
}

func (s *Store) claimedOf(c claimed) (g grant.Grant, prior *grant.Claim, err error) {
	if c.err != nil {
		return g, nil, c.err
	}
	if g, err = s.current(c); err != nil {
		return g, nil, err
	}
	if prior, err = c.prior.claim(); err != nil {
		g.Pair = grant.Pair{}
		return g, nil, fmt.Errorf("%w: it was damaged: %w", grant.ErrUnreadable, err)
	}
	return g, prior, nil
}

// current is the record under the claim. A record that the caller had loaded has changed in its
// claim only.
func (s *Store) current(c claimed) (g grant.Grant, err error) {
	if c.loaded == nil {
		return s.grantOf(c.row)
	}
	g = *c.loaded
	g.Revision = uint64(c.row.revision)
	if g.Claim, err = c.row.claim.claim(); err != nil {
		return g, fmt.Errorf("%w: it is damaged: %w", grant.ErrUnreadable, err)
	}
	return g, nil
}

// claimSQL claims the free grants. A record the caller has loaded is not sent again. The former
// claim that claimSQL returns was read before the row was locked. Hence the comparison of
// revisions: a statement that loses this race is tried again. Whether a claim was presented is read
// off the end of its text, since PostgreSQL cannot take all JSON with a user's text apart (\u0000).
const claimSQL = `WITH r AS (
		SELECT * FROM unnest(
				$1::text[], $2::text[], $3::text[], $4::float8[], $5::text[], $6::bool[],
				$7::text[], $8::bool[], $9::bigint[])
			AS r(provider, user_id, nonce, seconds, cause, presented, fingerprint, extend, loaded)
	)
	UPDATE renewd.grants g SET revision = g.revision + 1, claim_nonce = r.nonce,
		claim_until = clock_timestamp() + make_interval(secs => r.seconds),
		claim = json_build_object(
			'fingerprint', coalesce(nullif(r.fingerprint, ''), g.fingerprint),
			'cause', r.cause::json,
			'for', (r.seconds * 1e9)::bigint,
			'presented', r.presented
				OR coalesce(old.claim_nonce = r.nonce AND old.claim::text LIKE '%true}', false))
	FROM r JOIN renewd.grants old ON old.provider = r.provider AND old.user_id = r.user_id
	WHERE g.provider = r.provider AND g.user_id = r.user_id AND g.revision = old.revision
		AND (old.claim_nonce = r.nonce
			OR NOT r.extend AND (old.claim_nonce IS NULL OR old.claim_until <= clock_timestamp()))
	RETURNING ` + narrow +
	`, CASE WHEN old.revision <> r.loaded THEN g.tokens END,
		CASE WHEN old.revision <> r.loaded THEN g.profile::text END,
		CASE WHEN old.revision <> r.loaded THEN g.state::text ELSE '' END,
		old.claim_nonce, old.claim_until, old.claim::text`

// inOrder sorts a batch by key, so that two batches lock their common rows in one order and do not
// wait for each other.
func inOrder[T any](batch []T, key func(T) grant.Key) []T {
	batch = slices.Clone(batch)
	slices.SortFunc(batch, func(a, b T) int {
		return cmp.Or(strings.Compare(key(a).Provider, key(b).Provider),
			strings.Compare(key(a).User, key(b).User))
	})
	return batch
}

// claimTries is how often a claim is tried while other writers get in the way.
const claimTries = 4

func (s *Store) runClaims(in []claim) ([]claimed, error) {
	done := make(map[grant.Key]claimed, len(in))
	for left, tries := in, claimTries; len(left) > 0; tries-- {
		won, err := s.tryClaims(left)
		if err != nil {
			return nil, err
		}
		maps.Copy(done, won)
		raced, err := s.unclaimed(left, done)
		if err != nil {
			return nil, err
		}
		if left = raced; tries == 1 {
			for _, c := range raced {
				done[c.key] = claimed{err: grant.ErrClaimed} // other writers win each time
			}
			break
		}
	}
	out := make([]claimed, len(in))
	for i, c := range in {
		out[i] = done[c.key]
	}
	return out, nil
}

func (s *Store) tryClaims(in []claim) (won map[grant.Key]claimed, err error) {
	in = inOrder(in, func(c claim) grant.Key { return c.key })
	args, err := claimArgs(in)
	if err != nil {
		return nil, err
	}
	loaded := make(map[grant.Key]*grant.Grant, len(in))
	for _, c := range in {
		loaded[c.key] = c.request.Loaded
	}
	return won, s.retried(func(ctx context.Context) error {
		won = make(map[grant.Key]claimed, len(in))
		rows, err := s.pool.Query(ctx, claimSQL, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var c claimed
			if c.row, err = scan(rows, c.prior.targets()...); err != nil {
				return err
			}
			if g := loaded[c.row.key]; g != nil && c.row.revision == int64(g.Revision)+1 {
				c.loaded = g
			}
			won[c.row.key] = c
		}
		return rows.Err()
	})
}

func claimArgs(in []claim) ([]any, error) {
	n := len(in)
	providers, users, nonces, causes, fingerprints := make([]string, n), make([]string, n),
		make([]string, n), make([]string, n), make([]string, n)
	seconds, presented, extend, loaded := make([]float64, n), make([]bool, n), make([]bool, n),
		make([]int64, n)
	for i, c := range in {
		cause, err := json.Marshal(c.request.Cause)
		if err != nil {
			return nil, err
		}
		providers[i], users[i], nonces[i], causes[i], fingerprints[i] = c.key.Provider, c.key.User,
			c.request.Nonce, string(cause), c.request.Fingerprint
		seconds[i], presented[i], extend[i] = c.request.For.Seconds(), c.request.Presented,
			c.request.Extend
		if g := c.request.Loaded; g != nil {
			loaded[i] = int64(g.Revision)
		}
	}
	return []any{
		providers, users, nonces, seconds, causes, presented, fingerprints, extend, loaded,
	}, nil
}

// heldSQL tells which claims are alive, by the clock that made the claims.
const heldSQL = `SELECT g.provider, g.user_id, coalesce(g.claim_nonce, ''),
		coalesce(g.claim_until > clock_timestamp(), false)
	FROM renewd.grants g
	JOIN unnest($1::text[], $2::text[]) AS r(provider, user_id)
		ON g.provider = r.provider AND g.user_id = r.user_id`

type holder struct {
	nonce string
	alive bool
}

func (s *Store) holders(of []grant.Key) (found map[grant.Key]holder, err error) {
	providers, users := keys(of)
	return found, s.retried(func(ctx context.Context) error {
		found = make(map[grant.Key]holder, len(of))
		rows, err := s.pool.Query(ctx, heldSQL, providers, users)
		if err != nil {
			return err
		}
		var k grant.Key
		var h holder
		_, err = pgx.ForEachRow(rows, []any{&k.Provider, &k.User, &h.nonce, &h.alive},
			func() error {
				found[k] = h
				return nil
			})
		return err
	})
}

// unclaimed sorts the grants that were not claimed: missing grants, grants that may not be claimed,
// and grants changed just then by another writer. unclaimed returns the last kind.
func (s *Store) unclaimed(in []claim, done map[grant.Key]claimed) (raced []claim, err error) {
	var left []claim
	var missing []grant.Key
	for _, c := range in {
		if _, ok := done[c.key]; !ok {
			left, missing = append(left, c), append(missing, c.key)
		}
	}
	if len(left) == 0 {
		return nil, nil
	}
	found, err := s.holders(missing)
	if err != nil {
		return nil, err
	}
	for _, c := range left {
		h, ok := found[c.key]
		switch mine := h.nonce == c.request.Nonce; {
		case !ok:
			done[c.key] = claimed{err: grant.ErrNotFound}
		case !mine && (h.alive || c.request.Extend):
			done[c.key] = claimed{err: grant.ErrClaimed}
		default:
			raced = append(raced, c)
		}
	}
	return raced, nil
}

// unclaimSQL puts the former claim back, if the row is still as the claim of this nonce left it.
const unclaimSQL = `UPDATE renewd.grants SET
		revision = revision + 1, claim_nonce = $5, claim_until = $6, claim = $7::text::json
	WHERE provider = $1 AND user_id = $2 AND revision = $3 AND claim_nonce = $4`

// unclaim gives back nonce's new claim on g and restores prior, the claim before, also when ctx has
// ended. After another write in between there is nothing to give back.
func (s *Store) unclaim(ctx context.Context, g *grant.Grant, nonce string, prior claimRow) error {
	if prior.nonce != nil && *prior.nonce == nonce {
		prior = claimRow{} // an earlier try's, which could not be given back
	}
	ctx = context.WithoutCancel(ctx)
	return s.retried(func(context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, s.timeout)
		defer cancel()
		tag, err := s.pool.Exec(ctx, unclaimSQL, g.Provider, g.User, int64(g.Revision), nonce,
			prior.nonce, prior.until, prior.rest)
		if err == nil && tag.RowsAffected() == 1 {
			g.Revision++
			g.Claim, _ = prior.claim() // damaged as it was
		}
		return err
	})
}

// written are the columns that a save writes, with the type of each.
var written = [][2]string{
	{"provider", "text"},
	{"user_id", "text"},
	{"revision", "bigint"},
	{"version", "bigint"},
	{"status", "text"},
	{"fingerprint", "text"},
	{"tokens", "bytea"},
	{"expires_at", "timestamptz"},
	{"next_due_at", "timestamptz"},
	{"login_at", "timestamptz"},
	{"refreshed_at", "timestamptz"},
	{"synced_at", "timestamptz"},
	{"failed_at", "timestamptz"},
	{"active_at", "timestamptz"},
	{"attempts", "integer"},
	{"outages", "integer"},
	{"last_error", "text"},
	{"claim_nonce", "text"},
	{"claim_until", "timestamptz"},
	{"claim", "json"},
	{"profile", "json"},
	{"state", "json"},
}

// updateSQL and insertSQL write the rows whose compare-and-swap holds, and name them.
var updateSQL, insertSQL = saveSQL()

func saveSQL() (update, insert string) {
	var names, casts, values, sets []string
	for i, c := range written {
		array := c[1]
		if array == "json" {
			array = "text" // pgx has no array of json
		}
		names = append(names, c[0])
		casts = append(casts, fmt.Sprintf("$%d::%s[]", i+1, array))
		value := "r." + c[0]
		if c[1] == "json" {
			value += "::json"
		}
		values = append(values, value)
		switch {
		case c[0] == "profile":
			sets = append(sets,
				"profile = CASE WHEN r.profile = '' THEN g.profile ELSE r.profile::json END")
		case i > 1:
			sets = append(sets, c[0]+" = "+value)
		}
	}
	list := strings.Join(names, ", ")
	rows := fmt.Sprintf("r AS (SELECT * FROM unnest(%s, $%d::bigint[]) AS r(%s, was))",
		strings.Join(casts, ", "), len(written)+1, list)
	update = "WITH " + rows + " UPDATE renewd.grants g SET " + strings.Join(sets, ", ") + `
		FROM r WHERE g.provider = r.provider AND g.user_id = r.user_id AND g.revision = r.was
		RETURNING g.provider, g.user_id`
	insert = "WITH " + rows + " INSERT INTO renewd.grants (" + list + ") SELECT " +
		strings.Join(values, ", ") +
		` FROM r ORDER BY r.provider COLLATE "C", r.user_id COLLATE "C"` +
		" ON CONFLICT DO NOTHING RETURNING provider, user_id"
	return update, insert
}

// runSaves writes a batch with one commit.
func (s *Store) runSaves(in []*row) ([]error, error) {
	var updates, inserts []*row
	for _, r := range in {
		if r.was == 0 {
			inserts = append(inserts, r)
		} else {
			updates = append(updates, r)
		}
	}
	updates = inOrder(updates, func(r *row) grant.Key { return r.key })
	stored := make(map[grant.Key]bool, len(in))
	err := s.retried(func(ctx context.Context) error {
		clear(stored)
		batch := &pgx.Batch{}
		for sql, rows := range map[string][]*row{updateSQL: updates, insertSQL: inserts} {
			if len(rows) > 0 {
				batch.Queue(sql, saveArgs(rows)...).Query(func(found pgx.Rows) error {
					var k grant.Key
					_, err := pgx.ForEachRow(found, []any{&k.Provider, &k.User}, func() error {
						stored[k] = true
						return nil
					})
					return err
				})
			}
		}
		return s.pool.SendBatch(ctx, batch).Close()
	})
	if err != nil {
		return nil, err
	}
	out := make([]error, len(in))
	for i, r := range in {
		if !stored[r.key] {
			out[i] = grant.ErrConflict
		}
	}
	return out, nil
}

// saveArgs turns rows into one array a column, in the order of written, and then was.
func saveArgs(rows []*row) []any {
	n := len(rows)
	providers, users, statuses, fingerprints := make([]string, n), make([]string, n),
		make([]string, n), make([]string, n)
	revisions, versions, was := make([]int64, n), make([]int64, n), make([]int64, n)
	tokens := make([][]byte, n)
	var times [7][]pgtype.Timestamptz
	for i := range times {
		times[i] = make([]pgtype.Timestamptz, n)
	}
	attempts, outages := make([]int32, n), make([]int32, n)
	lastErrors, states := make([]string, n), make([]string, n)
	nonces, claims, profiles := make([]*string, n), make([]*string, n), make([]*string, n)
	untils := make([]pgtype.Timestamptz, n)
	for i, r := range rows {
		providers[i], users[i], statuses[i], fingerprints[i] = r.key.Provider, r.key.User, r.status,
			r.fingerprint
		revisions[i], versions[i], was[i], tokens[i] = r.revision, r.version, r.was, r.tokens
		for t := range times {
			times[t][i] = r.times[t]
		}
		attempts[i], outages[i], lastErrors[i], states[i] = r.attempts, r.outages, r.lastError,
			r.state
		nonces[i], untils[i], claims[i], profiles[i] = r.claim.nonce, r.claim.until, r.claim.rest,
			r.profile
	}
	return []any{
		providers, users, revisions, versions, statuses, fingerprints, tokens, times[0], times[1],
		times[2], times[3], times[4], times[5], times[6],
		attempts, outages, lastErrors, nonces, untils, claims, profiles, states, was,
	}
}
