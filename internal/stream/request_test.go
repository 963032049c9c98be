package stream_test

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// askedNow is the message of the grant that a command made due.
func askedNow(
	t *testing.T, js jetstream.JetStream, e *stream.Engine, k grant.Key,
) (grant.Work, uint64) {
	t.Helper()
	s, err := js.Stream(t.Context(), topology.Renewals)
	must(t, err)
	subject := "renewal.due." + k.Provider + "." + schema.EscapeUser(k.User) + ".asked"
	m, err := s.GetLastMsgForSubject(t.Context(), subject)
	must(t, err)
	_, w, err := e.ParseWork(subject, schema.Header(m.Header))
	must(t, err)
	return w, m.Sequence
}

// doneForBoth takes the two renewals of alice that must be due, one for each of these causes, and
// sees that nothing is left.
func doneForBoth(t *testing.T, js jetstream.JetStream, e *stream.Engine, one, other string) {
	t.Helper()
	causes := map[string]bool{}
	for range 2 {
		m := renewal(t, js)
		k, w, err := e.ParseWork(m.Subject(), schema.Header(m.Headers()))
		if err != nil || k != alice {
			t.Fatalf("%s: %v, %v", m.Subject(), k, err)
		}
		causes[w.Cause.ID] = true
		ack(t, m)
	}
	if !causes[one] || !causes[other] {
		t.Errorf("renewals for %v, want both", causes)
	}
	if has, err := e.HasTimer(t.Context(), alice); has || err != nil {
		t.Errorf("HasTimer = %v, %v after all was done", has, err)
	}
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
	if w, _ := askedNow(t, js, e, alice); w != first {
		t.Errorf("woken for %+v, want %+v", w, first)
	}
	must(t, e.Request(ctx, alice, profile))
	want := first
	want.Cause, want.MinValid = profile.Cause, time.Hour
	if w, _ := askedNow(t, js, e, alice); w != want || messages(t, js, topology.Renewals) != 1 {
		t.Errorf("woken for %+v, want %+v", w, want)
	}
}

func TestARequestThatWantsNoMoreKeepsThePlaceInTheQueue(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	first, second := command("first"), command("second")
	first.Want = schema.WantTokens
	must(t, e.Request(ctx, alice, first))
	_, place := askedNow(t, js, e, alice)
	must(t, e.Request(ctx, alice, second))
	if w, at := askedNow(t, js, e, alice); w != first || at != place {
		t.Errorf("woken for %+v at %d, want %+v to stay at %d", w, at, first, place)
	}

	// A worker handles the message, so its work has begun: what is asked now is another renewal.
	m := renewal(t, js)
	must(t, e.Request(ctx, alice, second))
	if w, at := askedNow(t, js, e, alice); w.Cause != second.Cause || at == place {
		t.Errorf("a request while another is in hand: %+v at %d", w, at)
	}
	ack(t, m)
	ack(t, renewal(t, js))
}

// A login is in the grant's record as well: a command that waits with it keeps the outcome's cause,
// whichever came first.
// A server that was killed may have lost that a command was delivered and done. The command then
// seems to wait, and its outcome, which is out, answers no command that comes now.
func TestACommandThatWasAnsweredAnswersNoOther(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	first, second := command("first"), command("second")
	must(t, e.Request(ctx, alice, first))
	out := outcome(grant.OutcomeID(alice, first.Cause), schema.UserSynced)
	must(t, e.Publish(ctx, out))
	must(t, e.Request(ctx, alice, second))
	if w, _ := askedNow(t, js, e, alice); w != second {
		t.Errorf("what waits is %+v, want the second command", w)
	}
}

func TestALoginNeverTakesACommandsPlace(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	asked, login := command("asked"), command("login")
	login.Cause.Type = schema.UserLogin
	must(t, e.Request(ctx, alice, asked))
	must(t, e.Request(ctx, alice, login))
	if w, _ := askedNow(t, js, e, alice); w.Cause != asked.Cause {
		t.Errorf("a login took the place of a request: %+v", w)
	}
	must(t, e.Cancel(ctx, alice))
	must(t, e.Request(ctx, alice, login))
	must(t, e.Request(ctx, alice, asked))
	if w, _ := askedNow(t, js, e, alice); w.Cause != asked.Cause {
		t.Errorf("a request was taken for answered by a login: %+v", w)
	}
	must(t, e.Cancel(ctx, alice))
	must(t, e.Arm(ctx, alice, time.Now().Add(time.Hour), asked))
	must(t, e.Request(ctx, alice, login))
	if w, _ := askedNow(t, js, e, alice); w.Cause != asked.Cause {
		t.Errorf("a login took the place of a request that waited: %+v", w)
	}
}

// A worker that knew nothing of the request arms its timer, or servers that were killed fire an
// earlier timer again.
func TestATimerThatFiresLeavesACommandThatWaits(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	asked := command("asked")
	must(t, e.Request(ctx, alice, asked))
	must(t, e.Arm(ctx, alice, time.Now(), work("timer")))
	renewals, err := js.Stream(ctx, topology.Renewals)
	must(t, err)
	eventually(t, "the timer fires while the command waits", func() bool {
		_, err := renewals.GetLastMsgForSubject(ctx,
			"renewal.timer.propelauth."+schema.EscapeUser(alice.User))
		return errors.Is(err, jetstream.ErrMsgNotFound)
	})
	doneForBoth(t, js, e, "asked", "timer")
}

// A command that was put off and a command that waits for its turn are both done, also where
// servers that were killed fire the timer of the first again.
func TestACommandThatIsPutOffLeavesTheOneThatWaits(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	first, second := command("first"), command("second")
	first.Want, first.Deferrals = schema.WantTokens, 1
	must(t, e.Arm(ctx, alice, time.Now(), first))
	fired := renewal(t, js)
	ack(t, fired)
	must(t, e.Request(ctx, alice, second))
	again := &nats.Msg{Subject: fired.Subject(), Header: fired.Headers()}
	again.Header.Del(jetstream.SchedulerHeader)
	again.Header.Del("Nats-Schedule-Next")
	_, err := js.PublishMsg(ctx, again)
	must(t, err)
	doneForBoth(t, js, e, "first", "second")
}

// A command that was put off, and fired, is not lost to another command that is put off before the
// first is done.
func TestTwoCommandsThatArePutOffAreBothAnswered(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	first, second := command("first"), command("second")
	first.Want = schema.WantTokens
	login := command("login")
	login.Cause.Type, login.Cause.Time = schema.UserLogin, first.Cause.Time.Add(time.Second)
	for _, c := range []struct {
		putOff grant.Work
		names  string
	}{{second, "second"}, {login, "first"}} {
		must(t, e.Arm(ctx, alice, time.Now(), first))
		renewal(t, js) // its worker dies
		must(t, e.Arm(ctx, alice, time.Now(), c.putOff))
		m := renewal(t, js)
		_, w, err := e.ParseWork(m.Subject(), schema.Header(m.Headers()))
		must(t, err)
		if w.Cause.ID != c.names || w.Want != schema.WantTokens {
			t.Errorf("woken for %+v", w)
		}
		ack(t, m)
	}
}

// A user may be called like the end of a subject.
func TestAUserMayBeCalledAsked(t *testing.T) {
	js, e := fresh(t)
	for _, user := range []string{"asked", "later"} {
		k := grant.Key{Provider: alice.Provider, User: user}
		for _, waits := range []func() error{
			func() error { return e.Arm(t.Context(), k, time.Now(), work("timer")) },
			func() error { return e.Arm(t.Context(), k, time.Now(), command("later")) },
			func() error { return e.Request(t.Context(), k, command("asked")) },
		} {
			must(t, waits())
			m := renewal(t, js)
			got, _, err := e.ParseWork(m.Subject(), schema.Header(m.Headers()))
			if err != nil || got != k {
				t.Errorf("%s: %v, %v", m.Subject(), got, err)
			}
			ack(t, m)
		}
	}
}
