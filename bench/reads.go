package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// readsOptions say how much is read.
type readsOptions struct {
	Callers   int `default:"64" help:"Connections that read access tokens in the reads run."`
	Rate      int `default:"1000" help:"Reads a second where it measures how long one takes."`
	Crowd     int `default:"10000" help:"Callers at once for one user whose token has ended."`
	Listeners int `default:"5000" help:"Callers who listen to outcomes that do not come."`
}

// readsRow is the cost of reading access tokens over HTTP, and of listening.
type readsRow struct {
	Callers  int     `json:"callers"`
	Rate     float64 `json:"reads_per_s"`
	Own      float64 `json:"own_cpu_s_per_1000"`
	Database float64 `json:"database_cpu_s_per_1000"`
	Caller   float64 `json:"caller_cpu_s_per_1000"`
	Rows     int64   `json:"rows_updated"` // meanwhile
	// Bare is the rate of answers to /livez for the same callers: HTTP alone.
	Bare float64 `json:"bare_answers_per_s"`

	At  int     `json:"at_reads_per_s"`
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`

	Crowd     int     `json:"crowd"`
	Exchanges int     `json:"crowd_presentations"`
	One       float64 `json:"one_caller_ms"`
	All       float64 `json:"crowd_ms"`      // until the last caller was answered
	AllBare   float64 `json:"crowd_bare_ms"` // the same crowd, for /livez

	Listeners int     `json:"listeners"`
	Each      float64 `json:"bytes_of_each_listener"`
}

// readClients are how many clients share the reads: each has its own limit of reads a second.
const readClients = 4

// crowdDelay is the provider's delay in the crowd's exchange.
const crowdDelay = 20 * time.Millisecond

// reads measures the most frequent work of services without NATS.
func (b *bench) reads(ctx context.Context) error {
	r := &readsRow{}
	type part = func(context.Context, *readsRow) error
	for _, measure := range []part{b.readFast, b.readAtOnce, b.listenIdly} {
		if err := measure(ctx, r); err != nil {
			return err
		}
	}
	b.report.Reads = r
	return nil
}

// door is renewd as its callers see it.
type door struct {
	*daemon
	secrets []string
}

// openDoor starts renewd with these grants, and makes its clients.
func (b *bench) openDoor(ctx context.Context, p *provider, grants plan) (*door, error) {
	d, err := b.newDaemon(ctx, daemonOptions{provider: p, concurrency: 64})
	if err != nil {
		return nil, err
	}
	door := &door{daemon: d}
	for n := range readClients {
		cmd := exec.CommandContext(ctx, b.renewd, "clients", "add", fmt.Sprint("caller-", n),
			"--may", "token,read", "--server", d.natsURL)
		var secret, words strings.Builder
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = d.dir, d.env, &secret, &words
		if err := cmd.Run(); err != nil {
			d.close()
			return nil, fmt.Errorf("clients add: %w: %s", err, words.String())
		}
		door.secrets = append(door.secrets, strings.TrimSpace(secret.String()))
	}
	if grants.users > 0 {
		if _, err := d.seed(ctx, p, grants); err != nil {
			d.close()
			return nil, err
		}
	}
	if err := p.begin(ctx); err != nil {
		d.close()
		return nil, err
	}
	return door, eventually(10*time.Second, func() error { // a client is known within moments
		for n := range readClients {
			c, err := door.dial(n)
			if err != nil {
				return err
			}
			status, err := c.ask(tokenPath(0, ""))
			c.close()
			if err != nil || status == 401 {
				return fmt.Errorf("client %d is not known yet: %d %w", n, status, err)
			}
		}
		return nil
	})
}

// tokenPath is where the token of a user is.
func tokenPath(n int, query string) string {
	return "/v1/users/" + providerID + "/" + userName(n) + "/token" + query
}

// readFast reads tokens that need no renewal, of any user: as fast as it goes, and at an even rate.
func (b *bench) readFast(ctx context.Context, r *readsRow) error {
	p, err := b.startProvider(0, 0, lifetime)
	if err != nil {
		return err
	}
	defer p.kill()
	inAnHour := time.Now().Add(time.Hour)
	d, err := b.openDoor(ctx, p, plan{users: b.Users, due: inAnHour, life: lifetime})
	if err != nil {
		return err
	}
	defer d.close()
	if err := b.checkpoint(ctx); err != nil {
		return err
	}
	before, err := b.work(ctx, d.database)
	if err != nil {
		return err
	}
	stop := d.profile("reads")
	if err := d.readAll(ctx, r); err != nil {
		return err
	}
	stop()
	if err := d.readEvenly(ctx, r); err != nil {
		return err
	}
	after, err := b.work(ctx, d.database)
	if err != nil {
		return err
	}
	r.Rows = after.since(before).Rows
	b.say("reads: %.0f/s, p99 %.1f ms at %d/s", r.Rate, r.P99, r.At)
	return nil
}

// callers opens connections, of each client in turn. Every connection has served a request already,
// like any connection a client keeps.
func (d *door) callers(n int) (all []*caller, err error) {
	all = make([]*caller, n)
	err = parallel(64, n, func(i int) (err error) {
		if all[i], err = d.dial(i); err == nil {
			_, err = all[i].ask("/livez")
		}
		return err
	})
	if err != nil {
		closeAll(all)
		return nil, fmt.Errorf("%d connections (see ulimit -n): %w", n, err)
	}
	return all, nil
}

// readAll reads without a pause.
func (d *door) readAll(ctx context.Context, r *readsRow) error {
	all, err := d.callers(d.b.Reads.Callers)
	if err != nil {
		return err
	}
	defer closeAll(all)
	if r.Bare, _, err = flood(ctx, all, min(d.b.For, bareFor), (*caller).alive); err != nil {
		return err
	}
	server := d.b.server.Pid()
	own, database, mine := cpuOf(d.Pid()), cpuOf(server), ownCPU()
	rate, n, err := flood(ctx, all, d.b.For, func(c *caller) error {
		return c.read(rand.IntN(d.b.Users), "")
	})
	r.Callers, r.Rate = len(all), rate
	r.Own = perThousand(cpuOf(d.Pid())-own, n)
	r.Database = perThousand(cpuOf(server)-database, n)
	r.Caller = perThousand(ownCPU()-mine, n)
	return err
}

// bareFor is how long bare answers are measured at most.
const bareFor = 10 * time.Second

// flood has all callers repeat do for this long, and returns how often per second, and how often in
// all.
func flood(
	ctx context.Context, all []*caller, long time.Duration, do func(*caller) error,
) (rate float64, n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, long)
	defer cancel()
	var done atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, len(all))
	began := time.Now()
	for i, c := range all {
		wg.Go(func() {
			for ctx.Err() == nil && errs[i] == nil {
				errs[i] = do(c)
				done.Add(1)
			}
		})
	}
	wg.Wait()
	n = int(done.Load())
	return float64(n) / time.Since(began).Seconds(), n, errors.Join(errs...)
}

// readEvenly reads at a rate, whether or not earlier reads were answered, and measures from when a
// read was to begin.
func (d *door) readEvenly(ctx context.Context, r *readsRow) error {
	rate := d.b.Reads.Rate
	n := int(d.b.For.Seconds() * float64(rate))
	all, err := d.callers(d.b.Reads.Callers)
	if err != nil {
		return err
	}
	defer closeAll(all)
	took, errs := make([]time.Duration, n), make([]error, len(all))
	var next atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for i, c := range all {
		wg.Go(func() {
			for errs[i] == nil {
				mine := int(next.Add(1)) - 1
				if mine >= n || ctx.Err() != nil {
					return
				}
				at := began.Add(time.Duration(mine) * time.Second / time.Duration(rate))
				<-time.After(time.Until(at))
				errs[i] = c.read(rand.IntN(d.b.Users), "")
				took[mine] = time.Since(at)
			}
		})
	}
	wg.Wait()
	r.At, r.P50, r.P99, r.Max = rate, quantile(took, 0.5), quantile(took, 0.99), quantile(took, 1)
	return errors.Join(append(errs, ctx.Err())...)
}

// readAtOnce has a single caller ask for a user whose token has ended, then a crowd at once for
// another such user.
func (b *bench) readAtOnce(ctx context.Context, r *readsRow) error {
	p, err := b.startProvider(crowdDelay, 0, lifetime)
	if err != nil {
		return err
	}
	defer p.kill()
	const users = 3
	ended := plan{
		users: users, due: time.Now().Add(time.Hour), ago: lifetime + time.Minute, life: lifetime,
	}
	d, err := b.openDoor(ctx, p, ended)
	if err != nil {
		return err
	}
	defer d.close()
	all, err := d.callers(b.Reads.Crowd)
	if err != nil {
		return err
	}
	defer closeAll(all)
	began := time.Now()
	if err := all[0].read(1, ""); err != nil {
		return err
	}
	r.One = time.Since(began).Seconds() * 1000
	before, err := p.stats(ctx)
	if err != nil {
		return err
	}
	if r.AllBare, err = atOnce(all, (*caller).alive); err != nil {
		return err
	}
	if r.All, err = atOnce(all, func(c *caller) error { return c.read(2, "") }); err != nil {
		return err
	}
	r.Crowd = len(all)
	after, err := p.stats(ctx)
	if err != nil {
		return err
	}
	r.Exchanges = after.Refreshes - before.Refreshes
	b.say("%d callers at once: %d presentations, %.0f ms, one caller %.0f ms, for a bare answer "+
		"%.0f ms", r.Crowd, r.Exchanges, r.All, r.One, r.AllBare)
	return nil
}

// atOnce has all callers do the same at once, and returns after how many milliseconds the last
// caller was answered.
func atOnce(all []*caller, do func(*caller) error) (ms float64, err error) {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	gun := make(chan struct{})
	for i, c := range all {
		wg.Go(func() {
			<-gun
			errs[i] = do(c)
		})
	}
	began := time.Now()
	close(gun)
	wg.Wait()
	return time.Since(began).Seconds() * 1000, errors.Join(errs...)
}

// listenIdly opens event streams without events, and takes renewd's memory before and after.
func (b *bench) listenIdly(ctx context.Context, r *readsRow) error {
	p, err := b.startProvider(0, 0, lifetime)
	if err != nil {
		return err
	}
	defer p.kill()
	d, err := b.openDoor(ctx, p, plan{})
	if err != nil {
		return err
	}
	defer d.close()
	before := memory(d.Pid(), "VmRSS")
	all, err := d.callers(b.Reads.Listeners)
	if err != nil {
		return err
	}
	defer closeAll(all)
	if err := parallel(64, len(all), func(i int) error { return all[i].listen() }); err != nil {
		return err
	}
	if err := d.atRest(ctx); err != nil {
		return err
	}
	r.Listeners = len(all)
	r.Each = float64(memory(d.Pid(), "VmRSS")-before) / float64(len(all))
	b.say("%d listeners, %.1f KiB each", r.Listeners, r.Each/1024)
	return nil
}

// beats is longer than two of a listener's signs of life.
const beats = 35 * time.Second

// atRest waits for the signs of life that listeners get while no event comes.
func (d *door) atRest(ctx context.Context) error {
	wait := min(beats, 2*d.b.For)
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
