package sql

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// publisher seals and publishes a login.
type publisher interface {
	Login(ctx context.Context, provider, user string, t publishers.Tokens,
		opts ...publishers.EventOption) (publishers.Receipt, error)
}

// Source is an app's table, and the marks of its rows. A Source is safe for concurrent use.
type Source struct {
	table  *Table
	bucket *Bucket
	to     publisher
}

// New returns a source. The publisher's source is Config.EventSource.
func New(t *Table, b *Bucket, to *publishers.Publisher) *Source {
	return &Source{table: t, bucket: b, to: to}
}

// finding is a row, and the known facts about its user.
type finding struct {
	row     row
	session session
	empty   bool
	problem Problem
	was     *mark // nil: the row was never seen with tokens
	at      time.Time
	taken   bool
	imports bool // an import found the row, so any earlier renewer should have stopped
}

// disarmed: the row had a refresh token, and has none now. The row is no login: the app, or an
// owner who tidies up, has taken the token away, and renewd's own token lives. A sign-in without a
// refresh token shows in the time of the last sign-in.
func (f finding) disarmed() bool {
	return f.was != nil && f.was.Refresh && f.session.refresh.IsZero() &&
		f.was.SignedIn == f.row.signed
}

// changed: the tokens differ from the tokens last taken, or seen.
func (f finding) changed() bool {
	return f.was != nil && f.was.Token != f.session.token().Fingerprint() && !f.disarmed()
}

// foreign: the tokens changed, now or before, and the user did not sign in. The row shows a sign-in
// only where it has the time of the last sign-in.
func (f finding) foreign() bool {
	return !f.imports && f.was != nil && f.row.signed != "" && f.was.SignedIn == f.row.signed &&
		(f.changed() || f.was.Suspect)
}

// explained: the sign-in came after the tokens that it brought.
func (f finding) explained() bool {
	return f.was != nil && f.was.Suspect && !f.changed() && f.was.SignedIn != f.row.signed
}

// login reports whether the row is to be taken.
func (f finding) login() bool {
	return !f.empty && f.problem == "" && !f.disarmed() &&
		(f.was == nil || f.changed() || !f.was.Taken)
}

// width is how many rows are looked up, or published, at a time.
const width = 32

// examine reads rows' sessions, and looks up their users' marks.
func (s *Source) examine(ctx context.Context, rows []row) ([]finding, error) {
	found := make([]finding, len(rows))
	at := time.Now()
	err := each(ctx, len(rows), func(ctx context.Context, i int) (err error) {
		f := finding{row: rows[i], at: at}
		f.session, f.empty, f.problem = s.table.session(f.row)
		if f.problem == "" && f.session.user != "" {
			f.was, err = s.bucket.mark(ctx, f.session.user)
		}
		if f.changed() && slices.Contains(f.was.Past, f.session.token().Fingerprint()) {
			f.problem = Spent
		}
		found[i] = f
		return err
	})
	if err != nil {
		return nil, err
	}
	var users []string
	for _, f := range found {
		if f.login() {
			users = append(users, f.session.user)
		}
	}
	several, err := s.table.doubles(ctx, users)
	if err != nil {
		return nil, err
	}
	refuseDoubles(found, several)
	return found, nil
}

// refuseDoubles refuses the logins of users who have several rows: in the table as it is now, or
// among the rows as they were read. One of the latter may be gone by now, and nobody knows which of
// the two logins is the newer.
func refuseDoubles(found []finding, several map[string]bool) {
	rows := map[string]int{}
	for _, f := range found {
		if f.login() {
			rows[f.session.user]++
		}
	}
	for i, f := range found {
		if user := f.session.user; f.login() && (several[user] || rows[user] > 1) {
			found[i].problem = Double
		}
	}
}

// each calls do for 0 to n-1, some at a time, until a call fails.
func each(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(width)
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error { return do(ctx, i) })
	}
	return g.Wait()
}

// take publishes the logins among the findings, and marks them. wait, if not nil, is called before
// each login. After a login fails take still goes on to the end, because one row's trouble must not
// stop other rows. take returns the first error.
func (s *Source) take(
	ctx context.Context, found []finding, wait func(context.Context) error,
) error {
	var g errgroup.Group
	g.SetLimit(width)
	for i := range found {
		if !found[i].login() {
			continue
		}
		if wait != nil {
			if err := wait(ctx); err != nil {
				return errors.Join(err, g.Wait())
			}
		}
		g.Go(func() error { return s.takeOne(ctx, &found[i]) })
	}
	return g.Wait()
}

// reread looks at a row again. An import reads many rows and publishes them at a pace: the user may
// have signed in meanwhile, and an older login would come after the newer login.
func (s *Source) reread(ctx context.Context, f *finding) error {
	rows, err := s.table.byID(ctx, []string{f.row.id})
	if err != nil {
		return err
	}
	if len(rows) != 1 {
		f.empty = true // the row is gone
		return nil
	}
	found, err := s.examine(ctx, rows)
	if err != nil {
		return err
	}
	*f = found[0]
	f.imports = true
	return nil
}

func (s *Source) takeOne(ctx context.Context, f *finding) error {
	if f.imports {
		if err := s.reread(ctx, f); err != nil || !f.login() {
			return err
		}
	}
	of := f.session
	id := publishers.WithID(LoginID(s.table.config.Name, of.user, of.token()))
	_, err := s.to.Login(ctx, s.table.config.Provider, of.user, publishers.Tokens{
		AccessToken: of.access.Reveal(), RefreshToken: of.refresh.Reveal(), ExpiresAt: of.expiresAt,
	}, id, func(e *schema.Event) { e.Sender = senders.Source })
	if _, malformed := errors.AsType[*schema.Malformed](err); malformed {
		f.problem = TooLong // all else in the login was checked
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.bucket.setMark(ctx, of.user, f.mark(true)); err != nil {
		return err // the login is published again, under the same id
	}
	f.taken = true
	return nil
}

// mark is the mark to keep of the row.
func (f finding) mark(taken bool) mark {
	m := mark{
		Token: f.session.token().Fingerprint(), Refresh: !f.session.refresh.IsZero(),
		SignedIn: f.row.signed, Taken: taken, Suspect: f.foreign(),
	}
	if f.was != nil {
		m.Past = f.was.Past
	}
	if f.changed() && f.was.Taken {
		m.Past = append([]string{f.was.Token}, m.Past[:min(len(m.Past), pasts-1)]...)
	}
	return m
}

// LoginID is the id of the login that a source publishes of a user's refresh token, or of an access
// token without a refresh token. A login published again has the same id: the stream, and the
// user's record, then take it once.
func LoginID(source, user string, token secret.Value) string {
	sum := sha256.Sum256([]byte("renewd source\x00" + source + "\x00" + user + "\x00" +
		token.Fingerprint()))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}
