package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/renewd/renewd/internal/grant"
)

const pageSQL = ` FROM renewd.grants g WHERE (g.provider, g.user_id) > ($1, $2)
	ORDER BY g.provider, g.user_id LIMIT $3`

// List implements grant.Store. The cursor is the last key.
func (s *Store) List(
	ctx context.Context, cursor string, limit int,
) (page []grant.ListEntry, next string, err error) {
	var last grant.Key
	err = s.page(ctx, columns, cursor, limit, func(rows pgx.Rows) error {
		r, err := scan(rows)
		if err != nil {
			return err
		}
		g, err := s.grantOf(r)
		page, last = append(page, grant.ListEntry{Grant: g, Err: err, Bound: r.bound()}), g.Key
		return nil
	})
	return page, after(last, len(page) == limit), err
}

// dueColumns are the columns scanDue reads, before more.
const dueColumns = `g.provider, g.user_id, g.version, g.status, g.next_due_at, g.claim_until`

func scanDue(rows pgx.Rows, more ...any) (d grant.Due, err error) {
	var due, claimed pgtype.Timestamptz
	into := []any{&d.Provider, &d.User, &d.Version, &d.Status, &due, &claimed}
	err = rows.Scan(append(into, more...)...)
	d.At, d.ClaimedUntil = at(due), at(claimed)
	return d, err
}

// ListDue implements grant.Store. The cursor is the last key.
func (s *Store) ListDue(
	ctx context.Context, cursor string, limit int,
) (page []grant.Due, next string, err error) {
	var last grant.Key
	err = s.page(ctx, dueColumns, cursor, limit, func(rows pgx.Rows) error {
		d, err := scanDue(rows)
		if err != nil {
			return err
		}
		page, last = append(page, d), d.Key
		return nil
	})
	return page, after(last, len(page) == limit), err
}

// ListSealed implements grant.Store. The cursor is the last key.
func (s *Store) ListSealed(
	ctx context.Context, cursor string, limit int,
) (page []grant.Sealed, next string, err error) {
	var last grant.Key
	head := fmt.Sprintf("substring(g.tokens FROM 1 FOR %d)", grant.SealedHead)
	columns := dueColumns + ", g.revision, " + head +
		fmt.Sprintf(", left(g.state::text, %d) = '%s'", len(boundMark), boundMark)
	err = s.page(ctx, columns, cursor, limit, func(rows pgx.Rows) (err error) {
		var l grant.Sealed
		if l.Due, err = scanDue(rows, &l.Revision, &l.Head, &l.Bound); err != nil {
			return err
		}
		page, last = append(page, l), l.Key
		return nil
	})
	return page, after(last, len(page) == limit), err
}

// page reads up to limit rows from the cursor on.
func (s *Store) page(
	ctx context.Context, columns, cursor string, limit int, see func(pgx.Rows) error,
) error {
	provider, user, _ := strings.Cut(cursor, "/")
	rows, err := s.pool.Query(ctx, "SELECT "+columns+pageSQL, provider, user, limit)
	if err != nil {
		return fmt.Errorf("list grants: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := see(rows); err != nil {
			return fmt.Errorf("list grants: %w", err)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("list grants: %w", err)
	}
	return nil
}

// after is the cursor behind the last key, empty at the end.
func after(last grant.Key, more bool) string {
	if !more {
		return ""
	}
	return last.Provider + "/" + last.User
}
