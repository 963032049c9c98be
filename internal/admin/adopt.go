package admin

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/source/sql"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/publishers"
)

// Adoption is an app's table, and renewd's records of the table, for an operator.
type Adoption struct {
	*sql.Source
	*sql.Bucket
	Table *sql.Table
}

// OpenSource opens the source of this name in the settings. The caller closes the table.
func OpenSource(
	ctx context.Context, nc *nats.Conn, conf *settings.Settings, name string,
) (*Adoption, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	config := conf.AppTable(name)
	b, err := sql.OpenBucket(ctx, js, conf.Subjects(), name)
	if err != nil {
		return nil, err
	}
	engine, err := stream.NewEngine(js, stream.Config{Subjects: conf.Subjects()})
	if err != nil {
		return nil, err
	}
	// Logins dated by this machine's clock would all be rejected if that clock is wrong.
	if err := engine.SyncClock(ctx); err != nil {
		return nil, err
	}
	to, err := publishers.New(nc, publishers.WithPrefix(conf.NATSPrefix),
		publishers.WithSource(config.EventSource()), publishers.WithClock(engine.Now))
	if err != nil {
		return nil, err
	}
	t, err := sql.Open(config)
	if err != nil {
		return nil, err
	}
	return &Adoption{Source: sql.New(t, b, to), Bucket: b, Table: t}, nil
}

// silent is how old the status of a watched source may be.
const silent = time.Minute

// tables looks whether each app's table of the settings can be read and is watched, and whether
// rows cannot be taken from it.
func (x *examination) tables(ctx context.Context) Finding {
	conf := x.on.Conf
	if len(conf.AppTables()) == 0 {
		return Finding{State: Fine, Found: "none in the settings"}
	}
	var wrong []string
	for _, name := range conf.AppTables() {
		words, err := x.table(ctx, name)
		if err != nil {
			words = append(words, err.Error())
		}
		if len(words) > 0 {
			wrong = append(wrong, name+": "+strings.Join(words, ", "))
		}
	}
	if len(wrong) == 0 {
		return Finding{State: Fine, Found: plain.Counted(len(conf.AppTables()), "table", "tables")}
	}
	return Finding{
		State: Warning, Found: strings.Join(wrong, "; "),
		Advice: fmt.Sprintf("%s adopt check NAME says more, %s adopt plan NAME what a table "+
			"lacks. Renewals go on", x.program, x.program),
	}
}

// table names what is wrong with a source; nothing if all is well.
func (x *examination) table(ctx context.Context, name string) (words []string, err error) {
	t, err := sql.Open(x.on.Conf.AppTable(name))
	if err != nil {
		return nil, err
	}
	defer t.Close()
	lacks, err := t.Plan(ctx)
	if err != nil {
		return nil, err
	}
	if len(lacks) > 0 {
		words = append(words, "the table lacks "+
			plain.Counted(len(lacks), "index or trigger", "indexes and triggers"))
	}
	if x.on.Conf.Sources[name].Mode == settings.ModeObserve {
		return append(words, "it is only observed (mode)"), nil
	}
	b, err := sql.OpenBucket(ctx, x.on.JS, x.on.Conf.Subjects(), name)
	if err != nil {
		return words, err
	}
	s, err := b.Status(ctx)
	if err != nil {
		return words, err
	}
	return append(words, troubleOf(s, x.on.Engine.Now())...), nil
}

// troubleOf is what an operator must know of a source's status.
func troubleOf(s sql.Status, now time.Time) (words []string) {
	switch {
	case now.Sub(s.At) > silent:
		return []string{"no renewd watches it"}
	case s.Waits:
		return []string{"it waits for: renewd adopt import"}
	case !s.DownSince.IsZero():
		words = append(words, fmt.Sprintf("not read since %s%s", plain.Clock(s.DownSince),
			plain.InBrackets(s.Error)))
	}
	if n := s.Tally.Unreadable(); n > 0 {
		words = append(words, plain.Counted(n, "changed row", "changed rows")+
			" could not be taken: "+problemsOf(s.Tally))
	}
	if s.Tally.Foreign > 0 {
		words = append(words, fmt.Sprintf("%s without a sign-in, last at %s: somebody else still "+
			"renews", plain.Counted(s.Tally.Foreign, "refresh token changed",
			"refresh tokens changed"), plain.Clock(s.ForeignAt)))
	}
	return words
}

// problemsOf lists the problems of a tally, with the first rows of each.
func problemsOf(t sql.Tally) string {
	var found []string
	for _, p := range sql.Problems() {
		if n := t.Problems[p]; n > 0 {
			found = append(found, fmt.Sprintf("%d %s (row %s)", n, p,
				plain.Text(strings.Join(t.Examples[p], ", "))))
		}
	}
	return strings.Join(found, ", ")
}

// Verdict is the result of `adopt check`.
type Verdict struct {
	Source string `json:"source"`
	// Clean: nothing shows that another program renews. Why is the reason, in words.
	Clean bool      `json:"clean"`
	Why   string    `json:"why"`
	Now   sql.Tally `json:"now"` // of the whole table
	// Watched is the status from the running renewd.
	Watched sql.Status `json:"watched"`
}

// manyRows is a number of rows too large to sign in by chance between two looks.
const manyRows = 10

// Check looks whether another program still renews: whether refresh tokens changed without a
// sign-in.
func (a *Adoption) Check(ctx context.Context, config sql.Config, told sql.Told) (v Verdict,
	err error) {
	v.Source = config.Name
	if v.Now, err = a.Look(ctx, false, told); err != nil {
		return v, err
	}
	if v.Watched, err = a.Status(ctx); err != nil {
		return v, err
	}
	seen := v.Now.Known + v.Now.Changed
	changed := plain.Counted(v.Now.Changed, "refresh token changed", "refresh tokens changed")
	switch {
	case seen == 0 && v.Now.New > 0:
		v.Why = "nothing to compare with yet: renewd adopt observe, or import, comes first"
	case v.Now.Foreign > 0:
		v.Why = fmt.Sprintf("%s without a sign-in", plain.Counted(v.Now.Foreign,
			"refresh token changed", "refresh tokens changed"))
	case v.Now.Cleared > manyRows && 4*v.Now.Cleared > seen:
		v.Why = fmt.Sprintf("%d rows were emptied: a job that is refused empties them, or the app "+
			"signed all these users out", v.Now.Cleared)
	case config.SignedInAt == "" && v.Now.Changed > manyRows && 4*v.Now.Changed > seen:
		v.Why = changed + " of " + fmt.Sprint(seen) + ": so many users do not sign in at once"
	case config.SignedInAt == "":
		v.Clean = true
		v.Why = changed + ", which may be sign-ins: with signed_in_at renewd could tell"
	default:
		v.Clean, v.Why = true, changed+", each by a sign-in"
	}
	return v, nil
}
