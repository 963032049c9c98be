package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// scaleOptions say how many grants there are.
type scaleOptions struct {
	Sizes []int `default:"1000,100000,1000000" help:"Numbers of grants of the scale run."`
}

// scaleRow is the cost of this many grants.
type scaleRow struct {
	Grants   int     `json:"grants"`
	Logins   float64 `json:"logins_per_s"`
	Memory   int64   `json:"rss"` // of renewd with its embedded NATS, at rest
	NATSDisk int64   `json:"nats_disk"`
	Database int64   `json:"postgres_disk"`
	Idle     float64 `json:"idle_share_of_a_core"`
	Ready    float64 `json:"restart_to_ready_s"`
	Renewed  float64 `json:"restart_to_first_renewal_s"`
	CPU      float64 `json:"cpu_s_per_1000_renewals"`
}

const (
	scaleRound  = 1000 // users renewed at a time
	scaleRounds = 10
	scaleLogins = 5000
)

// scale measures what a grant costs, and whether a renewal costs the same among many.
func (b *bench) scale(ctx context.Context) error {
	for _, size := range b.Scale.Sizes {
		r, err := b.scaleOne(ctx, size)
		if err != nil {
			return fmt.Errorf("%d grants: %w", size, err)
		}
		b.report.Scale = append(b.report.Scale, r)
		b.say("%d grants: %+v", size, r)
	}
	return nil
}

func (b *bench) scaleOne(ctx context.Context, size int) (r scaleRow, err error) {
	p, err := b.startProvider(0, 0, lifetime)
	if err != nil {
		return r, err
	}
	defer p.kill()
	d, err := b.newDaemon(ctx, daemonOptions{provider: p, concurrency: 128})
	if err != nil {
		return r, err
	}
	defer d.close()
	r.Grants = size
	// The grants are due in hours, so renewd works only on request.
	plan := plan{
		users:  size,
		due:    time.Now().Add(6 * time.Hour),
		spread: time.Hour,
		life:   12 * time.Hour,
	}
	if _, err := d.seed(ctx, p, plan); err != nil {
		return r, err
	}
	if err := p.begin(ctx); err != nil {
		return r, err
	}
	for _, measure := range []func(context.Context, *provider, *scaleRow) error{
		d.scaleRest, d.scaleRenewals, d.scaleLogins, d.scaleRestart,
	} {
		if err := measure(ctx, p, &r); err != nil {
			return r, err
		}
	}
	return r, nil
}

// scaleRest restarts renewd and measures renewd at rest. After the restart, the memory is for
// holding grants and not for seeding.
func (d *daemon) scaleRest(ctx context.Context, _ *provider, r *scaleRow) error {
	if err := d.Stop(30 * time.Second); err != nil {
		return err
	}
	if err := d.start(); err != nil {
		return err
	}
	<-time.After(15 * time.Second)
	before, began := cpuOf(d.Pid()), time.Now()
	<-time.After(20 * time.Second)
	r.Idle = (cpuOf(d.Pid()) - before).Seconds() / time.Since(began).Seconds()
	r.Memory = memory(d.Pid(), "VmRSS")
	r.NATSDisk = diskOf(filepath.Join(d.dir, "nats"))
	conn, err := pgx.Connect(ctx, d.database)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return conn.QueryRow(ctx, "SELECT pg_total_relation_size('renewd.grants')").Scan(&r.Database)
}

// diskOf is the disk space of the files below a folder.
func diskOf(dir string) (sum int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil // the file is gone
		}
		if info, err := e.Info(); err == nil {
			if s, ok := info.Sys().(*syscall.Stat_t); ok {
				sum += s.Blocks * 512
			}
		}
		return nil
	})
	return sum
}

// scaleRenewals renews some users again and again. The rounds are of the same size whatever the
// number of grants.
func (d *daemon) scaleRenewals(ctx context.Context, p *provider, r *scaleRow) error {
	var sum time.Duration
	for round := range scaleRounds {
		seen, err := d.outcomes(ctx)
		if err != nil {
			return err
		}
		before := d.b.cpu(d.process, p)
		err = parallel(64, scaleRound, func(i int) error {
			n := (round*scaleRound + i) % r.Grants
			// the work that a timer or a request brings along
			work := grant.Work{
				Want: schema.WantTokens,
				Mark: grant.Mark{Version: 1},
				Cause: schema.Cause{
					ID:     fmt.Sprintf("%d-%d", round, n),
					Type:   schema.UserRefreshDue,
					Source: "/bench",
				},
			}
			return d.engine.Wake(ctx, keyOf(n), work)
		})
		if err != nil {
			return err
		}
		if _, err := d.await(ctx, seen+scaleRound, time.Minute); err != nil {
			return err
		}
		sum += d.b.cpu(d.process, p).since(before).sum()
		<-time.After(2500 * time.Millisecond) // sooner, a user's second renewal is left out
	}
	r.CPU = perThousand(sum, scaleRound*scaleRounds)
	return nil
}

// scaleLogins has more users sign in, as services report them.
func (d *daemon) scaleLogins(ctx context.Context, p *provider, r *scaleRow) error {
	publisher, err := publishers.New(d.nc, publishers.WithSource("/bench"))
	if err != nil {
		return err
	}
	seen, err := d.outcomes(ctx)
	if err != nil {
		return err
	}
	tokens, err := p.signIn(ctx, r.Grants, scaleLogins, 0)
	if err != nil {
		return err
	}
	began := time.Now()
	err = parallel(64, scaleLogins, func(i int) error {
		_, err := publisher.Login(ctx, providerID, userName(r.Grants+i), publishers.Tokens{
			AccessToken:  tokens[i][0],
			RefreshToken: tokens[i][1],
			ExpiresIn:    lifetime,
		})
		return err
	})
	if err != nil {
		return err
	}
	ended, err := d.await(ctx, seen+scaleLogins, 2*time.Minute)
	r.Logins = scaleLogins / ended.Sub(began).Seconds()
	return err
}

// scaleRestart kills renewd, lets work fall due, and restarts it.
func (d *daemon) scaleRestart(ctx context.Context, p *provider, r *scaleRow) error {
	due := time.Now().Add(time.Second)
	for n := range 100 {
		work := grant.Work{
			Want: schema.WantTokens,
			Cause: schema.Cause{
				ID:     fmt.Sprint("restart-", n),
				Type:   schema.UserRefreshDue,
				Source: "/bench",
			},
		}
		if err := d.engine.Arm(ctx, keyOf(n), due, work); err != nil {
			return err
		}
	}
	d.kill()
	before, err := p.stats(ctx)
	if err != nil {
		return err
	}
	<-time.After(time.Until(due))
	began := time.Now()
	started := make(chan error, 1)
	go func() {
		err := d.start()
		r.Ready = time.Since(began).Seconds()
		started <- err
	}()
	err = eventually(2*time.Minute, func() error {
		s, err := p.stats(ctx)
		if err == nil && s.Rotated == before.Rotated {
			err = fmt.Errorf("nothing renewed: %w", os.ErrDeadlineExceeded)
		}
		return err
	})
	r.Renewed = time.Since(began).Seconds()
	if late := <-started; late != nil {
		return late
	}
	return err
}
