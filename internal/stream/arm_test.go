package stream_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// A has saved its pair and waits for the profile; request r1 is put off meanwhile; A ends and arms
// its next timer.
func TestATimerNeverErasesAWaitingCommand(t *testing.T) {
	js, e := fresh(t)
	armAfterACommand(t, js, e, time.Now().Add(2*time.Second))
}

func TestATimerNeverErasesAWaitingCommandOnThreeNodes(t *testing.T) {
	js, e := freshOnThreeNodes(t)
	armAtOnce(t, js, e)
	armAfterACommand(t, js, e, time.Now().Add(2*time.Second))
}

func armAfterACommand(t *testing.T, js jetstream.JetStream, e *stream.Engine, at time.Time) {
	t.Helper()
	ctx := t.Context()
	r1, a := command("r1"), work("a")
	r1.Want, r1.Mark = schema.WantTokens, grant.Mark{Version: 7, Token: "f"}
	a.Mark = grant.Mark{Version: 8, Token: "g"}
	must(t, e.Arm(ctx, alice, at, r1))
	must(t, e.Arm(ctx, alice, at.Add(24*time.Minute), a))
	if n := messages(t, js, topology.Renewals); n != 1 {
		t.Errorf("%d timers", n)
	}
	m := renewal(t, js)
	_, w, err := e.ParseWork(m.Subject(), schema.Header(m.Headers()))
	if want := (grant.Work{Cause: r1.Cause, Want: r1.Want, Mark: a.Mark}); err != nil || w != want {
		t.Errorf("fired %+v, %v; want %+v", w, err, want)
	}
	ack(t, m)
}

// armAtOnce has many workers arm one timer at the same time, commands and timers, the earliest one
// a timer's.
func armAtOnce(t *testing.T, js jetstream.JetStream, e *stream.Engine) {
	t.Helper()
	at := time.Now().Add(time.Hour).Truncate(time.Second).UTC()
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			w, when := work(fmt.Sprint("t", i)), at.Add(time.Duration(i)*time.Minute)
			if i%4 == 3 {
				w = command(fmt.Sprint("r", i))
				w.MinValid = time.Duration(i) * time.Second
			}
			err := e.Arm(t.Context(), grant.Key{Provider: alice.Provider, User: "crowd"}, when, w)
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	s, err := js.Stream(t.Context(), topology.Renewals)
	must(t, err)
	m, err := s.GetLastMsgForSubject(t.Context(), "renewal.timer.propelauth.crowd")
	must(t, err)
	_, w, err := e.ParseWork("renewal.due.propelauth.crowd", schema.Header(m.Header))
	must(t, err)
	due := "@at " + at.Format(time.RFC3339Nano)
	if m.Header.Get(jetstream.ScheduleHeader) != due || !grant.IsCommand(w.Cause) ||
		w.MinValid != 11*time.Second {
		t.Errorf("armed %+v at %s, want a command %s with the strongest want",
			w, m.Header.Get(jetstream.ScheduleHeader), due)
	}
	must(t, e.Cancel(t.Context(), grant.Key{Provider: alice.Provider, User: "crowd"}))
}

func TestManyWorkersArmOneTimer(t *testing.T) {
	js, e := fresh(t)
	armAtOnce(t, js, e)
}

// What the engine cannot read on a timer's subject is not the engine's: it is replaced.
func TestArmReplacesAForeignMessage(t *testing.T) {
	js, e := fresh(t)
	_, err := js.Publish(t.Context(), "renewal.timer.propelauth."+schema.EscapeUser(alice.User),
		[]byte("?"))
	must(t, err)
	must(t, e.Arm(t.Context(), alice, time.Now(), work("ours")))
	m := renewal(t, js)
	if _, w, err := e.ParseWork(m.Subject(), schema.Header(m.Headers())); err != nil ||
		w.Cause.ID != "ours" {
		t.Errorf("fired %+v, %v", w, err)
	}
	ack(t, m)
}
