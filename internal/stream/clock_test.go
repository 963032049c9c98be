package stream_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
)

// machine is a local clock whose two readings can be moved apart.
type machine struct{ wall, mono atomic.Int64 }

func (m *machine) clock() stream.Clock {
	began := time.Now()
	return stream.Clock{
		Wall: func() time.Time { return time.Now().Add(time.Duration(m.wall.Load())) },
		Mono: func() time.Duration { return time.Since(began) + time.Duration(m.mono.Load()) },
	}
}

func TestAStepOfTheWallClockChangesNothing(t *testing.T) {
	js, _ := fresh(t)
	var m machine
	e := engine(t, js, stream.Config{Clock: m.clock()})
	if err := e.Ready(); err == nil {
		t.Error("ready before the server's clock is known")
	}
	must(t, e.SyncClock(t.Context()))
	for _, step := range []time.Duration{
		0, 11 * time.Second, -11 * time.Second, time.Hour, -time.Hour,
	} {
		m.wall.Store(int64(step))
		if off := time.Until(e.Now()).Abs(); off > 5*time.Second {
			t.Errorf("a step of %v moved Now by %v", step, off)
		}
		if off := (e.Skew() + step).Abs(); off > 5*time.Second {
			t.Errorf("a step of %v: skew %v", step, e.Skew())
		}
		if err := e.Ready(); step.Abs() < stream.MaxSkew && err != nil {
			t.Errorf("a step of %v: not ready: %v", step, err)
		} else if step.Abs() > stream.MaxSkew &&
			(err == nil || !strings.Contains(err.Error(), "NTP")) {
			t.Errorf("a step of %v: Ready = %v", step, err)
		}
	}
}

func TestNowGoesOnByTheMonotonicClock(t *testing.T) {
	js, _ := fresh(t)
	var m machine
	e := engine(t, js, stream.Config{Clock: m.clock()})
	must(t, e.SyncClock(t.Context()))
	m.mono.Store(int64(20 * time.Second))
	m.wall.Store(int64(20 * time.Second))
	if on := time.Until(e.Now()); on < 19*time.Second || on > 25*time.Second {
		t.Errorf("20 s later Now is %v on", on)
	}
	m.mono.Store(int64(time.Hour))
	m.wall.Store(int64(time.Hour))
	if err := e.Ready(); err == nil || !strings.Contains(err.Error(), "measured") {
		t.Errorf("an hour after the last measurement Ready = %v", err)
	}
}

// A slow answer says little about now: its time would be off by up to half of the round trip.
func TestASlowMeasurementIsDropped(t *testing.T) {
	js, _ := fresh(t)
	var m machine
	slow := m.clock()
	mono := slow.Mono
	var late atomic.Bool
	slow.Mono = func() time.Duration { // each look at the clock takes 9 s
		if late.Load() {
			m.mono.Add(int64(9 * time.Second))
		}
		return mono()
	}
	e := engine(t, js, stream.Config{Clock: slow})
	late.Store(true)
	if err := e.SyncClock(t.Context()); err == nil || e.Ready() == nil {
		t.Errorf("an answer after 9 s was believed: %v, %v", err, e.Ready())
	}
	late.Store(false)
	must(t, e.SyncClock(t.Context()))
	before := time.Until(e.Now())
	late.Store(true)
	if err := e.SyncClock(t.Context()); err == nil {
		t.Error("an answer after 9 s was believed")
	}
	late.Store(false)
	if moved := time.Until(e.Now()) - before - 18*time.Second; moved.Abs() > 2*time.Second {
		t.Errorf("a measurement that was dropped moved Now by %v", moved)
	}
	must(t, e.Ready())
}

// After the machine has slept its two readings disagree: the server's clock is asked again at once.
func TestTheClockIsMeasuredAgainWhenTheLocalOnesDisagree(t *testing.T) {
	js, _ := fresh(t)
	var m machine
	e := engine(t, js, stream.Config{
		Clock:      m.clock(),
		ClockEvery: time.Hour,
		DepthEvery: time.Hour,
		WatchEvery: time.Millisecond,
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	eventually(t, "the clock is known", func() bool { return e.Ready() == nil })
	m.mono.Store(int64(-20 * time.Second)) // the monotonic clock slept
	eventually(t, "Now is right again", func() bool {
		return time.Until(e.Now()).Abs() < 5*time.Second
	})
	cancel()
	must(t, <-done)
}

// What was reported as not published is not stored when the connection is back.
func TestAFailedPublishIsNotStoredAfterAReconnect(t *testing.T) {
	dir := t.TempDir()
	s, err := natsd.Start(t.Context(), natsd.Config{StoreDir: dir, Listen: "127.0.0.1:0"})
	must(t, err)
	url := s.ClientURL()
	js := connect(t, s.Connect)
	ensure(t, js, wanted(t, ""))
	options := append(stream.ConnectOptions(),
		nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	nc, err := nats.Connect(url, options...)
	must(t, err)
	t.Cleanup(nc.Close)
	away, err := jetstream.New(nc)
	must(t, err)
	e := engine(t, away, stream.Config{})
	s.Shutdown()
	eventually(t, "the connection is lost", nc.IsReconnecting)
	brief, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := e.Wake(brief, alice, work("failed")); err == nil {
		t.Fatal("published without a server")
	}
	s, err = natsd.Start(t.Context(),
		natsd.Config{StoreDir: dir, Listen: strings.TrimPrefix(url, "nats://")})
	must(t, err)
	t.Cleanup(s.Shutdown)
	eventually(t, "the connection is back", nc.IsConnected)
	must(t, nc.Flush())
	if n := messages(t, connect(t, s.Connect), topology.Renewals); n != 0 {
		t.Errorf("%d messages stored that were reported as failed", n)
	}
}
