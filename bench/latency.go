package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

const requestRate = 200 // a second

// latencyRow is how long requests waited for their outcome.
type latencyRow struct {
	Want     string  `json:"want"`
	Requests int     `json:"requests"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
	Max      float64 `json:"max_ms"`
}

// latency asks for renewals at an even rate. It measures from the publishing of each request until
// a subscriber has the outcome event.
func (b *bench) latency(ctx context.Context) error {
	requests := int(b.For.Seconds() * requestRate)
	p, err := b.startProvider(0, 0, lifetime)
	if err != nil {
		return err
	}
	defer p.kill()
	d, err := b.newDaemon(ctx, daemonOptions{provider: p, concurrency: 64})
	if err != nil {
		return err
	}
	defer d.close()
	if _, err := d.seed(ctx, p, plan{
		users: 2*requests + 1,
		due:   time.Now().Add(time.Hour),
		life:  lifetime,
	}); err != nil {
		return err
	}
	if err := p.begin(ctx); err != nil {
		return err
	}
	// Until one user was renewed under settings that nobody has tried, tokens are shown one at a
	// time, and the rest are put off for a second.
	if _, err := d.ask(ctx, schema.WantTokens, 2*requests, 1); err != nil {
		return fmt.Errorf("the first user: %w", err)
	}
	for i, want := range []string{schema.WantTokens, schema.WantProfile} {
		took, err := d.ask(ctx, want, i*requests, requests)
		if err != nil {
			return fmt.Errorf("want %s: %w", want, err)
		}
		r := latencyRow{
			Want:     want,
			Requests: requests,
			P50:      quantile(took, 0.5),
			P99:      quantile(took, 0.99),
			Max:      quantile(took, 1),
		}
		b.report.Latency = append(b.report.Latency, r)
		b.say("latency, want %s: p50 %.1f ms, p99 %.1f ms, at most %.1f ms", r.Want, r.P50, r.P99,
			r.Max)
	}
	return nil
}

// quantile is a quantile of all in ms. It sorts all.
func quantile(all []time.Duration, q float64) float64 {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[min(len(all)-1, int(q*float64(len(all))))].Seconds() * 1000
}

// ask publishes one request each for these users, and waits for all outcomes.
func (d *daemon) ask(
	ctx context.Context, want string, from, requests int,
) (took []time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.b.For+time.Minute)
	defer cancel()
	var mu sync.Mutex
	asked := map[string]time.Time{}
	stop, err := d.listen(ctx, func(e schema.Event) {
		now := time.Now()
		mu.Lock()
		defer mu.Unlock()
		if at, ok := asked[e.User]; ok {
			took = append(took, now.Sub(at))
			delete(asked, e.User)
		}
		if len(took) == requests {
			cancel()
		}
	})
	if err != nil {
		return nil, err
	}
	nc, err := nats.Connect(d.natsURL)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	publisher, err := publishers.New(nc, publishers.WithSource("/bench"))
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	tick := time.NewTicker(time.Second / requestRate)
	defer tick.Stop()
	for n := range requests {
		<-tick.C
		wg.Go(func() {
			name := userName(from + n)
			mu.Lock()
			asked[name] = time.Now()
			mu.Unlock()
			// a missing request is found below
			_, _ = publisher.RefreshDue(ctx, providerID, name, schema.RefreshDue{Want: want})
		})
	}
	wg.Wait()
	<-ctx.Done()
	stop()
	if len(took) < requests {
		return nil, fmt.Errorf("%d of %d requests were answered: %w", len(took), requests,
			context.Cause(ctx))
	}
	return took, nil
}

// listen hands on every outcome from now on, as to a service, until stop returns.
func (d *daemon) listen(ctx context.Context, handle func(schema.Event)) (stop func(), err error) {
	nc, err := nats.Connect(d.natsURL, nats.MaxReconnects(-1))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		err := consumers.Subscribe(ctx, nc, consumers.Subscription{},
			func(_ context.Context, e schema.Event) error {
				handle(e)
				return nil
			})
		if err != nil && ctx.Err() == nil {
			d.b.say("listening: %v", err)
		}
	})
	return func() { cancel(); wg.Wait(); nc.Close() }, nil
}
