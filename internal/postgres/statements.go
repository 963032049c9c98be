package postgres

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/renewd/renewd/internal/grant"
)

// retried runs a statement, again where the database says that it did nothing and that trying again helps: a deadlock, or
// a lost serialization.
func (s *Store) retried(run func(ctx context.Context) error) error {
	var err error
	for range 3 {
		ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
		err = run(ctx)
		cancel()
		pg, ok := errors.AsType[*pgconn.PgError](err)
		if !ok || pg.Code != "40P01" && pg.Code != "40001" {
			return err
		}
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
	JOIN unnest($1::text[], $2::text[]) AS r(provider, user_id) ON g.provider = r.provider AND g.user_id = r.user_id`

// runLoads returns nil for a row that is not there. Whoever asked decodes: what a batch does itself all its calls wait for.
func (s *Store) runLoads(in []grant.Key) ([]*row, error) {
	byKey := make(map[grant.Key]*row, len(in))
	err := s.retried(func(ctx context.Context) error {
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
	row   *row
	prior claimRow
	err   error
}

func (c claimed) grant(cipher grant.Cipher) (g grant.Grant, prior *grant.Claim, err error) {
	if c.err != nil {
		return g, nil, c.err
	}
	if g, err = c.row.grant(cipher); err == nil {
		prior, err = c.prior.claim()
	}
	return g, prior, err
}

// claimSQL claims those that are free. What it returns of the claim before was read before the row was locked, hence the
// comparison of revisions: whoever loses that race tries again.
const claimSQL = `WITH r AS (
		SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::text[], $6::bool[])
			AS r(provider, user_id, nonce, seconds, cause, presented)
	)
	UPDATE renewd.grants g SET revision = g.revision + 1, claim_nonce = r.nonce, claim_until = clock_timestamp() + make_interval(secs => r.seconds),
		claim = json_build_object('fingerprint', g.fingerprint, 'cause', r.cause::json,
			'presented', r.presented OR coalesce(old.claim_nonce = r.nonce AND (old.claim->>'presented')::bool, false))
	FROM r JOIN renewd.grants old ON old.provider = r.provider AND old.user_id = r.user_id
	WHERE g.provider = r.provider AND g.user_id = r.user_id AND g.revision = old.revision
		AND (old.claim_nonce IS NULL OR old.claim_nonce = r.nonce OR old.claim_until <= clock_timestamp())
	RETURNING ` + columns + `, old.claim_nonce, old.claim_until, old.claim::text`

// inOrder sorts a batch by key, so that two batches lock what they share in one order and do not wait for each other.
func inOrder[T any](batch []T, key func(T) grant.Key) []T {
	batch = slices.Clone(batch)
	slices.SortFunc(batch, func(a, b T) int {
		return cmp.Or(strings.Compare(key(a).Provider, key(b).Provider), strings.Compare(key(a).User, key(b).User))
	})
	return batch
}

// claimTries is how often a claim is tried that others' writes got in the way of.
const claimTries = 4

func (s *Store) runClaims(in []claim) ([]claimed, error) {
	done := make(map[grant.Key]claimed, len(in))
	for left, tries := in, claimTries; len(left) > 0; tries-- {
		if err := s.tryClaims(left, done); err != nil {
			return nil, err
		}
		raced, err := s.unclaimed(left, done)
		if err != nil {
			return nil, err
		}
		if left = raced; tries == 1 {
			for _, c := range raced {
				done[c.key] = claimed{err: grant.ErrClaimed} // somebody is at it all the time
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

func (s *Store) tryClaims(in []claim, done map[grant.Key]claimed) error {
	in = inOrder(in, func(c claim) grant.Key { return c.key })
	return s.retried(func(ctx context.Context) error {
		args, err := claimArgs(in)
		if err != nil {
			return err
		}
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
			done[c.row.key] = c
		}
		return rows.Err()
	})
}

func claimArgs(in []claim) ([]any, error) {
	n := len(in)
	providers, users, nonces, causes := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	seconds, presented := make([]float64, n), make([]bool, n)
	for i, c := range in {
		cause, err := json.Marshal(c.request.Cause)
		if err != nil {
			return nil, err
		}
		providers[i], users[i], nonces[i], causes[i] = c.key.Provider, c.key.User, c.request.Nonce, string(cause)
		seconds[i], presented[i] = c.request.For.Seconds(), c.request.Presented
	}
	return []any{providers, users, nonces, seconds, causes, presented}, nil
}

// unclaimed tells apart, of those that were not claimed, those that are not there, those that somebody holds, and those that
// somebody wrote just then; these it returns.
func (s *Store) unclaimed(in []claim, done map[grant.Key]claimed) (raced []claim, err error) {
	var missing []grant.Key
	byKey := map[grant.Key]claim{}
	for _, c := range in {
		if _, ok := done[c.key]; !ok {
			missing, byKey[c.key] = append(missing, c.key), c
		}
	}
	if len(missing) == 0 {
		return nil, nil
	}
	there, err := s.runLoads(missing)
	if err != nil {
		return nil, err
	}
	for i, k := range missing {
		r := there[i]
		switch {
		case r == nil:
			done[k] = claimed{err: grant.ErrNotFound}
		case r.claim.nonce != nil && *r.claim.nonce != byKey[k].request.Nonce && at(r.claim.until).After(time.Now()):
			done[k] = claimed{err: grant.ErrClaimed}
		default:
			raced = append(raced, byKey[k])
		}
	}
	return raced, nil
}

// written are the columns that a save writes, with the type of each.
var written = [][2]string{
	{"provider", "text"}, {"user_id", "text"}, {"revision", "bigint"}, {"version", "bigint"}, {"status", "text"}, {"fingerprint", "text"},
	{"tokens", "bytea"}, {"expires_at", "timestamptz"}, {"next_due_at", "timestamptz"}, {"login_at", "timestamptz"},
	{"refreshed_at", "timestamptz"}, {"synced_at", "timestamptz"}, {"failed_at", "timestamptz"}, {"active_at", "timestamptz"},
	{"attempts", "integer"}, {"outages", "integer"}, {"last_error", "text"}, {"claim_nonce", "text"}, {"claim_until", "timestamptz"},
	{"claim", "json"}, {"profile", "json"}, {"state", "json"},
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
			sets = append(sets, "profile = CASE WHEN r.profile = '' THEN g.profile ELSE r.profile::json END")
		case i > 1:
			sets = append(sets, c[0]+" = "+value)
		}
	}
	list := strings.Join(names, ", ")
	rows := fmt.Sprintf("r AS (SELECT * FROM unnest(%s, $%d::bigint[]) AS r(%s, was))", strings.Join(casts, ", "), len(written)+1, list)
	update = "WITH " + rows + " UPDATE renewd.grants g SET " + strings.Join(sets, ", ") + `
		FROM r WHERE g.provider = r.provider AND g.user_id = r.user_id AND g.revision = r.was RETURNING g.provider, g.user_id`
	insert = "WITH " + rows + " INSERT INTO renewd.grants (" + list + ") SELECT " + strings.Join(values, ", ") +
		" FROM r ORDER BY r.provider, r.user_id ON CONFLICT DO NOTHING RETURNING provider, user_id"
	return update, insert
}

// runSaves writes a batch with one commit. A row that the database refuses as such (class 22, malformed data) does not take
// the others with it.
func (s *Store) runSaves(in []*row) ([]error, error) {
	out, err := s.trySaves(in)
	if err == nil || len(in) == 1 || !malformed(err) {
		return out, err
	}
	out = make([]error, len(in))
	for i := range in {
		one, err := s.trySaves(in[i : i+1])
		if err == nil {
			err = one[0]
		}
		out[i] = err
	}
	return out, nil
}

func malformed(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && strings.HasPrefix(pg.Code, "22")
}

func (s *Store) trySaves(in []*row) ([]error, error) {
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
	providers, users, statuses, fingerprints := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
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
		providers[i], users[i], statuses[i], fingerprints[i] = r.key.Provider, r.key.User, r.status, r.fingerprint
		revisions[i], versions[i], was[i], tokens[i] = r.revision, r.version, r.was, r.tokens
		for t := range times {
			times[t][i] = r.times[t]
		}
		attempts[i], outages[i], lastErrors[i], states[i] = r.attempts, r.outages, r.lastError, r.state
		nonces[i], untils[i], claims[i], profiles[i] = r.claim.nonce, r.claim.until, r.claim.rest, r.profile
	}
	return []any{
		providers, users, revisions, versions, statuses, fingerprints, tokens, times[0], times[1], times[2], times[3], times[4], times[5], times[6],
		attempts, outages, lastErrors, nonces, untils, claims, profiles, states, was,
	}
}
