package sql

import (
	"context"
	db "database/sql"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"

	"github.com/renewd/renewd/internal/appdb"
)

// Table is an app's table. A Table is safe for concurrent use.
type Table struct {
	config  Config
	dialect appdb.Dialect
	db      *db.DB
	crypter *appdb.Crypter // nil: tokens are not encrypted

	mu     sync.Mutex
	looked bool // at the table's columns
}

// Open returns an app's table. Open connects to nothing yet.
func Open(c Config) (*Table, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	d, err := appdb.Parse(c.URL)
	if err != nil {
		return nil, err
	}
	t := &Table{config: c, dialect: d}
	if c.Encrypted {
		if t.crypter, err = appdb.NewCrypter(c.AppKey); err != nil {
			return nil, err
		}
	}
	if t.db, err = d.Open(); err != nil {
		return nil, err
	}
	t.db.SetMaxOpenConns(3)
	return t, nil
}

// Close ends the connections.
func (t *Table) Close() { _ = t.db.Close() } // nothing was written

// row is a row of the table. A column that is not mapped, or null, is empty.
type row struct {
	id                       string
	user                     db.NullString
	access, refresh          string
	expires, updated, signed string
}

var seed = maphash.MakeSeed()

// hash tells whether the relevant fields of a row have changed.
func (r row) hash() uint64 {
	token := r.refresh
	if token == "" {
		token = r.access
	}
	return maphash.String(seed, r.user.String+"\x00"+token+"\x00"+r.signed)
}

// mapped are the columns to read, in the order of row's fields.
func (c Config) mapped() []string {
	return []string{c.ID, c.User, c.Access, c.Refresh, c.ExpiresAt, c.UpdatedAt, c.SignedInAt}
}

// read reads rows. where is the rest of the query, and may have marks for its arguments.
func (t *Table) read(ctx context.Context, where string, args ...any) (rows []row, err error) {
	if err := t.look(ctx); err != nil {
		return nil, err
	}
	var columns []string
	for _, column := range t.config.mapped() {
		if column == "" {
			columns = append(columns, "NULL")
			continue
		}
		columns = append(columns, t.dialect.Text(t.column(column)))
	}
	ctx, done := context.WithTimeout(ctx, appdb.Limit)
	defer done()
	found, err := t.db.QueryContext(ctx, fmt.Sprintf("SELECT %s FROM %s AS r %s",
		strings.Join(columns, ", "), t.dialect.Name(t.config.Table), where), args...)
	if err != nil {
		return nil, t.fault(err)
	}
	defer func() { _ = found.Close() }() // Err reports every error
	for found.Next() {
		var r row
		var access, refresh, expires, updated, signed db.NullString
		if err := found.Scan(&r.id, &r.user, &access, &refresh, &expires, &updated,
			&signed); err != nil {
			return nil, &appdb.Fault{Cause: appdb.Down, Err: errors.New("the column " +
				t.config.ID + " holds nulls: point id at the column that names a row")}
		}
		r.access, r.refresh, r.expires = access.String, refresh.String, expires.String
		r.updated, r.signed = updated.String, signed.String
		rows = append(rows, r)
	}
	return rows, t.fault(found.Err())
}

// column is a column of the row that read reads. Without the r the name would mean read's own text
// of the column, and ids would be in the order of texts.
func (t *Table) column(name string) string { return "r." + t.dialect.Name(name) }

// fault is an error of the database as a *appdb.Fault. After a fault the columns are looked at
// again.
func (t *Table) fault(err error) error {
	if err == nil {
		return nil
	}
	t.mu.Lock()
	t.looked = false
	t.mu.Unlock()
	return appdb.FaultOf(t.dialect, err)
}

// page reads up to limit rows whose ids come after this id, by id. Empty: from the first.
func (t *Table) page(ctx context.Context, after string, limit int) ([]row, error) {
	id := t.column(t.config.ID)
	rest := fmt.Sprintf("ORDER BY %s LIMIT %d", id, limit)
	if after == "" {
		return t.read(ctx, rest)
	}
	return t.read(ctx, "WHERE "+id+" > "+t.dialect.Mark(1)+" "+rest, after)
}

// changed reads up to limit rows that changed at since or later, by the time of their change and
// id. after is the id of a row that changed at since: rows up to that id are left out.
func (t *Table) changed(ctx context.Context, since, after string, limit int) ([]row, error) {
	d := t.dialect
	id, updated := t.column(t.config.ID), t.column(t.config.UpdatedAt)
	rest := fmt.Sprintf("ORDER BY %s, %s LIMIT %d", updated, id, limit)
	where := "WHERE " + updated + " >= " + d.Mark(1)
	if after == "" {
		return t.read(ctx, where+" "+rest, since)
	}
	return t.read(ctx, where+" AND ("+updated+" > "+d.Mark(2)+" OR "+id+" > "+d.Mark(3)+") "+rest,
		since, since, after)
}

// byID reads the rows with these ids.
func (t *Table) byID(ctx context.Context, ids []string) ([]row, error) {
	return t.read(ctx, "WHERE "+t.column(t.config.ID)+" IN ("+t.marks(len(ids))+")",
		anys(ids)...)
}

// marks are the placeholders of the first n arguments.
func (t *Table) marks(n int) string {
	all := make([]string, n)
	for i := range all {
		all[i] = t.dialect.Mark(i + 1)
	}
	return strings.Join(all, ", ")
}

func anys(texts []string) []any {
	all := make([]any, len(texts))
	for i, text := range texts {
		all[i] = text
	}
	return all
}

// doubles are the users among these that have several rows. The database's idea of equal may be
// wider than renewd's (a and A), so only ids that are the same byte by byte count.
func (t *Table) doubles(ctx context.Context, users []string) (map[string]bool, error) {
	if len(users) == 0 {
		return nil, nil
	}
	user := t.dialect.Name(t.config.User)
	found, err := t.texts(ctx, fmt.Sprintf("SELECT %s FROM %s WHERE %s IN (%s)",
		t.dialect.Text(user), t.dialect.Name(t.config.Table), user, t.marks(len(users))),
		anys(users)...)
	if err != nil {
		return nil, err
	}
	several := map[string]bool{}
	slices.Sort(found)
	for i, u := range found {
		if i > 0 && found[i-1] == u {
			several[u] = true
		}
	}
	return several, nil
}

// count is how many rows the table has.
func (t *Table) count(ctx context.Context) (n int, err error) {
	if err := t.look(ctx); err != nil {
		return 0, err
	}
	ctx, done := context.WithTimeout(ctx, appdb.Limit)
	defer done()
	err = t.db.QueryRowContext(ctx,
		"SELECT count(*) FROM "+t.dialect.Name(t.config.Table)).Scan(&n)
	return n, t.fault(err)
}

// newest is a time after which no more than spare rows changed; empty: there is no row, no such
// column, or all the times are impossible.
func (t *Table) newest(ctx context.Context) (string, error) {
	if t.config.UpdatedAt == "" {
		return "", nil
	}
	updated := t.column(t.config.UpdatedAt)
	found, err := t.texts(ctx, fmt.Sprintf(
		"SELECT %s FROM %s AS r WHERE %s IS NOT NULL ORDER BY %s DESC LIMIT %d",
		t.dialect.Text(updated), t.dialect.Name(t.config.Table), updated, updated, spare+1))
	if err != nil || len(found) == 0 || !possible(when(found[len(found)-1])) {
		return "", err
	}
	return found[len(found)-1], nil
}

// texts are the values of a query of one column; null is empty.
func (t *Table) texts(ctx context.Context, query string, args ...any) (all []string, err error) {
	ctx, done := context.WithTimeout(ctx, appdb.Limit)
	defer done()
	rows, err := t.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, t.fault(err)
	}
	defer func() { _ = rows.Close() }() // Err reports every error
	for rows.Next() {
		var text db.NullString
		if err := rows.Scan(&text); err != nil {
			return nil, t.fault(err)
		}
		all = append(all, text.String)
	}
	return all, t.fault(rows.Err())
}

// look refuses a missing table, and mapped columns that are missing or of a wrong type for their
// setting.
func (t *Table) look(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.looked {
		return nil
	}
	ctx, done := context.WithTimeout(ctx, appdb.Limit)
	defer done()
	have, err := appdb.Columns(ctx, t.dialect, t.db, t.config.Table)
	if err != nil {
		return err
	}
	if wrong := t.config.misfits(have); len(wrong) > 0 {
		return &appdb.Fault{Cause: appdb.Down, Err: errors.New(strings.Join(wrong, "; "))}
	}
	t.looked = true
	return nil
}

// misfits name the columns that the table lacks, or whose types do not fit the mapping.
func (c Config) misfits(have map[string]appdb.Column) (wrong []string) {
	if len(have) == 0 {
		return []string{"there is no table " + c.Table + ", or this database user may not see it"}
	}
	tokens := []string{c.Access, c.Refresh}
	for _, name := range c.mapped() {
		column, there := have[name]
		switch {
		case name == "":
		case !there:
			wrong = append(wrong, "there is no column "+c.Table+"."+name)
		case slices.Contains(tokens, name) && !column.Text():
			wrong = append(wrong, fmt.Sprintf("column %s.%s is of type %s: want text", c.Table,
				name, column.Kind))
		case (name == c.UpdatedAt || name == c.SignedInAt || name == c.ExpiresAt) &&
			!column.Whole() && !column.Time():
			wrong = append(wrong, fmt.Sprintf("column %s.%s is of type %s: want times, or seconds "+
				"since 1970", c.Table, name, column.Kind))
		}
	}
	return wrong
}
