package sql

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric"

	"github.com/renewd/renewd/internal/appdb"
	"github.com/renewd/renewd/internal/lease"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// Watch takes the logins of a table as they come. All fields are required, but Host.
type Watch struct {
	Config    Config
	JetStream jetstream.JetStream
	Subjects  schema.Subjects
	// Publisher publishes with the source Config.EventSource.
	Publisher *publishers.Publisher
	Host      string           // names this process for people
	Now       func() time.Time // the NATS server's time
	Rand      func() float64   // draws from [0, 1), for jitter
	Log       *slog.Logger
	Meter     metric.Meter
}

// Run takes logins whenever no other process does, until ctx ends, and then returns nil. It waits
// for a missing server or database. A wrong Config is an error at once. Call Run once.
func (w Watch) Run(ctx context.Context) error {
	w.Log = w.Log.With("source", w.Config.Name)
	t, err := Open(w.Config)
	if err != nil {
		return err
	}
	defer t.Close()
	open := func(ctx context.Context) (jetstream.KeyValue, error) {
		return openKV(ctx, w.JetStream, w.Subjects)
	}
	lease.Lease{
		Open: open, Place: keyLease + w.Config.Name, What: "the source", Host: w.Host, Now: w.Now,
		Rand: w.Rand, Log: w.Log,
	}.Run(ctx, func(ctx, held context.Context) error {
		b, err := OpenBucket(ctx, w.JetStream, w.Subjects, w.Config.Name)
		if err != nil {
			return err
		}
		v := &view{
			Watch: w, source: &Source{t, b, fenced{w.Publisher, held}},
			seen: map[string]uint64{}, double: map[string]bool{}, heard: make(chan string, 1024),
			listens: make(chan bool, 1),
		}
		if v.meters, err = newMeters(w.Meter, w.Config.Name, v.down.Load); err != nil {
			return err
		}
		defer v.meters.close()
		return v.run(ctx)
	})
	return nil
}

// fenced publishes a login only under the lease. After a standstill another process may have
// published a newer login of the same row, which must stay the newer one.
type fenced struct {
	to   publisher
	held context.Context
}

func (f fenced) Login(ctx context.Context, provider, user string, t publishers.Tokens,
	opts ...publishers.EventOption) (publishers.Receipt, error) {
	if f.held.Err() != nil {
		return publishers.Receipt{}, context.Cause(f.held)
	}
	return f.to.Login(ctx, provider, user, t, opts...)
}

const (
	// overlap is the stretch of time that each poll reads again, and wide the stretch of some
	// polls: a transaction may commit long after the time that it writes.
	overlap = 2 * time.Second
	wide    = 2 * time.Minute
	// saveLimit is how long the last status may take to be stored.
	saveLimit = 4 * time.Second
	// widely is how often the wide overlap is read.
	widely = 15 * time.Second
	// statusEvery is how often the status is stored, and the place.
	statusEvery = 2 * time.Second
	// netEvery is how often a page of the whole table is read although there is a column for
	// changes, in case a row changed without that column.
	netEvery = time.Minute
	// remembered is how many rows' hashes are kept.
	remembered = 1 << 20
	// ahead is how far the app's clock, or its time zone, may be ahead of renewd's.
	ahead = 26 * time.Hour
	// spare is how many rows have a newer time of change than the place. A wrong clock, or a person
	// who edits the table, may write a time yet to come. Up to spare rows with such a time keep no
	// other row from being seen.
	spare = 5
)

// view is the watch of the process that has the lease. A view is for one goroutine.
type view struct {
	Watch
	source  *Source
	meters  meters
	down    atomic.Bool       // reading or publishing fails; for meters
	seen    map[string]uint64 // hashes of rows that need no new look, by id
	double  map[string]bool   // ids of rows that share a user id with other rows
	status  Status
	place   place
	newest  []change // the changes after the place, newest first
	walked  string   // id up to which the slow walk has come
	heard   chan string
	listens chan bool
}

// run watches until ctx ends. A failed step is tried again, and told in the status.
func (v *view) run(ctx context.Context) (err error) {
	before, err := v.source.bucket.Status(ctx)
	if err != nil {
		v.Log.Warn("the source's last status cannot be read", "error", err)
	}
	if v.status = before; v.status.Since.IsZero() {
		v.status.Since = v.Now().UTC()
	}
	if err := v.begin(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	deaf := make(chan struct{})
	go func() {
		defer close(deaf)
		v.listen(ctx)
	}()
	defer func() { <-deaf }()
	poll := time.NewTicker(v.Config.Poll)
	defer poll.Stop()
	var widened, netted, told time.Time
	for {
		var err error
		select {
		case <-ctx.Done():
			return v.end(ctx)
		case v.status.Notified = <-v.listens:
			widened = time.Time{} // changes before are not heard
		case id := <-v.heard:
			err = v.hear(ctx, id)
		case <-poll.C:
			since := overlap
			if time.Since(widened) > widely {
				since, widened = wide, time.Now()
			}
			err = v.poll(ctx, since)
			if err == nil && v.Config.UpdatedAt != "" && time.Since(netted) > netEvery {
				netted = time.Now()
				err = v.walk(ctx)
			}
		}
		v.note(err)
		if time.Since(told) > statusEvery {
			told = time.Now()
			if err := v.report(ctx); err != nil && ctx.Err() == nil {
				v.Log.Warn("the source's status cannot be stored", "error", err)
			}
		}
	}
}

// end stores how far the watch has come, unless another process goes on already.
func (v *view) end(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), lease.ErrLost) {
		return nil
	}
	final, done := context.WithTimeout(context.WithoutCancel(ctx), saveLimit)
	defer done()
	return v.report(final)
}

// begin waits until an import has begun, and finds the place to go on from.
func (v *view) begin(ctx context.Context) error {
	for ctx.Err() == nil {
		p, err := v.source.bucket.Progress(ctx)
		if err != nil {
			return err
		}
		if v.status.Waits = p.Began.IsZero(); !v.status.Waits {
			v.place, err = load[place](ctx, v.source.bucket, keyPlace+v.Config.Name)
			return err
		}
		if err := v.report(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(statusEvery):
		}
	}
	return nil
}

// listen hears which rows changed, where the database tells, until ctx ends.
func (v *view) listen(ctx context.Context) {
	tell := func(listens bool) {
		select {
		case v.listens <- listens:
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		err := appdb.Listen(ctx, v.source.table.dialect, v.Config.Channel,
			func() { tell(true) },
			func(id string) {
				select {
				case v.heard <- id:
				default: // the next poll finds the row
				}
			})
		if errors.Is(err, appdb.ErrDeaf) {
			return
		}
		tell(false)
		select {
		case <-ctx.Done():
		case <-time.After(statusEvery):
		}
	}
}

// hear takes the rows whose changes were heard.
func (v *view) hear(ctx context.Context, id string) error {
	ids := []string{id}
	for len(v.heard) > 0 && len(ids) < pageRows {
		ids = append(ids, <-v.heard)
	}
	rows, err := v.source.table.byID(ctx, ids)
	if err != nil {
		return err
	}
	return v.handle(ctx, rows)
}

// poll takes the rows that changed since the place, and a while before the place.
func (v *view) poll(ctx context.Context, since time.Duration) error {
	if v.Config.UpdatedAt == "" || v.place.Updated == "" { // no such column, or no row yet
		return v.walk(ctx)
	}
	from, after := before(v.place.Updated, since), ""
	for {
		rows, err := v.source.table.changed(ctx, from, after, pageRows)
		if err != nil {
			return err
		}
		if err := v.handle(ctx, rows); err != nil {
			return err
		}
		for _, r := range rows {
			v.pass(r)
		}
		if len(rows) < pageRows {
			return nil
		}
		from, after = rows[len(rows)-1].updated, rows[len(rows)-1].id
	}
}

// change is when a row changed, as the table has it and as a time.
type change struct {
	id, text string
	at       time.Time
}

// pass moves the place on for a row that was seen, so that spare rows are after the place.
func (v *view) pass(r row) {
	c := change{r.id, r.updated, when(r.updated)}
	if !possible(c.at) || !c.at.After(when(v.place.Updated)) {
		return
	}
	v.newest = slices.DeleteFunc(v.newest, func(n change) bool { return n.id == c.id })
	i, _ := slices.BinarySearchFunc(v.newest, c.at, func(n change, at time.Time) int {
		return at.Compare(n.at)
	})
	v.newest = slices.Insert(v.newest, i, c)
	if len(v.newest) > spare {
		v.place.Updated = v.newest[spare].text
		v.newest = v.newest[:spare]
	}
}

// possible reports whether a row can have changed then. A place in the future would hide all
// earlier changes.
func possible(at time.Time) bool { return !at.IsZero() && at.Before(time.Now().Add(ahead)) }

// walk takes the next rows of the whole table, by id, and begins again at the table's end.
func (v *view) walk(ctx context.Context) error {
	rows, err := v.source.table.page(ctx, v.walked, 2*pageRows)
	if err == nil {
		err = v.handle(ctx, rows)
	}
	if err != nil {
		return err
	}
	if v.walked = ""; len(rows) == 2*pageRows {
		v.walked = rows[len(rows)-1].id
	}
	if v.place.Updated == "" {
		v.place.Updated = earliest(rows)
	}
	return nil
}

// earliest is the first of the times at which rows changed; empty: no such time.
func earliest(rows []row) (updated string) {
	for _, r := range rows {
		at := when(r.updated)
		if possible(at) && (updated == "" || at.Before(when(updated))) {
			updated = r.updated
		}
	}
	return updated
}

// handle takes the logins among rows, and passes over rows that stand as last seen. A row that
// shared a user id with another row is looked at again: the other row may be gone.
func (v *view) handle(ctx context.Context, rows []row) error {
	var fresh []row
	for _, r := range rows {
		if v.seen[r.id] != r.hash() || v.double[r.id] {
			fresh = append(fresh, r)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	found, err := v.source.examine(ctx, fresh)
	if err == nil {
		err = v.source.take(ctx, found, nil)
	}
	if len(v.seen)+len(found) > remembered {
		clear(v.seen)
		clear(v.double)
	}
	for _, f := range found {
		if f.problem == Double && v.double[f.row.id] && v.seen[f.row.id] == f.row.hash() {
			continue // the row was counted, and logged
		}
		if err != nil && f.login() && !f.taken {
			continue // the row comes again
		}
		if again := v.reconsider(ctx, f); again != nil {
			err = errors.Join(err, again)
			continue
		}
		v.seen[f.row.id] = f.row.hash()
		if delete(v.double, f.row.id); f.problem == Double {
			v.double[f.row.id] = true
		}
		v.status.Tally.add(f)
		v.meters.count(ctx, f)
		if f.foreign() && !f.changed() {
			v.status.Tally.Foreign-- // the row was counted when it changed
		}
		v.say(f)
	}
	return err
}

// reconsider takes back a suspicion of a row whose sign-in came after its tokens.
func (v *view) reconsider(ctx context.Context, f finding) error {
	if f.empty || !f.explained() {
		return nil
	}
	if err := v.source.bucket.setMark(ctx, f.session.user, f.mark(true)); err != nil {
		return err
	}
	v.status.Tally.Foreign = max(0, v.status.Tally.Foreign-1)
	return nil
}

// say logs the news about a row for an operator.
func (v *view) say(f finding) {
	switch {
	case f.problem != "":
		v.Log.Warn("a row cannot be taken", "row", f.row.id, "problem", f.problem,
			"hint", f.problem.Says())
	case f.changed() && f.foreign():
		v.status.ForeignAt = f.at.UTC()
		v.Log.Warn("a refresh token changed without a sign-in: does somebody else still renew?",
			"row", f.row.id, "hint", "renewd adopt check "+v.Config.Name)
	}
}

// note keeps a failure for the status.
func (v *view) note(err error) {
	switch {
	case errors.Is(err, context.Canceled):
	case err != nil:
		v.down.Store(true)
		if v.status.DownSince.IsZero() {
			v.status.DownSince = v.Now().UTC()
			v.Log.Warn("the table cannot be watched, trying again", "error", err)
		}
		v.status.Error = err.Error()
	case !v.status.DownSince.IsZero():
		v.Log.Info("the table is watched again", "down_since", v.status.DownSince)
		v.status.DownSince, v.status.Error = time.Time{}, ""
		v.down.Store(false)
	}
}

// report stores the status and the place. Rows seen beyond the place are seen again.
func (v *view) report(ctx context.Context) error {
	v.status.At, v.status.Host = v.Now().UTC(), v.Host
	err := v.source.bucket.store(ctx, keyStatus+v.Config.Name, v.status)
	if v.place.Updated != "" {
		err = errors.Join(err, v.source.bucket.store(ctx, keyPlace+v.Config.Name, v.place))
	}
	return err
}
