package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/renewd/renewd/internal/idp/idptest"
	"github.com/renewd/renewd/publishers"
)

// person is a user of an app. One thing at a time is done by or to a person, but for what works is
// to meet.
type person struct {
	provider *standIn
	name     string
	bare     bool // its logins bring no refresh token

	mu       sync.Mutex
	opened   time.Time      // when the newest session was
	session  int            // its number at the provider
	tokens   idptest.Tokens // that it began with
	login    command        // that told renewd of it
	accepted bool           // the login was
	answered bool           // an outcome speaks of it, or of later
	told     int            // how often this login's user was told to sign in again
	erased   bool           // all of its logins came before an erasure
	unsure   bool           // whether the newest login came before an erasure
	erasing  [2]time.Time   // from when until when the last erasure took
}

func (x *person) key() string { return x.provider.id + "/" + x.name }

// people are the apps and their users: they sign in, ask, leave, are erased, and come back.
type people struct {
	world *world
	apps  []app
	tape  *tape
	say   func(string, ...any)
	gone  atomic.Bool // nobody without a refresh token signs in any more

	all    []*person
	byName map[string]*person

	mu       sync.Mutex
	commands []command
	opens    map[string]time.Time // when each session was opened, by provider and number
	repeats  []repeat
	swept    map[string]bool // ids of logins that an erasure took
	erasures int
	ended    int
	unerased int           // erasures that the command gave up on
	purging  time.Duration // from the start of the last erasure until it emptied LOGINS
}

// repeat is a login published again after its tokens were spent.
type repeat struct {
	who     *person
	session int
	at      time.Time
}

// oneInBare is how few people have no refresh token.
const oneInBare = 20

func newPeople(w *world, say func(string, ...any)) (*people, error) {
	p := &people{world: w, byName: map[string]*person{}, opens: map[string]time.Time{}, swept: map[string]bool{}, say: say, purging: 100 * time.Millisecond}
	var err error
	for _, source := range []string{"/crm", "/billing"} {
		a, err := newApp(w, source)
		if err != nil {
			return nil, err
		}
		p.apps = append(p.apps, a)
	}
	if p.tape, err = newTape(w.nc); err != nil {
		return nil, err
	}
	for _, s := range []*standIn{w.providers[graceful], w.providers[strict]} {
		for n := range w.Users {
			x := &person{provider: s, name: fmt.Sprintf("auth0|%05d@%s.example", n, s.id), bare: n%oneInBare == oneInBare-1}
			p.all = append(p.all, x)
			p.byName[x.key()] = x
		}
	}
	return p, nil
}

// open opens a session. The caller holds x.mu.
func (p *people) open(x *person) {
	x.tokens = x.provider.Login(x.name)
	x.opened, x.session = time.Now(), sessionOf(x.tokens.Refresh)
	x.accepted, x.answered, x.told, x.erased, x.unsure = false, false, 0, false, false
	p.mu.Lock()
	p.opens[fmt.Sprint(x.provider.id, x.session)] = x.opened
	p.mu.Unlock()
}

// sessionOf reads which session the stand-in made a refresh token for.
func sessionOf(refresh string) int {
	parts := strings.Split(refresh, ".")
	if len(parts) < 3 {
		return -1
	}
	n, err := strconv.Atoi(parts[1])
	if err != nil {
		return -1
	}
	return n
}

// signIn opens a session and gives it to renewd. The caller holds x.mu.
func (p *people) signIn(ctx context.Context, x *person, by app) {
	p.open(x)
	p.tell(ctx, x, by)
}

// tell gives renewd the session that was opened last. The caller holds x.mu.
func (p *people) tell(ctx context.Context, x *person, by app) {
	tokens := publishers.Tokens{
		AccessToken: x.tokens.Access, RefreshToken: x.tokens.Refresh, ExpiresIn: time.Duration(x.tokens.ExpiresIn) * time.Second,
	}
	if x.bare {
		tokens.RefreshToken = ""
	}
	x.login, x.accepted = p.give(ctx, x, by, tokens, "")
}

// eraseLimit is how long an erasure is tried again: in a storm each try may meet something that is
// down, and the next faults of users wait for this one.
const eraseLimit = 90 * time.Second

// erase runs the command that an operator would, and reports whether it said that it is done. The
// caller holds x.mu.
func (p *people) erase(ctx context.Context, x *person) bool {
	var last []byte
	x.erasing[0] = time.Now()
	for end := time.Now().Add(eraseLimit); time.Now().Before(end); {
		began := time.Now()
		out, err := p.world.command(nil, "user", "forget", x.name, "--provider", x.provider.id, "--yes").CombinedOutput()
		x.erasing[1] = time.Now()
		if err == nil {
			e, seen := p.tape.erasure(x.loginSubject(), began)
			p.mu.Lock()
			p.erasures++
			if seen {
				p.purging = e.at.Sub(began)
			}
			p.mu.Unlock()
			return true
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
	return false
}

// settleOrder says whether an erasure that ended just now took the newest login with it: by their
// order in LOGINS, which only the erasure itself knows if the two were under way together. The
// caller holds x.mu.
func (p *people) settleOrder(x *person) {
	e, seen := p.tape.erasure(x.loginSubject(), x.erasing[0])
	switch {
	case !x.accepted || x.login.accepted.Before(x.erasing[0]):
		x.erased = true
	case seen:
		x.erased = x.login.sequence < e.before
	default:
		x.unsure = true
	}
	if x.erased {
		p.mu.Lock()
		p.swept[x.login.id] = true
		p.mu.Unlock()
	}
}

// everybodySignsIn is the start.
func (p *people) everybodySignsIn(ctx context.Context) {
	p.eachOf(p.all, 32, func(x *person) { p.signIn(ctx, x, p.apps[0]) })
}

// eachOf does something to each of them, to so many at a time.
func (p *people) eachOf(all []*person, atOnce int, do func(x *person)) {
	var wg sync.WaitGroup
	next := make(chan *person)
	for range atOnce {
		wg.Go(func() {
			for x := range next {
				x.mu.Lock()
				do(x)
				x.mu.Unlock()
			}
		})
	}
	for _, x := range all {
		next <- x
	}
	close(next)
	wg.Wait()
}

// some draws n people, none of them twice.
func (p *people) some(r *rand.Rand, n int) []*person {
	var out []*person
	for _, i := range r.Perm(len(p.all))[:min(n, len(p.all))] {
		out = append(out, p.all[i])
	}
	return out
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
	every(2, time.Second, func(x *person, r *rand.Rand) { p.signIn(done, x, p.apps[r.IntN(len(p.apps))]) })
	every(3, 700*time.Millisecond, func(x *person, r *rand.Rand) {
		x.provider.Edit(x.name, func(profile map[string]any) { profile["first_name"] = fmt.Sprint("Jane ", r.IntN(1000)) })
	})
	every(4, 4*time.Second, func(x *person, _ *rand.Rand) { p.end(x) })
	every(5, 5*time.Second, func(x *person, r *rand.Rand) {
		if !x.accepted || x.erased {
			return
		}
		if !p.erase(done, x) {
			x.unsure = true
			return
		}
		if p.settleOrder(x); r.IntN(2) == 0 {
			p.signIn(done, x, p.apps[0])
		}
	})
	wg.Wait()
}

// end has the provider sign a person out everywhere. The caller holds x.mu.
func (p *people) end(x *person) {
	x.provider.EndSessions(x.name)
	p.mu.Lock()
	p.ended++
	p.mu.Unlock()
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
	if x.opened.Before(told) && !x.erased && !(x.bare && p.gone.Load()) {
		p.signIn(context.WithoutCancel(ctx), x, p.apps[0])
	}
}
