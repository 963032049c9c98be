package sql

import (
	"context"
	"time"
)

// pageRows is how many rows are read at a time.
const pageRows = 500

// Told is called after each page, with the tally so far and the number of rows in the table.
type Told func(so Tally, of int)

// Look reads the whole table, and publishes nothing. With keep, a row that was never seen is marked
// as it is, so that a later look tells of changes.
func (s *Source) Look(ctx context.Context, keep bool, told Told) (Tally, error) {
	var p Progress
	err := s.walk(ctx, &p, told, func(ctx context.Context, found []finding) error {
		if !keep {
			return nil
		}
		return each(ctx, len(found), func(ctx context.Context, i int) error {
			f := found[i]
			if !f.login() || f.was != nil {
				return nil
			}
			return s.bucket.setMark(ctx, f.session.user, f.mark(false))
		})
	})
	return p.Tally, err
}

// Import publishes each session of the table that was not taken before as a login. It goes on where
// an earlier import stopped, unless that import was done, or again is set. wait is called before
// each login. The watch begins with the first import, at the time of the table's last change then.
func (s *Source) Import(
	ctx context.Context, again bool, wait func(context.Context) error, told Told,
) (Progress, error) {
	p, err := s.bucket.Progress(ctx)
	if err != nil {
		return p, err
	}
	first := p.Began.IsZero()
	if first || again || !p.Done.IsZero() {
		p = Progress{Began: time.Now().UTC()}
	}
	if first {
		at, err := s.table.newest(ctx)
		if err == nil {
			err = s.bucket.store(ctx, keyPlace+s.table.config.Name, place{Updated: at})
		}
		if err != nil {
			return p, err
		}
	}
	if err := s.keep(ctx, &p); err != nil {
		return p, err
	}
	err = s.walk(ctx, &p, told, func(ctx context.Context, found []finding) error {
		for i := range found {
			found[i].imports = true
		}
		return s.take(ctx, found, wait)
	})
	if err == nil {
		p.Done = time.Now().UTC()
		err = s.keep(ctx, &p)
	}
	return p, err
}

func (s *Source) keep(ctx context.Context, p *Progress) error {
	return s.bucket.store(ctx, keyImport+s.table.config.Name, p)
}

// walk reads the rows after p, page by page, and calls do with the findings of each page. p has
// come as far as the last page for which do has succeeded.
func (s *Source) walk(
	ctx context.Context, p *Progress, told Told,
	do func(ctx context.Context, found []finding) error,
) error {
	of, err := s.table.count(ctx)
	if err != nil {
		return err
	}
	for {
		rows, err := s.table.page(ctx, p.After, pageRows)
		if err != nil {
			return err
		}
		found, err := s.examine(ctx, rows)
		if err == nil {
			err = do(ctx, found)
		}
		if err != nil {
			return err
		}
		for _, f := range found {
			p.Tally.add(f)
		}
		if len(rows) > 0 {
			p.After = rows[len(rows)-1].id
		}
		if told != nil {
			told(p.Tally, max(of, p.Tally.Rows))
		}
		if len(rows) < pageRows {
			return nil
		}
		if !p.Began.IsZero() {
			if err := s.keep(ctx, p); err != nil {
				return err
			}
		}
	}
}
