package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// eraseWithLogin erases users whose login arrives at any moment of the erasure.
func eraseWithLogin(ctx context.Context, x *strike) error {
	x.unfelt = true
	done := context.WithoutCancel(ctx)
	victims := x.people.some(x.rand, x.count(12, 20))
	early := map[*person]time.Duration{}
	for _, v := range victims {
		early[v] = time.Duration(x.rand.IntN(60)-15) * time.Millisecond
	}
	x.people.eachOf(victims, 12, func(v *person) { // each erasure waits 12 s
		if ctx.Err() == nil {
			x.people.eraseMeanwhile(done, v, early[v])
		}
	})
	return nil
}

// eraseMeanwhile erases a person, and meanwhile publishes a login of that person, early before the
// erasure empties LOGINS. The caller holds v.mu.
func (p *people) eraseMeanwhile(ctx context.Context, v *person, early time.Duration) {
	p.mu.Lock()
	wait := p.purging - early
	p.mu.Unlock()
	var wg sync.WaitGroup
	erased := false
	wg.Go(func() { erased = p.erase(ctx, v) })
	wg.Go(func() {
		<-time.After(wait)
		p.open(v)
		p.tell(ctx, v, p.apps[0])
	})
	wg.Wait()
	if v.unsure = !erased; erased {
		p.settleOrder(v)
	}
}

// fewestRotations is how often a session was rotated, at least, before its login is repeated.
const fewestRotations = 3

// repeatLogins publishes logins again after their tokens were spent long ago.
func repeatLogins(ctx context.Context, x *strike) error {
	x.unfelt = true
	rotations := map[string]int{}
	for id, p := range x.world.providers {
		for _, shown := range p.seen.list() {
			if shown.Verdict == standin.Renewed {
				rotations[fmt.Sprint(id, shown.Session)]++
			}
		}
	}
	left := x.count(6, 12)
	for _, v := range x.people.some(x.rand, len(x.people.all)) {
		if left == 0 || ctx.Err() != nil {
			return nil
		}
		if !v.mu.TryLock() {
			continue
		}
		if v.accepted && v.answered && !v.erased && !v.unsure &&
			rotations[fmt.Sprint(v.provider.id, v.session)] >= fewestRotations &&
			v.provider.Live(v.name) {
			if err := x.people.repeat(context.WithoutCancel(ctx), v, left%3); err != nil {
				v.mu.Unlock()
				return err
			}
			left--
		}
		v.mu.Unlock()
	}
	if x.brief && left > 0 {
		return fmt.Errorf("%d logins too few had been rotated %d times", left, fewestRotations)
	}
	return nil
}

// repeat publishes a person's login again in a given way: the same sealed message as a new event,
// the very same event, or the same tokens sealed hours ago. The caller holds v.mu.
func (p *people) repeat(ctx context.Context, v *person, way int) error {
	m := p.tape.newest(v.loginSubject())
	if m == nil || m.Header.Get("ce-id") != v.login.id {
		return nil // the login passed while the tape's connection was away
	}
	c := command{
		who:    v,
		id:     v.login.id,
		source: v.login.source,
		kind:   schema.UserLogin,
		fate:   rejectable,
	}
	switch way {
	case 0:
		c.id = newID("repeated")
	case 2:
		c.id = newID("sealed-long-ago")
		long := time.Now().Add(-3 * time.Hour)
		keys, err := p.world.keyring()
		if err != nil {
			return err
		}
		jwe, err := seal.SealLogin(keys.JWKS(), v.provider.id, v.name, long, seal.Tokens{
			Access:    secret.New(v.tokens.Access),
			Refresh:   secret.New(v.tokens.Refresh),
			ExpiresIn: p.world.Life,
		})
		if err != nil {
			return err
		}
		m.Data = fmt.Appendf(nil, `{"tokens":%q}`, jwe)
		m.Header.Set("ce-time", long.UTC().Format(time.RFC3339Nano))
	}
	m.Header.Set("ce-id", c.id)
	p.mu.Lock()
	p.repeats = append(p.repeats, repeat{v, v.session, time.Now()})
	p.mu.Unlock()
	p.again(ctx, c, m)
	return nil
}

// garbageLogins publishes logins for signed-in people with tokens never issued by the provider, and
// with another user's tokens.
func garbageLogins(ctx context.Context, x *strike) error {
	x.unfelt = true
	for i, v := range x.people.some(x.rand, x.count(6, 12)) {
		if !v.mu.TryLock() {
			continue // an erasure of the person may take minutes, and no other act would be done
		}
		if v.accepted && !v.erased && !v.unsure {
			tokens := publishers.Tokens{
				AccessToken:  fmt.Sprint("garbage-a-", x.rand.Uint64()),
				RefreshToken: fmt.Sprint("garbage-r-", x.rand.Uint64()),
				ExpiresIn:    x.world.Life,
			}
			if i%2 == 0 {
				good := v.provider.Login("mallory|" + v.provider.id)
				tokens.AccessToken, tokens.RefreshToken = good.Access, good.Refresh
			}
			x.people.give(context.WithoutCancel(ctx), v, x.people.apps[1], tokens, rejected)
		}
		v.mu.Unlock()
		if ctx.Err() != nil {
			break
		}
	}
	return nil
}

// signMostOut has one provider end 60 % of its users' sessions at once. The other users must be
// renewed in time.
func signMostOut(ctx context.Context, x *strike) error {
	x.unfelt = true
	x.provider = x.world.providers[[]string{graceful, strict}[x.rand.IntN(2)]]
	for _, v := range x.people.all {
		if v.provider != x.provider || x.rand.IntN(10) >= 6 || !v.mu.TryLock() {
			continue
		}
		x.people.end(v)
		v.mu.Unlock()
	}
	x.last(ctx, 2*x.world.Life, 3*x.world.Life)
	return nil
}
