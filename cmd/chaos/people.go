package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// person is a user of an app. One thing at a time is done by or to a person.
type person struct {
	provider *standIn
	name     string

	mu       sync.Mutex
	opened   time.Time // when the newest session was
	login    command   // that told renewd of it
	accepted bool      // the login was
	answered bool      // an outcome speaks of it, or of later
	erased   bool
}

// command is something that renewd was asked for, and took.
type command struct {
	who      *person
	id       string
	kind     schema.Type
	sent     time.Time // first
	accepted time.Time // when the server's word of it came
}

// people are the apps and their users: they sign in, ask, leave, are erased, and come back.
type people struct {
	world   *world
	publish *publishers.Publisher
	say     func(string, ...any)

	all    []*person
	byName map[string]*person

	mu       sync.Mutex
	commands []command
	erasures int
	ended    int
	unerased int // erasures that the command gave up on
}

func newPeople(w *world, say func(string, ...any)) (*people, error) {
	p := &people{world: w, byName: map[string]*person{}, say: say}
	var err error
	if p.publish, err = publishers.New(w.nc, publishers.WithSource("/chaos")); err != nil {
		return nil, err
	}
	for _, s := range []*standIn{w.providers[graceful], w.providers[strict]} {
		for n := range w.Users {
			x := &person{provider: s, name: fmt.Sprintf("auth0|%05d@%s.example", n, s.id)}
			p.all = append(p.all, x)
			p.byName[s.id+"/"+x.name] = x
		}
	}
	return p, nil
}

// persist tries until renewd has taken the command, as an app that means it would. The id makes that safe.
func (p *people) persist(ctx context.Context, who *person, kind schema.Type, send func(context.Context, publishers.EventOption) (publishers.Receipt, error)) (command, bool) {
	c := command{who: who, id: fmt.Sprintf("%s-%d-%d", kind, time.Now().UnixNano(), rand.Uint32()), kind: kind, sent: time.Now()}
	for ctx.Err() == nil {
		try, cancel := context.WithTimeout(ctx, 3*time.Second)
		_, err := send(try, publishers.WithID(c.id))
		cancel()
		if err == nil {
			c.accepted = time.Now()
			p.mu.Lock()
			p.commands = append(p.commands, c)
			p.mu.Unlock()
			return c, true
		}
	}
	return c, false
}

// signIn opens a session and gives it to renewd. The caller holds x.mu.
func (p *people) signIn(ctx context.Context, x *person) {
	tokens := x.provider.Login(x.name)
	x.opened, x.accepted, x.answered, x.erased = time.Now(), false, false, false
	x.login, x.accepted = p.persist(ctx, x, schema.UserLogin, func(ctx context.Context, id publishers.EventOption) (publishers.Receipt, error) {
		return p.publish.Login(ctx, x.provider.id, x.name, publishers.Tokens{
			AccessToken: tokens.Access, RefreshToken: tokens.Refresh, ExpiresIn: time.Duration(tokens.ExpiresIn) * time.Second,
		}, id)
	})
}

func (p *people) request(ctx context.Context, x *person, r *rand.Rand) {
	due := schema.RefreshDue{Reason: "chaos"}
	if r.IntN(2) == 0 {
		due.Want = schema.WantTokens
	}
	p.persist(ctx, x, schema.UserRefreshDue, func(ctx context.Context, id publishers.EventOption) (publishers.Receipt, error) {
		return p.publish.RefreshDue(ctx, x.provider.id, x.name, due, id)
	})
}

// erase runs the command that an operator would. The caller holds x.mu.
func (p *people) erase(ctx context.Context, x *person) {
	var last []byte
	for range 60 {
		out, err := p.world.command(nil, "user", "forget", x.name, "--provider", x.provider.id, "--yes").CombinedOutput()
		if err == nil {
			x.erased = true
			p.mu.Lock()
			p.erasures++
			p.mu.Unlock()
			return
		}
		last = out
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	p.say("user forget gave up: %s", last)
	p.mu.Lock()
	p.unerased++
	p.mu.Unlock()
}

// everybodySignsIn is the start.
func (p *people) everybodySignsIn(ctx context.Context) {
	var wg sync.WaitGroup
	next := make(chan *person)
	for range 32 {
		wg.Go(func() {
			for x := range next {
				x.mu.Lock()
				p.signIn(ctx, x)
				x.mu.Unlock()
			}
		})
	}
	for _, x := range p.all {
		next <- x
	}
	close(next)
	wg.Wait()
}

// live does things to people until ctx ends, and returns when all of it is done.
func (p *people) live(ctx context.Context, seed uint64) {
	done := context.WithoutCancel(ctx) // what was begun is brought to an end
	var wg sync.WaitGroup
	every := func(stream uint64, pause time.Duration, do func(x *person, r *rand.Rand)) {
		r := rand.New(rand.NewPCG(seed, stream))
		wg.Go(func() {
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				x := p.all[r.IntN(len(p.all))]
				own := rand.New(rand.NewPCG(r.Uint64(), stream))
				wg.Go(func() {
					if x.mu.TryLock() {
						defer x.mu.Unlock()
						do(x, own)
					}
				})
			}
		})
	}
	every(1, 100*time.Millisecond, func(x *person, r *rand.Rand) { p.request(done, x, r) })
	every(2, time.Second, func(x *person, _ *rand.Rand) { p.signIn(done, x) })
	every(3, 700*time.Millisecond, func(x *person, r *rand.Rand) {
		x.provider.Edit(x.name, func(profile map[string]any) { profile["first_name"] = fmt.Sprint("Jane ", r.IntN(1000)) })
	})
	every(4, 4*time.Second, func(x *person, _ *rand.Rand) {
		x.provider.EndSessions(x.name)
		p.mu.Lock()
		p.ended++
		p.mu.Unlock()
	})
	every(5, 5*time.Second, func(x *person, r *rand.Rand) {
		if !x.accepted || x.erased {
			return
		}
		p.erase(done, x)
		if r.IntN(2) == 0 {
			p.signIn(done, x)
		}
	})
	wg.Wait()
}

// backAgain signs a person in who was told to, a moment later.
func (p *people) backAgain(ctx context.Context, x *person, told time.Time) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(time.Second):
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.opened.Before(told) && !x.erased {
		p.signIn(context.WithoutCancel(ctx), x)
	}
}
