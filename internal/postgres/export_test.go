package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/renewd/renewd/internal/grant"
)

// together runs calls as one batch and returns the error of each.
func together[In, Out any](b *batcher[In, Out], ins []In, of func(Out) error) []error {
	batch := make([]*call[In, Out], len(ins))
	for i, in := range ins {
		batch[i] = &call[In, Out]{in: in, done: make(chan struct{})}
	}
	b.answer(batch)
	errs := make([]error, len(ins))
	for i, c := range batch {
		if errs[i] = c.err; c.err == nil {
			errs[i] = of(c.out)
		}
	}
	return errs
}

// LoadTogether loads in one batch.
func (s *Store) LoadTogether(keys []grant.Key) []error {
	return together(&s.loads, keys, func(r *row) error {
		if r == nil {
			return grant.ErrNotFound
		}
		return nil
	})
}

// ClaimTogether claims in one batch.
func (s *Store) ClaimTogether(keys []grant.Key, r grant.ClaimRequest) []error {
	claims := make([]claim, len(keys))
	for i, k := range keys {
		claims[i] = claim{k, r}
	}
	return together(&s.claims, claims, func(c claimed) error { return c.err })
}

// SaveTogether saves in one batch.
func (s *Store) SaveTogether(grants []grant.Grant) ([]error, error) {
	rows := make([]*row, len(grants))
	for i, g := range grants {
		var err error
		if rows[i], err = s.rowOf(g); err != nil {
			return nil, err
		}
	}
	return together(&s.saves, rows, func(refused error) error { return refused }), nil
}

// Columns are those that saves write, with the type of each.
func Columns() [][2]string { return written }

// Rewrite writes the row of k with another state, as another version would; with bound its tokens
// bind the state.
func (s *Store) Rewrite(
	ctx context.Context, k grant.Key, bound bool, state func(string) string,
) error {
	r, err := s.loads.do(ctx, k)
	if err != nil {
		return err
	}
	g, err := s.grantOf(r)
	if err != nil {
		return err
	}
	var digest grant.Digest
	if r.state = state(r.state); bound {
		digest = r.digest()
	}
	if r.tokens, err = grant.SealTokens(s.cipher, &g, s.private, digest); err != nil {
		return err
	}
	tag, err := s.pool.Exec(ctx, resealSQL, k.Provider, k.User, r.revision, r.tokens, r.state)
	if err == nil && tag.RowsAffected() != 1 {
		err = fmt.Errorf("%d rows were written", tag.RowsAffected())
	}
	return err
}

// Unbind writes the row of k as versions did that bound no row.
func (s *Store) Unbind(ctx context.Context, k grant.Key) error {
	return s.Rewrite(ctx, k, false, func(state string) string {
		return "{" + strings.TrimPrefix(state, boundMark+",")
	})
}
