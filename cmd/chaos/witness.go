package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/schema"
)

// outcome is an outcome heard by services, with the members needed by the audit.
type outcome struct {
	kind      schema.Type
	provider  string
	user      string
	id        string
	time      time.Time
	cause     schema.Cause
	beganAt   time.Time
	version   int64
	refreshed bool
	expiresAt time.Time
	profile   bool // the outcome shows the user's profile
	reason    string
	heard     time.Time
}

// witness hears every outcome while it happens, as a service would.
type witness struct {
	people *people

	mu    sync.Mutex
	heard []outcome
	ids   map[string]bool
	wrong []string // outcomes that told users to sign in without need
	wg    sync.WaitGroup
}

// listen follows the outcomes until ctx ends.
func (w *witness) listen(ctx context.Context) error {
	err := consumers.Subscribe(ctx, w.people.world.nc, consumers.Subscription{StartAll: true},
		func(ctx context.Context, e schema.Event) error {
			o, err := read(e)
			if err == nil {
				w.hear(ctx, o)
			}
			return err
		})
	w.wg.Wait()
	return err
}

// read takes an outcome out of an event.
func read(e schema.Event) (outcome, error) {
	o := outcome{kind: e.Type, provider: e.Provider, user: e.User, id: e.ID, time: e.Time}
	switch e.Type {
	case schema.UserSynced:
		d, err := schema.Data[schema.Synced](e)
		o.cause, o.beganAt, o.version, o.refreshed = d.Cause, d.BeganAt, d.Version, d.Refreshed
		o.expiresAt, o.profile = d.ExpiresAt, d.Profile != nil
		return o, err
	case schema.UserReauthRequired:
		d, err := schema.Data[schema.ReauthRequired](e)
		o.cause, o.beganAt, o.version, o.reason = d.Cause, d.BeganAt, d.Version, d.Reason
		return o, err
	case schema.UserRefreshFailed:
		d, err := schema.Data[schema.RefreshFailed](e)
		o.cause, o.beganAt, o.version, o.reason = d.Cause, d.BeganAt, d.Version, d.Reason
		return o, err
	case schema.UserSuspended:
		d, err := schema.Data[schema.Suspended](e)
		o.cause, o.beganAt, o.version, o.reason = d.Cause, d.BeganAt, d.Version, d.Reason
		return o, err
	case schema.UserForgotten:
		d, err := schema.Data[schema.Forgotten](e)
		o.cause, o.beganAt = d.Cause, d.BeganAt
		return o, err
	case schema.MessageRejected:
		d, err := schema.Data[schema.Rejected](e)
		o.cause, o.reason = d.Cause, d.Reason
		return o, err
	default:
		return o, nil
	}
}

func (w *witness) hear(ctx context.Context, o outcome) {
	o.heard = time.Now()
	w.mu.Lock()
	known := w.ids[o.id]
	w.ids[o.id] = true
	if !known {
		w.heard = append(w.heard, o)
	}
	w.mu.Unlock()
	x := w.people.byName[o.provider+"/"+o.user]
	if x == nil || known {
		return
	}
	w.wg.Go(func() { w.judge(ctx, x, o) })
}

// knows reports whether the outcome with this id was heard.
func (w *witness) knows(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ids[id]
}

// judge compares an outcome with the provider's truth at once, since the user may sign in again
// later.
func (w *witness) judge(ctx context.Context, x *person, o outcome) {
	x.mu.Lock()
	if x.accepted && (names(o, x.login) || !o.beganAt.Before(x.login.accepted)) {
		x.answered = true
	}
	told := o.kind == schema.UserReauthRequired
	if told && x.answered && o.beganAt.After(x.opened) {
		x.told++
		if why := x.mistaken(o, w.people.world.Life); why != "" {
			w.mu.Lock()
			w.wrong = append(w.wrong, fmt.Sprintf("%s/%s was told %s (%s) at %s, and %s: signed "+
				"in at %s",
				o.provider, o.user, o.kind, o.reason, o.time.Format(clockFormat), why,
				x.opened.Format(clockFormat)))
			w.mu.Unlock()
		}
	}
	x.mu.Unlock()
	if told {
		w.people.backAgain(ctx, x, o.time)
	}
}

// mistaken says why a person told to sign in need not do so. The result is empty if the person
// must. A person without a refresh token keeps the access token to its end, and is told once. The
// caller holds x.mu.
func (x *person) mistaken(o outcome, life time.Duration) string {
	const early = 1500 * time.Millisecond // tokens count whole seconds
	alive := x.provider.Live(x.name)
	switch {
	case !x.bare && alive:
		return "the provider honours the session"
	case x.bare && alive && o.reason != schema.ReasonNoRefreshToken:
		return "the provider honours the session, which has no refresh token"
	case x.bare && alive && time.Now().Before(x.opened.Add(life-early)):
		return "the access token was still good"
	case x.told > 1:
		return "for the second time"
	}
	return ""
}

// all returns the outcomes heard, once enough says so or a limit of 15 s is over.
func (w *witness) all(enough func(ids map[string]bool) bool) ([]outcome, map[string]bool) {
	for end := time.Now().Add(15 * time.Second); ; <-time.After(100 * time.Millisecond) {
		w.mu.Lock()
		heard, ids := slices.Clone(w.heard), maps.Clone(w.ids)
		w.mu.Unlock()
		if enough(ids) || time.Now().After(end) {
			return heard, ids
		}
	}
}

const clockFormat = "15:04:05.000"
