package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// replayRow is how fast outcomes are read back.
type replayRow struct {
	Events    int     `json:"events"`
	Users     int     `json:"users"`
	Published float64 `json:"published_per_s"`
	P50       float64 `json:"one_user_p50_ms"`
	P99       float64 `json:"one_user_p99_ms"`
	Rate      float64 `json:"full_replay_per_s"`
}

// replay fills OUTCOMES, then reads single users' histories, and then everything.
func (b *bench) replay(ctx context.Context) error {
	server, url, err := b.startNATS("replay")
	if err != nil {
		return err
	}
	defer server.kill()
	nc, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()
	r := &replayRow{Events: b.Events, Users: max(1, b.Events/100)}
	began := time.Now()
	if err := fill(ctx, nc, r); err != nil {
		return err
	}
	r.Published = float64(r.Events) / time.Since(began).Seconds()
	b.say("%d outcomes of %d users published", r.Events, r.Users)
	if err := r.readUsers(ctx, nc); err != nil {
		return err
	}
	began, n := time.Now(), 0
	for _, err := range consumers.Replay(ctx, nc, consumers.Query{}) {
		if err != nil {
			return err
		}
		n++
	}
	if n != r.Events {
		return fmt.Errorf("%d of %d events came back", n, r.Events)
	}
	r.Rate = float64(n) / time.Since(began).Seconds()
	b.report.Replay = r
	b.say("replay: one user p50 %.1f ms, p99 %.1f ms; all %.0f events/s", r.P50, r.P99, r.Rate)
	return nil
}

// fill publishes outcomes of all users in turn.
func fill(ctx context.Context, nc *nats.Conn, r *replayRow) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	if _, err := topology.Ensure(
		ctx, js, topology.Topology{Providers: []topology.Provider{{ID: providerID}}}.WithDefaults(),
	); err != nil {
		return err
	}
	e, err := stream.NewEngine(js, stream.Config{})
	if err != nil {
		return err
	}
	return parallel(1000, r.Events, func(n int) error {
		cause := schema.Cause{ID: fmt.Sprint(n), Type: schema.CauseTimer, Source: "/bench"}
		return e.Publish(ctx, outcome(keyOf(n%r.Users), cause, int64(n), time.Now()))
	})
}

// readUsers reads the histories of some users.
func (r *replayRow) readUsers(ctx context.Context, nc *nats.Conn) error {
	var took []time.Duration
	for range 200 {
		began, n, user := time.Now(), 0, rand.IntN(r.Users)
		for _, err := range consumers.Replay(ctx, nc, consumers.Query{
			Provider: providerID,
			User:     userName(user),
		}) {
			if err != nil {
				return err
			}
			n++
		}
		if want := (r.Events - user + r.Users - 1) / r.Users; n != want {
			return fmt.Errorf("%d of %d events of one user came back", n, want)
		}
		took = append(took, time.Since(began))
	}
	r.P50, r.P99 = quantile(took, 0.5), quantile(took, 0.99)
	return nil
}
