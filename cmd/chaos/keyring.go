package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/schema"
)

// loss checks renewd at the end of a run after the keyring was lost for good. By docs/backup.md an
// operator publishes a new keyring in place of the old keyring, and then no record opens. A login
// must heal its user, and no unreadable record may block another user's.
type loss struct {
	*audit
	eyes     *witness
	from     time.Time
	heard    int       // outcomes before the loss
	healed   []*person // sign in again
	stranded []*person // do not sign in again; some are asked for
}

// keyringLost loses the keyring and checks the effects. The workers must not run.
func (a *audit) keyringLost(ctx context.Context, eyes *witness) error {
	l := &loss{audit: a, eyes: eyes}
	w := a.world
	if err := os.Rename(w.keysFile(), w.keysFile()+".lost"); err != nil {
		return err
	}
	for _, args := range [][]string{{"keys", "new"}, {"keys", "publish"}} {
		if _, err := output(w.command(nil, args...)); err != nil {
			return fmt.Errorf("keys %s: %w", args[1], err)
		}
	}
	eyes.mu.Lock()
	l.heard, l.from = len(eyes.heard), time.Now()
	wrong := len(eyes.wrong)
	eyes.mu.Unlock()
	for _, k := range w.workers {
		if err := k.start(); err != nil {
			return err
		}
	}
	if err := w.workersReady(ctx, time.Minute); err != nil {
		return err
	}
	if err := l.peopleAct(ctx); err != nil {
		return err
	}
	if err := l.look(ctx); err != nil {
		return err
	}
	c := a.count(keyringLost +
		": people told to sign in again whose session the provider still honours")
	eyes.mu.Lock()
	defer eyes.mu.Unlock()
	for _, text := range eyes.wrong[wrong:] {
		c.add("%s", text)
	}
	return nil
}

// peopleAct has half of all people sign in again, and apps ask for some of the other half.
func (l *loss) peopleAct(ctx context.Context) error {
	by, err := newApp(l.world, "/crm")
	if err != nil {
		return err
	}
	for i, x := range l.people.all {
		switch {
		case x.bare || x.erased || x.unsure || !x.accepted || !x.provider.Live(x.name):
		case i%2 == 0:
			l.healed = append(l.healed, x)
		default:
			l.stranded = append(l.stranded, x)
		}
	}
	l.people.eachOf(l.stranded[:len(l.stranded)/3], 8, func(x *person) {
		l.people.ask(ctx, x, by, newID(schema.UserRefreshDue), schema.RefreshDue{
			Want: schema.WantTokens,
		})
	})
	l.people.eachOf(l.healed, 8, func(x *person) { l.people.signIn(ctx, x, by) })
	return nil
}

// look waits as long as healing may take, then counts the remaining failures.
func (l *loss) look(ctx context.Context) error {
	store, closeStore, err := l.world.openStore(ctx)
	if err != nil {
		return err
	}
	defer closeStore()
	limit := 40*time.Second + 2*l.world.Life
	_ = eventually(ctx, limit, func() error { // remaining failures are counted below
		if n := len(l.unhealed(ctx, store)) + len(l.unrenewed()) + len(l.unanswered()); n > 0 {
			return fmt.Errorf("%d %w", n, errUnsettled)
		}
		return nil
	})
	l.emptyHands(ctx, keyringLost+": ")
	for _, c := range []struct {
		name string
		who  []string
	}{
		{"people whose login did not heal them", l.unhealed(ctx, store)},
		{"people who signed in and were not renewed after that", l.unrenewed()},
		{"accepted commands not answered", l.unanswered()},
		{"people told more than once that their record does not open", l.toldAgain()},
	} {
		count := l.count(keyringLost + ": " + c.name)
		for _, text := range c.who {
			count.add("%s", text)
		}
	}
	return nil // an orderly stop was checked before
}

// unhealed returns the users who signed in without a live grant of their new session.
func (l *loss) unhealed(ctx context.Context, s grant.Store) (who []string) {
	for _, x := range l.healed {
		g, err := s.Load(ctx, grant.Key{Provider: x.provider.id, User: x.name})
		if err != nil || g.Status != grant.Live || sessionOf(g.Pair.Refresh.Reveal()) != x.session {
			who = append(who, fmt.Sprintf("%s of %s: %v", x.name, x.provider.id, err))
		}
	}
	return who
}

// unrenewed returns the users who signed in and whose session had no token rotated yet.
func (l *loss) unrenewed() (who []string) {
	renewed := map[string]bool{}
	for id, p := range l.world.providers {
		for _, shown := range p.seen.list() {
			if shown.Verdict == standin.Renewed && shown.At.After(l.from) {
				renewed[fmt.Sprint(id, shown.Session)] = true
			}
		}
	}
	for _, x := range l.healed {
		if !renewed[fmt.Sprint(x.provider.id, x.session)] {
			who = append(who, x.name+" of "+x.provider.id)
		}
	}
	return who
}

// since returns the outcomes heard since the loss.
func (l *loss) since() []outcome {
	l.eyes.mu.Lock()
	defer l.eyes.mu.Unlock()
	return slices.Clone(l.eyes.heard[l.heard:])
}

func (l *loss) unanswered() (who []string) {
	l.people.mu.Lock()
	commands := slices.Clone(l.people.commands)
	l.people.mu.Unlock()
	commands = slices.DeleteFunc(commands, func(c command) bool {
		return c.accepted.Before(l.from)
	})
	s := l.replies(l.since(), commands)
	for _, c := range commands {
		if !s.answered(c) {
			who = append(who, fmt.Sprintf("%s of %s at %s", c.kind, c.who.name,
				c.accepted.Format(clockFormat)))
		}
	}
	return who
}

// toldAgain returns the users who did not sign in and of whom services heard several failures not
// caused by a request.
func (l *loss) toldAgain() (who []string) {
	stranded := map[string]int{}
	for _, x := range l.stranded {
		stranded[x.key()] = 0
	}
	for _, o := range l.since() {
		key := o.provider + "/" + o.user
		if _, ok := stranded[key]; ok && o.kind == schema.UserRefreshFailed &&
			o.cause.Type != schema.UserRefreshDue {
			if stranded[key]++; stranded[key] == 2 {
				who = append(who, key)
			}
		}
	}
	return who
}
