package main

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/source/sql"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// signInOutside opens a session, which the app outside writes into its table for renewd to take.
// The function returns once renewd has taken the login, or records the login as untaken when a step
// fails for settlesIn. The caller holds x.mu.
func (p *people) signInOutside(ctx context.Context, x *person) {
	p.open(x)
	c := command{
		who:     x,
		id:      sql.LoginID(shop, x.name, secret.New(x.tokens.Refresh)),
		source:  sql.Config{Name: shop}.EventSource(),
		kind:    schema.UserLogin,
		session: x.session,
		tried:   time.Now(),
	}
	// No other login of the person comes meanwhile, so the first later place is this login's.
	var before uint64
	steps := []func(context.Context) error{
		func(ctx context.Context) (err error) {
			before, err = p.lastLogin(ctx)
			c.sent = time.Now()
			return err
		},
		func(ctx context.Context) error { return p.world.outside.logIn(ctx, x) },
		func(ctx context.Context) (err error) {
			c.sequence, err = p.placeAfter(ctx, x, before)
			c.accepted = time.Now()
			return err
		},
	}
	for _, step := range steps {
		if eventually(ctx, settlesIn, func() error {
			ctx, done := context.WithTimeout(ctx, 3*time.Second)
			defer done()
			return step(ctx)
		}) != nil {
			x.unsure = true
			p.mu.Lock()
			p.untaken = append(p.untaken, x.key())
			p.mu.Unlock()
			return
		}
	}
	x.login, x.accepted = c, true
	p.mu.Lock()
	p.commands = append(p.commands, c)
	p.outside++
	p.mu.Unlock()
}

// lastLogin is the newest place in LOGINS.
func (p *people) lastLogin(ctx context.Context) (uint64, error) {
	s, err := p.world.js.Stream(ctx, topology.Logins)
	if err != nil {
		return 0, err
	}
	return s.CachedInfo().State.LastSeq, nil
}

var errNotTaken = errors.New("no login of the person was taken yet")

// placeAfter waits until the record has a place of the person's logins after before, and returns
// the newest.
func (p *people) placeAfter(ctx context.Context, x *person, before uint64) (uint64, error) {
	s, closeStore, err := p.world.openStore(ctx)
	if err != nil {
		return 0, err
	}
	defer closeStore()
	var at uint64
	err = eventually(ctx, settlesIn, func() error {
		g, err := s.Load(ctx, grant.Key{Provider: x.provider.id, User: x.name})
		if err != nil {
			return err
		}
		places := []uint64{g.Login.Sequence, g.Disproven.Sequence}
		for c := g.Candidate; c != nil; c = c.Next {
			places = append(places, c.Login.Sequence)
		}
		if at = slices.Max(places); at <= before {
			return errNotTaken
		}
		return nil
	})
	return at, err
}
