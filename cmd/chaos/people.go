package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/publishers"
)

// person is a user of an app. Acts by or on a person come in turn, except for acts meant to
// collide.
type person struct {
	provider *standIn
	name     string
	bare     bool // its logins bring no refresh token

	mu       sync.Mutex
	opened   time.Time      // when the newest session was opened
	session  int            // the session's number at the provider
	tokens   standin.Tokens // the session's first tokens
	login    command        // the session's login
	accepted bool           // renewd took the login
	answered bool           // an outcome speaks of the login, or of a later one
	told     int            // how often this login's user was told to sign in again
	erased   bool           // all of the person's logins came before an erasure
	unsure   bool           // whether the newest login came before an erasure
	erasing  [2]time.Time   // from when until when the last erasure took
	gaveUp   bool           // the last erasure gave up, and no login began since
	ended    []time.Time    // when the provider signed the person out everywhere
}

func (x *person) key() string { return x.provider.id + "/" + x.name }

// people are the apps and their users, who sign in, ask, leave, are erased, and come back.
type people struct {
	world *world
	apps  []app
	tape  *tape
	say   func(string, ...any)
	gone  atomic.Bool // no user without a refresh token signs in any more

	forget func(x *person) ([]byte, error) // runs the command to erase a person

	all    []*person
	byName map[string]*person

	mu          sync.Mutex
	commands    []command
	opens       map[string]time.Time // when each session was opened, by provider and number
	repeats     []repeat
	swept       map[string]bool // ids of logins taken by an erasure
	suspensions []suspension
	erasures    int
	ended       int
	outside     int           // logins taken from the app's table by the source
	untaken     []string      // people whose login the source did not take
	purging     time.Duration // from the last erasure's start until LOGINS was emptied
}

// repeat is a login published again after its tokens were spent.
type repeat struct {
	who     *person
	session int
	at      time.Time
}

// oneInBare means that each oneInBare-th person has no refresh token.
const oneInBare = 20

func newPeople(w *world, say func(string, ...any)) (*people, error) {
	p := &people{
		world:   w,
		byName:  map[string]*person{},
		opens:   map[string]time.Time{},
		swept:   map[string]bool{},
		say:     say,
		purging: 100 * time.Millisecond,
	}
	p.forget = func(x *person) ([]byte, error) {
		return w.command(nil, "user", "forget", x.name, "--provider", x.provider.id,
			"--yes").CombinedOutput()
	}
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
			x := &person{
				provider: s,
				name:     fmt.Sprintf("auth0|%05d@%s.example", n, s.id),
				bare:     n%oneInBare == oneInBare-1,
			}
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
	x.accepted, x.answered, x.told, x.erased, x.unsure, x.gaveUp = false, false, 0, false, false,
		false
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

// tell gives renewd the session opened last. The caller holds x.mu.
func (p *people) tell(ctx context.Context, x *person, by app) {
	tokens := publishers.Tokens{
		AccessToken:  x.tokens.Access,
		RefreshToken: x.tokens.Refresh,
		ExpiresIn:    time.Duration(x.tokens.ExpiresIn) * time.Second,
	}
	if x.bare {
		tokens.RefreshToken = ""
	}
	x.login, x.accepted = p.give(ctx, x, by, tokens, "")
}

// eraseLimit is how long an erasure is retried. In a storm each try may meet a server that is down,
// and the next faults of users wait for the erasure. eraseAgain repeats the erasure at the end.
const eraseLimit = 90 * time.Second

// erase runs an operator's command, and reports whether the command succeeded. The caller holds
// x.mu.
func (p *people) erase(ctx context.Context, x *person) bool {
	var last []byte
	// Otherwise this try continues the last erasure, which may have removed tokens without revoking
	// them.
	if !x.gaveUp {
		x.erasing[0] = time.Now()
	}
	for end := time.Now().Add(eraseLimit); time.Now().Before(end); {
		began := time.Now()
		out, err := p.forget(x)
		x.erasing[1] = time.Now()
		if err == nil {
			x.gaveUp = false
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
	x.gaveUp = true
	return false
}

// eraseAgain repeats each erasure that gave up, as the command asks an operator to do. Data removed
// by such an erasure until then have no outcome yet. A person who signed in since is left alone.
// All faults must be healed before. eraseAgain returns an error for each person whose erasure gives
// up here too.
func (p *people) eraseAgain(ctx context.Context) error {
	var aside []*person
	for _, x := range p.all {
		if x.mu.Lock(); x.gaveUp {
			aside = append(aside, x)
		}
		x.mu.Unlock()
	}
	if len(aside) > 0 {
		p.say("%d erasures gave up; they are run again", len(aside))
	}
	errs := make([]error, len(aside))
	p.eachOf(aside, 32, func(x *person) {
		if p.erase(ctx, x) {
			x.unsure = false
			p.settleOrder(x)
			return
		}
		errs[slices.Index(aside,
			x)] = fmt.Errorf("user forget gave up on %s while nothing was down", x.name)
	})
	return errors.Join(errs...)
}

// settleOrder records whether an erasure that ended just now removed the newest login, by their
// order in LOGINS. If the erasure and the login were under way together, only the erasure itself
// knows their order. The caller holds x.mu.
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

// everybodySignsIn has all people sign in, which is the start of a run.
func (p *people) everybodySignsIn(ctx context.Context) {
	p.eachOf(p.all, 32, func(x *person) { p.signIn(ctx, x, p.apps[0]) })
}

// eachOf calls do for each person, for so many at a time.
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

// some draws n different people.
func (p *people) some(r *rand.Rand, n int) []*person {
	var out []*person
	for _, i := range r.Perm(len(p.all))[:min(n, len(p.all))] {
		out = append(out, p.all[i])
	}
	return out
}

// live has people act until ctx ends, and returns when all acts begun are done.
func (p *people) live(ctx context.Context, seed uint64) {
	done := context.WithoutCancel(ctx) // an act begun is finished
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
	every(2, time.Second, func(x *person, r *rand.Rand) {
		if p.world.outside.mayLogIn(x) && r.IntN(2) == 0 {
			p.signInOutside(done, x)
			return
		}
		p.signIn(done, x, p.apps[r.IntN(len(p.apps))])
	})
	every(3, 700*time.Millisecond, func(x *person, r *rand.Rand) {
		x.provider.Edit(x.name, func(profile map[string]any) {
			profile["first_name"] = fmt.Sprint("Jane ", r.IntN(1000))
		})
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
	x.ended = append(x.ended, time.Now())
	p.mu.Lock()
	p.ended++
	p.mu.Unlock()
}

// backAgain signs a person in a moment after the person was told to sign in.
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
