package stream_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

// dueNow is the grant's due message.
func dueNow(t *testing.T, js jetstream.JetStream, e *stream.Engine, k grant.Key) (grant.Work, uint64) {
	t.Helper()
	s, err := js.Stream(t.Context(), stream.Renewals)
	must(t, err)
	subject := "renewal.due." + k.Provider + "." + schema.EscapeUser(k.User)
	m, err := s.GetLastMsgForSubject(t.Context(), subject)
	must(t, err)
	_, w, err := e.ParseWork(subject, schema.Header(m.Header))
	must(t, err)
	return w, m.Sequence
}

func TestRequestsOfOneUserKeepTheStrongestWant(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	tokens, profile := command("tokens"), command("profile")
	tokens.Want, profile.MinValid = schema.WantTokens, time.Hour
	timer := work("timer")
	timer.Mark = grant.Mark{Version: 7, Token: "f"}
	must(t, e.Arm(ctx, alice, time.Now().Add(time.Hour), timer))
	must(t, e.Request(ctx, alice, tokens))
	first := tokens
	first.Mark = timer.Mark // waking takes the timer away, and what it knew
	if w, _ := dueNow(t, js, e, alice); w != first {
		t.Errorf("woken for %+v, want %+v", w, first)
	}
	must(t, e.Request(ctx, alice, profile))
	want := first
	want.Cause, want.MinValid = profile.Cause, time.Hour
	if w, _ := dueNow(t, js, e, alice); w != want || messages(t, js, stream.Renewals) != 1 {
		t.Errorf("woken for %+v, want %+v", w, want)
	}
}

func TestARequestThatWantsNoMoreKeepsThePlaceInTheQueue(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	first, second := command("first"), command("second")
	first.Want = schema.WantTokens
	must(t, e.Wake(ctx, alice, work("repair"))) // answers nobody
	must(t, e.Request(ctx, alice, first))
	w, place := dueNow(t, js, e, alice)
	if w != first {
		t.Errorf("a renewal that answers nobody took a request's place: %+v", w)
	}
	must(t, e.Request(ctx, alice, second))
	if w, at := dueNow(t, js, e, alice); w != first || at != place {
		t.Errorf("woken for %+v at %d, want %+v to stay at %d", w, at, first, place)
	}

	// In hand, its work has begun: what is asked now is another renewal.
	m := renewal(t, js)
	must(t, e.Request(ctx, alice, second))
	if w, at := dueNow(t, js, e, alice); w.Cause != second.Cause || at == place {
		t.Errorf("a request while another is in hand: %+v at %d", w, at)
	}
	ack(t, m)
	ack(t, renewal(t, js))
}

// A login is in the grant's record as well: a command that waits with it keeps the outcome's cause, whichever came first.
func TestALoginNeverTakesACommandsPlace(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	asked, login := command("asked"), command("login")
	login.Cause.Type = schema.UserLogin
	must(t, e.Request(ctx, alice, asked))
	must(t, e.Request(ctx, alice, login))
	if w, _ := dueNow(t, js, e, alice); w.Cause != asked.Cause {
		t.Errorf("a login took the place of a request: %+v", w)
	}
	must(t, e.Cancel(ctx, alice))
	must(t, e.Request(ctx, alice, login))
	must(t, e.Request(ctx, alice, asked))
	if w, _ := dueNow(t, js, e, alice); w.Cause != asked.Cause {
		t.Errorf("a request was taken for answered by a login: %+v", w)
	}
	must(t, e.Cancel(ctx, alice))
	must(t, e.Arm(ctx, alice, time.Now().Add(time.Hour), asked))
	must(t, e.Request(ctx, alice, login))
	if w, _ := dueNow(t, js, e, alice); w.Cause != asked.Cause {
		t.Errorf("a login took the place of a request that waited: %+v", w)
	}
}
