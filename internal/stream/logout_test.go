package stream_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// logoutOf is the address of a user's logout, from a sender.
func logoutOf(k grant.Key) schema.Address {
	of := loginOf(k)
	of.Type = schema.UserLogout
	return of
}

// A logout that is put off comes back as a logout, beside a login that is put off: neither takes
// the other's place.
func TestACommandPutOffTakesNoOthersPlace(t *testing.T) {
	js, e := fresh(t)
	for _, user := range []string{"alice", "logout", "u.logout", "suspend", "u.resume"} {
		k := grant.Key{Provider: alice.Provider, User: user}
		at := time.Now()
		want := map[schema.Type]uint64{
			schema.UserLogin: 9, schema.UserLogout: 7, schema.UserSuspend: 5, schema.UserResume: 3,
		}
		for of, seq := range want {
			about := loginOf(k)
			about.Type = of
			must(t, e.DeferLogin(t.Context(), about, at, place(seq), int(seq), nil, []byte(of)))
		}
		for range len(want) {
			m := deferredLogin(t, js)
			of, position, deferrals, _, err := e.ParseDeferred(m.Subject(),
				schema.Header(m.Headers()))
			must(t, err)
			seq, known := want[of.Type]
			if !known || of.User != user || position != place(seq) || deferrals != int(seq) ||
				string(m.Data()) != string(of.Type) {
				t.Errorf("%s: got %+v, %+v, %d, %q", user, of, position, deferrals, m.Data())
			}
			delete(want, of.Type)
			ack(t, m)
		}
	}
}

// A logout waits for a login before it that is on its way, takes out a login that is put off, and
// leaves newer logins alone.
func TestALogoutWaitsForOlderLoginsOnTheirWay(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	waits := func(before uint64) bool {
		t.Helper()
		waits, err := e.OlderLoginWaits(ctx, alice, place(before))
		must(t, err)
		return waits
	}
	if waits(5) {
		t.Error("it waits for nothing")
	}
	_, err := js.Publish(ctx, schema.Subjects{}.Of(loginOf(alice)), nil)
	must(t, err)
	if !waits(2) || waits(1) {
		t.Error("of a login in LOGINS the place decides")
	}
	ack(t, next(t, js, topology.Logins, topology.ConsumerLogin, time.Minute))
	must(t, e.DeferLogin(ctx, loginOf(alice), time.Now().Add(time.Hour), place(3), 1, nil, nil))
	if waits(2) || messages(t, js, topology.Renewals) != 1 {
		t.Error("a newer login that is put off is touched")
	}
	if waits(4) || messages(t, js, topology.Renewals) != 0 {
		t.Error("an older login that is put off stays")
	}
	must(t, e.DeferLogin(ctx, loginOf(alice), time.Now(), place(3), 1, nil, nil))
	m := deferredLogin(t, js)
	if !waits(4) || waits(2) {
		t.Error("of a login that is due again the place decides")
	}
	ack(t, m)
}

// moving has something happen between the requests of an engine.
type moving struct {
	jetstream.JetStream
	before func() // each request
}

func (m moving) Conn() *nats.Conn {
	m.before()
	return m.JetStream.Conn()
}

// A login that is put off once more, while it is looked for, is found at its old place or at its
// new one, whatever its moves and whenever it makes them.
func TestALoginIsFoundWhileItIsPutOffAgain(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	for name, look := range map[string]func(*stream.Engine) (waits bool, err error){
		"any login": func(e *stream.Engine) (bool, error) { return e.LoginWaits(ctx, alice) },
		"an older login": func(e *stream.Engine) (bool, error) {
			return e.OlderLoginWaits(ctx, alice, place(9))
		},
	} {
		for wait, due := range map[time.Duration]bool{time.Hour: false, 0: true} {
			for at, met := 1, true; met; at++ {
				must(t, e.DeferLogin(ctx, loginOf(alice), time.Now(), place(3), 1, nil, nil))
				m := deferredLogin(t, js)
				asked := 0
				moved := engine(t, moving{js, func() {
					if asked++; asked != at+1 { // the first time is its start
						return
					}
					until := time.Now().Add(wait)
					must(t, e.DeferLogin(ctx, loginOf(alice), until, place(3), 2, nil, nil))
					if ack(t, m); due {
						m = deferredLogin(t, js)
					}
				}}, stream.Config{})
				waits, err := look(moved)
				must(t, err)
				if !waits && messages(t, js, topology.Renewals) > 0 {
					t.Errorf("%s, moved before request %d, again due %v: missed", name, at, due)
				}
				must(t, e.Erase(ctx, alice, place(9)))
				met = asked > at
			}
		}
	}
}

// Disarm takes the timer, and leaves what a command asked for, which must be answered.
func TestDisarmLeavesWhatWasAskedFor(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	must(t, e.Request(ctx, alice, command("asked")))
	must(t, e.Arm(ctx, alice, time.Now().Add(time.Hour), work("timer")))
	must(t, e.Disarm(ctx, alice))
	w, _ := askedNow(t, js, e, alice)
	if w.Cause.ID != "asked" || messages(t, js, topology.Renewals) != 1 {
		t.Errorf("left %+v", w)
	}
}

// Nothing is sealed in a logout, so no logout is looked at for its key.
func TestALogoutIsNoLoginThatWaits(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	for _, sender := range []string{"", "shop"} {
		for _, kind := range []schema.Type{
			schema.UserLogout, schema.UserSuspend, schema.UserResume,
		} {
			of := logoutOf(alice)
			of.Type, of.Sender = kind, sender
			_, err := js.Publish(ctx, schema.Subjects{}.Of(of), nil)
			must(t, err)
		}
	}
	must(t, e.DeferLogin(ctx, logoutOf(alice), time.Now().Add(time.Hour), place(3), 1, nil, nil))
	must(t, e.EachLogin(ctx, func(got schema.Event, err error) {
		t.Errorf("shown %+v, %v", got, err)
	}))
}
