package sql

import (
	"context"
	db "database/sql"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/renewd/renewd/internal/appdb"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/internal/sink/session"
	"github.com/renewd/renewd/schema"
)

// Target writes users into an app's table.
type Target struct {
	config  Config
	dialect appdb.Dialect
	db      *db.DB
	load    session.Loader
	key     field
	ofUser  string // the column that finds an erased user's rows; empty: no such column
	columns []mapped
	history []mapped
	members *memberships // nil: no table has the organisations
	crypter *appdb.Crypter

	mu     sync.Mutex
	tables *tables // nil: not looked up yet
	jobs   chan *job
	closed chan struct{}
	works  sync.WaitGroup
}

// mapped is a column and its content.
type mapped struct {
	column string
	field  field
}

// tables are the columns of the app's tables, as the database has them.
type tables struct{ users, history, members map[string]appdb.Column }

const (
	// writers are how many batches are under way at a time, and largest is how many users a batch
	// has.
	writers = 2
	largest = 200
)

// New returns the target of an app's table. New connects to nothing yet.
func New(c Config, load session.Loader) (*Target, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	d, err := appdb.Parse(c.URL)
	if err != nil {
		return nil, err
	}
	t := &Target{
		config: c, dialect: d, load: load, jobs: make(chan *job), closed: make(chan struct{}),
	}
	t.columns, t.history = mapping(c.Columns), mapping(c.HistoryColumns)
	if t.key, err = parseField(c.keyField()); err != nil {
		return nil, err
	}
	t.members = newMemberships(c)
	t.ofUser = c.userColumn()
	if !c.AppKey.IsZero() {
		if t.crypter, err = appdb.NewCrypter(c.AppKey); err != nil {
			return nil, err
		}
	}
	if t.db, err = d.Open(); err != nil {
		return nil, err
	}
	t.db.SetMaxOpenConns(writers + 1)
	t.db.SetMaxIdleConns(writers)
	for range writers {
		t.works.Go(t.work)
	}
	return t, nil
}

// mapping is the mapping that Check has looked at, in the order of the columns' names.
func mapping(columns map[string]string) (all []mapped) {
	for _, name := range slices.Sorted(maps.Keys(columns)) {
		if f, err := parseField(columns[name]); err == nil {
			all = append(all, mapped{name, f})
		}
	}
	return all
}

// Close ends the connections.
func (t *Target) Close() {
	close(t.closed)
	t.works.Wait()
	_ = t.db.Close() // nothing is under way
}

// job is one user's row to write.
type job struct {
	facts facts
	by    string // the column to look for key in
	key   string
	// fenced: a row with a newer version stays as it is. fenced is false where the record is gone.
	fenced bool
	done   chan error
}

// Deliver writes the store's present facts about the outcome's user.
func (t *Target) Deliver(ctx context.Context, e schema.Event) error {
	if !t.wants(e) {
		return nil
	}
	j, err := t.jobOf(ctx, e)
	if j == nil || err != nil {
		return err
	}
	ctx, done := context.WithTimeout(ctx, deliveryLimit)
	defer done()
	for pause := lockedFirst; ; {
		err := t.submit(ctx, j)
		switch {
		case errors.Is(err, errLeft):
			continue
		case !errors.Is(err, errLocked) || pause > lockedLast:
			return err
		}
		select {
		case <-time.After(pause + rand.N(pause/2)): // not all who met one lock at once
		case <-ctx.Done():
			return err
		}
		pause *= 2
	}
}

// A row is locked for a moment by a short transaction of the app. On MySQL any statement that looks
// for rows without an index locks each row that it looks at, so even the other batch does. Hence a
// locked row is tried again after these pauses, before it counts as refused.
const lockedFirst, lockedLast = 50 * time.Millisecond, 400 * time.Millisecond

// submit has a batch take the job, and returns the result.
func (t *Target) submit(ctx context.Context, j *job) error {
	select {
	case t.jobs <- j:
	case <-ctx.Done():
		return faultOf(t.dialect, context.Cause(ctx))
	}
	select {
	case err := <-j.done:
		return err
	case <-ctx.Done():
		return faultOf(t.dialect, context.Cause(ctx))
	}
}

// wants reports whether an outcome is about a row.
func (t *Target) wants(e schema.Event) bool {
	switch e.Type {
	case schema.UserSynced, schema.UserReauthRequired, schema.UserSignedOut, schema.UserForgotten,
		schema.UserSuspended:
		return true
	case schema.UserRefreshFailed:
		return len(t.history) > 0
	case schema.MessageRejected:
		return ofSource(e) && !t.key.ofProfile()
	}
	return false
}

// ofSource reports whether a rejection says that a user's tokens from an app's own table are worth
// nothing. Only renewd itself reads the table, so no other sender has a row flagged.
func ofSource(e schema.Event) bool {
	r, err := schema.Data[schema.Rejected](e)
	return err == nil && r.Reason == schema.RejectUnproven && r.Cause.Sender == senders.Source
}

// read is session.Read with an exception: a user with nothing proven, whose only tokens came from
// the app's table and were refused, must sign in. The record may still hold the login.
func (t *Target) read(ctx context.Context, e schema.Event) (*session.Session, error) {
	if e.Type != schema.MessageRejected {
		return session.Read(ctx, t.load, e)
	}
	r, _ := schema.Data[schema.Rejected](e) // wants has read it
	g, err := t.load(ctx, grant.Key{Provider: e.Provider, User: e.User})
	if err != nil {
		return session.Read(ctx, t.load, e)
	}
	c := g.Candidate
	refused := c != nil && c.Next == nil && grant.SameCause(c.Cause, r.Cause)
	if g.Status == grant.Forgotten || g.Status == grant.Unproven && refused {
		return &session.Session{Grant: grant.Grant{
			Key: g.Key, Version: g.Version, Status: grant.ReauthRequired,
		}}, nil
	}
	return session.Read(ctx, t.load, e)
}

// jobOf loads the user; nil: there is nothing to write.
func (t *Target) jobOf(ctx context.Context, e schema.Event) (*job, error) {
	of, err := t.read(ctx, e)
	if of == nil || err != nil {
		return nil, err
	}
	f := facts{of, e}
	j := &job{facts: f, by: t.config.Key, fenced: !of.Gone, done: make(chan error, 1)}
	if of.Forgotten() && t.key.ofProfile() {
		// The profile is erased, and the provider's id alone finds the rows.
		if j.by, j.key = t.ofUser, e.User; j.by == "" {
			return nil, &sink.Fault{Blame: sink.Refused, Err: errNotErased}
		}
		return j, nil
	}
	var ok bool
	if j.key, ok = t.key.value(f).(string); !ok || j.key == "" {
		return nil, &sink.Fault{Blame: sink.Refused, Err: errNoKey}
	}
	return j, nil
}

// work writes jobs, all waiting jobs at a time, until the target is closed.
func (t *Target) work() {
	for {
		var batch []*job
		select {
		case <-t.closed:
			return
		case j := <-t.jobs:
			batch = append(batch, j)
		}
		for waiting := true; waiting && len(batch) < largest; {
			select {
			case j := <-t.jobs:
				batch = append(batch, j)
			default:
				waiting = false
			}
		}
		settle(batch, t.transact)
	}
}

// errLeft: a batch was given up before the turn of this row, which goes into another batch.
var errLeft = errors.New("not written yet")

// attempt writes a batch in one transaction. failed are the jobs that cannot be written. The error
// is of the whole batch.
type attempt func(ctx context.Context, batch []*job) (failed map[*job]error, err error)

// settle writes a batch, and tells each job its result. If one row may be at fault, each row is
// written alone, so that no user's row keeps another user's from being written. All rows together
// get the time of one batch, so that slow rows hold up no others. Rows not reached go into another
// batch. Each time at least one row is reached.
func settle(batch []*job, try attempt) {
	ctx, done := context.WithTimeout(context.Background(), batchLimit)
	failed, err := try(ctx, batch)
	done()
	if len(batch) == 1 || !ofOneRow(err) {
		answer(batch, failed, err)
		return
	}
	ctx, done = context.WithTimeout(context.Background(), batchLimit)
	defer done()
	for i := range batch {
		one := batch[i : i+1]
		if failed, err = try(ctx, one); err != nil && i > 0 && ctx.Err() != nil {
			err = errLeft // this row had less time than others
		}
		answer(one, failed, err)
	}
}

func answer(batch []*job, failed map[*job]error, err error) {
	for _, j := range batch {
		if err != nil {
			j.done <- err
			continue
		}
		j.done <- failed[j]
	}
}

// ofOneRow reports whether one row may be at fault, by its values or by a wait: a row of another
// table that it points to may be locked.
func ofOneRow(err error) bool {
	f, faulty := errors.AsType[*sink.Fault](err)
	return faulty && f.Blame != sink.Unreachable
}

// transact is an attempt.
func (t *Target) transact(ctx context.Context, batch []*job) (failed map[*job]error, err error) {
	at, err := t.lookUp(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := t.db.Conn(ctx)
	if err != nil {
		return nil, faultOf(t.dialect, err)
	}
	defer func() { _ = conn.Close() }() // the connection goes back to the pool
	// A stricter isolation would lock the gaps between the rows, and keep the app from adding rows.
	tx, err := conn.BeginTx(ctx, &db.TxOptions{Isolation: db.LevelReadCommitted})
	if err != nil {
		return nil, faultOf(t.dialect, err)
	}
	w := &writing{tx: tx, conn: conn, at: at}
	defer func() {
		if err != nil {
			_ = tx.Rollback() // its connection may be gone
			err = faultOf(t.dialect, err)
			t.forget(err)
		}
	}()
	failed = map[*job]error{}
	for _, by := range []string{t.config.Key, t.ofUser} {
		var found []*job
		for _, j := range batch {
			if j.by == by {
				found = append(found, j)
			}
		}
		if err := t.writeBy(ctx, w, by, found, failed); err != nil {
			return nil, err
		}
	}
	if err := w.flush(ctx); err != nil {
		return nil, err
	}
	return failed, tx.Commit()
}

// writing is a transaction, and the statements that end it.
type writing struct {
	tx    *db.Tx
	conn  *db.Conn
	at    *tables
	later []statement
}

type statement struct {
	text string
	args []any
}

// write has a statement run with the rest at the end.
func (w *writing) write(text string, a *arguments) {
	w.later = append(w.later, statement{text, a.list})
}

// flush runs the statements: on PostgreSQL all in one round trip, and elsewhere each prepared once.
func (w *writing) flush(ctx context.Context) error {
	if len(w.later) == 0 {
		return nil
	}
	piped := false
	err := w.conn.Raw(func(driver any) error {
		c, ok := driver.(*stdlib.Conn)
		if piped = ok; !ok {
			return nil
		}
		var all pgx.Batch
		for _, s := range w.later {
			all.Queue(s.text, s.args...)
		}
		return c.Conn().SendBatch(ctx, &all).Close()
	})
	if piped || err != nil {
		return err
	}
	prepared := map[string]*db.Stmt{}
	for _, s := range w.later {
		p := prepared[s.text]
		if p == nil {
			// The end of the transaction closes p.
			if p, err = w.tx.PrepareContext(ctx, s.text); err != nil {
				return err
			}
			prepared[s.text] = p
		}
		if _, err := p.ExecContext(ctx, s.args...); err != nil {
			return err
		}
	}
	return nil
}

// writeBy writes the jobs of a batch whose rows are found by one column, and notes in failed the
// jobs that cannot be written.
func (t *Target) writeBy(ctx context.Context, w *writing, by string, batch []*job,
	failed map[*job]error) error {
	if len(batch) == 0 {
		return nil
	}
	there, err := t.find(ctx, w.tx, by, batch, "")
	if err != nil {
		return err
	}
	// A row that another process has locked is tried again later, and keeps no other row of the
	// batch waiting.
	free, err := t.find(ctx, w.tx, by, batch, " FOR UPDATE SKIP LOCKED")
	if err != nil {
		return err
	}
	for _, j := range batch {
		why := t.judge(j, there[j.key], free[j.key])
		if errors.Is(why, errNothing) {
			continue
		}
		if why != nil {
			failed[j] = why
			continue
		}
		err := t.update(ctx, w, j, free[j.key])
		if f, ok := errors.AsType[*sink.Fault](err); ok {
			failed[j] = f // found out before any write
		} else if err != nil {
			return err
		}
	}
	return nil
}

var (
	// errNothing: an erasure has nothing to take away.
	errNothing = errors.New("the app has no row of an erased user")
	// errLocked: another transaction has the row.
	errLocked = errors.New("the user's row is locked")
)

// judge says why a user's row cannot be written.
func (t *Target) judge(j *job, there, free []row) error {
	refused := func(format string, args ...any) error {
		return &sink.Fault{Blame: sink.Refused, Err: fmt.Errorf(format, args...)}
	}
	erased := j.facts.Forgotten()
	switch {
	case len(there) == 0 && len(free) == 0 && erased:
		return errNothing
	case erased && j.by != t.config.Key && len(free) >= len(there):
		return nil // all rows that were ever written of the user
	case len(there) == 0 && len(free) == 0:
		return refused("no row has this user in the key column")
	case j.by == t.config.Key && (len(there) > 1 || len(free) > 1):
		return refused("%d rows have this user in the key column: none is written",
			max(len(there), len(free)))
	case len(free) < len(there):
		return refused("%w", errLocked)
	}
	return nil
}

// row is a user's row as found.
type row struct {
	version db.NullInt64
	values  map[string]any // of the columns taken
}

// find reads the rows of a batch, by the keys in a column. The database's idea of equal may be
// wider than renewd's (a and A), so only keys that are the same byte by byte count.
func (t *Target) find(
	ctx context.Context, tx *db.Tx, by string, batch []*job, lock string,
) (map[string][]row, error) {
	d := t.dialect
	key := d.Name(by)
	taken := t.taken()
	var b strings.Builder
	fmt.Fprintf(&b, "SELECT %s, %s", d.Text(key), d.Name(t.config.Version))
	for _, column := range taken {
		fmt.Fprintf(&b, ", %s", d.Name(column))
	}
	fmt.Fprintf(&b, " FROM %s WHERE %s IN (", d.Name(t.config.Table), key)
	var args []any
	known := map[string]bool{}
	for _, j := range batch {
		if known[j.key] {
			continue
		}
		known[j.key] = true
		if len(args) > 0 {
			b.WriteString(", ")
		}
		args = append(args, j.key)
		b.WriteString(d.Mark(len(args)))
	}
	b.WriteString(")" + lock)
	rows, err := tx.QueryContext(ctx, b.String(), args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err reports every error
	found := map[string][]row{}
	for rows.Next() {
		var name string
		r := row{values: map[string]any{}}
		values := make([]any, len(taken))
		into := []any{&name, &r.version}
		for i := range values {
			into = append(into, &values[i])
		}
		if err := rows.Scan(into...); err != nil {
			return nil, &sink.Fault{
				Blame: sink.Unreachable, Err: errors.New("the version column holds no integers"),
			}
		}
		for i, column := range taken {
			r.values[column] = values[i]
			if b, ok := values[i].([]byte); ok {
				r.values[column] = string(b)
			}
		}
		if known[name] {
			found[name] = append(found[name], r)
		}
	}
	return found, rows.Err()
}

// taken are the columns of a user's row that the history and the organisations take.
func (t *Target) taken() (columns []string) {
	all := t.history
	if t.members != nil {
		all = append(slices.Clone(all), t.members.owner...)
	}
	for _, m := range all {
		if m.field.row != "" && !slices.Contains(columns, m.field.row) {
			columns = append(columns, m.field.row)
		}
	}
	return columns
}

// update writes a user's row, unless the row has a newer version, and the history in any case. rows
// has several rows only after an erasure of the user.
func (t *Target) update(ctx context.Context, w *writing, j *job, rows []row) error {
	r := rows[0]
	if !j.fenced || !r.version.Valid || r.version.Int64 <= j.facts.Grant.Version {
		for _, one := range rows {
			if err := t.joins(ctx, w, j, one); err != nil {
				return err
			}
		}
		t.set(w, j)
	}
	if len(t.history) == 0 {
		return nil
	}
	return t.record(ctx, w, j, r)
}

// set has the mapped columns written.
func (t *Target) set(w *writing, j *job) {
	a := &arguments{dialect: t.dialect}
	var sets []string
	add := func(column string, arg any) {
		sets = append(sets, t.dialect.Name(column)+" = "+a.mark(arg))
	}
	for _, m := range t.columns {
		if m.field.ofProfile() && !j.facts.tells(m.field.member()) {
			continue
		}
		if arg, skip := t.argument(m, w.at.users[m.column], j.facts); !skip {
			add(m.column, arg)
		}
	}
	if j.fenced {
		add(t.config.Version, strconv.FormatInt(j.facts.Grant.Version, 10))
	}
	text := fmt.Sprintf("UPDATE %s SET %s WHERE %s", t.dialect.Name(t.config.Table),
		strings.Join(sets, ", "), a.exactly(j.by, j.key))
	w.write(text, a)
}

// arguments are the arguments of one statement.
type arguments struct {
	dialect appdb.Dialect
	list    []any
}

// mark adds an argument, and returns its placeholder in the statement.
func (a *arguments) mark(value any) string {
	a.list = append(a.list, value)
	return a.dialect.Mark(len(a.list))
}

// exactly says that a column equals this text, byte by byte.
func (a *arguments) exactly(column, text string) string {
	return a.dialect.Exactly(a.dialect.Name(column), a.mark(text), a.mark(text))
}

// argument is the content of a column, in the column's form. An empty text is encrypted too where
// the column takes no null: the app decrypts every value.
func (t *Target) argument(m mapped, c appdb.Column, of facts) (arg any, skip bool) {
	v := t.value(m.field, of)
	if v == nil && m.field.encrypted && !c.Nullable {
		v = t.crypter.Encrypt("")
	}
	return argument(c, v)
}

// value is the content of a column, encrypted where the settings say so.
func (t *Target) value(f field, of facts) any {
	v := f.value(of)
	if s, ok := plainText(v); ok && f.encrypted {
		return t.crypter.Encrypt(s)
	}
	return v
}

// record adds a row to the history. Where the history has the event's id, an outcome that comes
// again adds no row.
func (t *Target) record(ctx context.Context, w *writing, j *job, r row) error {
	d := t.dialect
	var columns, marks []string
	var args []any
	id := ""
	for _, m := range t.history {
		arg := r.values[m.field.row]
		if m.field.row == "" {
			var skip bool
			if arg, skip = t.argument(m, w.at.history[m.column], j.facts); skip {
				continue
			}
		}
		if m.field.name == "event_id" {
			id = m.column
		}
		args = append(args, arg)
		columns, marks = append(columns, d.Name(m.column)), append(marks, d.Mark(len(args)))
	}
	if id != "" {
		var n int
		query := fmt.Sprintf("SELECT count(*) FROM %s WHERE %s = %s",
			d.Name(t.config.History), d.Name(id), d.Mark(1))
		err := w.tx.QueryRowContext(ctx, query, j.facts.event.ID).Scan(&n)
		if n > 0 || err != nil {
			return err
		}
	}
	_, err := w.tx.ExecContext(ctx, fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s)",
		d.Name(t.config.History), strings.Join(columns, ", "), strings.Join(marks, ", ")), args...)
	return err
}

// lookUp reads the columns of the app's tables, and refuses a table without a mapped column.
func (t *Target) lookUp(ctx context.Context) (*tables, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tables != nil {
		return t.tables, nil
	}
	at, missing, err := t.compare(ctx)
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 {
		return nil, &sink.Fault{
			Blame: sink.Unreachable,
			Err:   fmt.Errorf("missing: %s: see renewd sinks plan", strings.Join(missing, ", ")),
		}
	}
	t.tables = at
	return at, nil
}

// forget has the tables looked up again after an error: they may have been changed.
func (t *Target) forget(err error) {
	if err != nil {
		t.mu.Lock()
		t.tables = nil
		t.mu.Unlock()
	}
}
