package storetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/seal"
)

// Memory is a grant.Store in memory, for tests of packages that use a store. A Memory starts no
// goroutine and opens no socket, so it fits a synctest bubble. Safe for concurrent use.
type Memory struct {
	now func() time.Time

	mu       sync.Mutex
	revision uint64
	grants   map[grant.Key]grant.Grant
	damaged  map[grant.Key]Damage
	heads    map[grant.Key][]byte
	unbound  map[grant.Key]bool
	cipher   grant.Cipher
}

var _ grant.Store = (*Memory)(nil)

// NewMemory returns an empty store on the given clock.
func NewMemory(now func() time.Time) *Memory {
	return NewMemoryWith(Cipher{}, now)
}

// NewMemoryWith is NewMemory with the cipher that the records count as sealed with.
func NewMemoryWith(c grant.Cipher, now func() time.Time) *Memory {
	return &Memory{
		now: now, cipher: c, grants: map[grant.Key]grant.Grant{}, damaged: map[grant.Key]Damage{},
		heads: map[grant.Key][]byte{}, unbound: map[grant.Key]bool{},
	}
}

// Damage makes the record of k unreadable until the record is saved or deleted.
func (m *Memory) Damage(k grant.Key, d Damage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.damaged[k], m.heads[k] = d, nil
	if d == LostKey {
		m.heads[k] = grant.HeadOf(LostPair)
	}
}

// Unbind makes the record of k an old version's unbound record, until the next write.
func (m *Memory) Unbind(k grant.Key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unbound[k] = true
}

// Traces counts what is kept of k.
func (m *Memory) Traces(k grant.Key) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	if _, ok := m.grants[k]; ok {
		n++
	}
	if _, ok := m.damaged[k]; ok {
		n++
	}
	return n
}

// read is the record a caller gets, with an error if the record is not whole.
func (m *Memory) read(k grant.Key) (grant.Grant, error) {
	g, ok := m.grants[k]
	if !ok {
		return grant.Grant{Key: k}, grant.ErrNotFound
	}
	switch m.damaged[k] {
	case LostKey:
		g.Pair = grant.Pair{}
		return copied(g), fmt.Errorf("%w: %w", grant.ErrUnreadable, seal.ErrUnknownKey)
	case Altered:
		g.Pair = grant.Pair{}
		return copied(g), fmt.Errorf("%w: %w", grant.ErrUnreadable, grant.ErrAltered)
	case Broken:
		return grant.Grant{Key: k, Revision: g.Revision}, grant.ErrUnreadable
	}
	return copied(g), nil
}

// Load implements grant.Store.
func (m *Memory) Load(ctx context.Context, k grant.Key) (grant.Grant, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g, err := m.read(k)
	if err != nil {
		return g, fmt.Errorf("load grant %s: %w", k, err)
	}
	return g, context.Cause(ctx)
}

// Claim implements grant.Store.
func (m *Memory) Claim(
	ctx context.Context, k grant.Key, r grant.ClaimRequest,
) (grant.Grant, *grant.Claim, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g, err := m.read(k)
	if err != nil {
		return g, nil, fmt.Errorf("claim grant %s: %w", k, err)
	}
	if err := context.Cause(ctx); err != nil {
		return grant.Grant{}, nil, err
	}
	prior, now := g.Claim, m.now()
	mine := prior != nil && prior.Nonce == r.Nonce
	if !mine && (r.Extend || prior != nil && now.Before(prior.Until)) {
		return grant.Grant{}, nil, fmt.Errorf("claim grant %s: %w", k, grant.ErrClaimed)
	}
	g.Claim = r.On(&g, now)
	m.put(&g)
	return copied(g), prior, nil
}

// Save implements grant.Store.
func (m *Memory) Save(ctx context.Context, g grant.Grant) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	if m.grants[g.Key].Revision != g.Revision {
		return 0, fmt.Errorf("save grant %s: %w", g.Key, grant.ErrConflict)
	}
	m.put(&g)
	return g.Revision, nil
}

// Delete implements grant.Store.
func (m *Memory) Delete(_ context.Context, k grant.Key, revision uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	g, ok := m.grants[k]
	switch {
	case !ok:
		return fmt.Errorf("delete grant %s: %w", k, grant.ErrNotFound)
	case g.Revision != revision:
		return fmt.Errorf("delete grant %s: %w", k, grant.ErrConflict)
	}
	delete(m.grants, k)
	delete(m.damaged, k)
	delete(m.heads, k)
	delete(m.unbound, k)
	return nil
}

// ListDue implements grant.Store; the cursor is the last key.
func (m *Memory) ListDue(
	ctx context.Context, cursor string, limit int,
) (page []grant.Due, next string, err error) {
	all, next, err := m.List(ctx, cursor, limit)
	for _, l := range all {
		page = append(page, l.Due())
	}
	return page, next, err
}

// ListSealed implements grant.Store; the cursor is the last key.
func (m *Memory) ListSealed(
	ctx context.Context, cursor string, limit int,
) (page []grant.Sealed, next string, err error) {
	all, next, err := m.List(ctx, cursor, limit)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range all {
		page = append(page, grant.Sealed{
			Due: l.Due(), Revision: l.Revision, Head: m.heads[l.Key], Bound: !m.unbound[l.Key],
		})
	}
	return page, next, err
}

// Reseal implements grant.Store.
func (m *Memory) Reseal(ctx context.Context, k grant.Key, revision uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	g, err := m.read(k)
	if err == nil && g.Revision != revision {
		err = grant.ErrConflict
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("re-seal grant %s: %w", k, err)
	}
	m.put(&g)
	return nil
}

// List implements grant.Store; the cursor is the last key.
func (m *Memory) List(
	_ context.Context, cursor string, limit int,
) (page []grant.ListEntry, next string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := func(k grant.Key) string { return k.Provider + "\x00" + k.User }
	keys := slices.SortedFunc(maps.Keys(m.grants), func(a, b grant.Key) int {
		if name(a) < name(b) {
			return -1
		}
		return 1
	})
	for _, k := range keys {
		if name(k) <= cursor {
			continue
		}
		if len(page) == limit {
			return page, name(page[limit-1].Key), nil
		}
		g, err := m.read(k)
		page = append(page, grant.ListEntry{Grant: g, Err: err, Bound: !m.unbound[k]})
	}
	return page, "", nil
}

func (m *Memory) put(g *grant.Grant) {
	m.revision++
	g.Revision = m.revision
	m.grants[g.Key] = copied(*g)
	delete(m.damaged, g.Key)
	delete(m.unbound, g.Key)
	sealed, err := grant.SealTokens(m.cipher, g, false, nil)
	if err != nil {
		panic("storetest: " + err.Error()) // a cipher of tests
	}
	m.heads[g.Key] = grant.HeadOf(sealed)
}

// copied keeps changes that a caller makes to its record out of the store.
func copied(g grant.Grant) grant.Grant {
	if g.Verdict != nil {
		v := *g.Verdict
		g.Verdict = &v
	}
	if g.Claim != nil {
		c := *g.Claim
		g.Claim = &c
	}
	if g.Doubt != nil {
		d := *g.Doubt
		g.Doubt = &d
	}
	if g.Pending != nil {
		p := *g.Pending
		g.Pending = &p
	}
	return g
}
