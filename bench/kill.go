package main

import (
	"context"
	"fmt"
	"time"
)

// rss runs the full load with NATS in a separate process.
func (b *bench) rss(ctx context.Context) error {
	server, url, err := b.startNATS("nats")
	if err != nil {
		return err
	}
	defer server.kill()
	p, err := b.startProvider(0, 0, lifetime)
	if err != nil {
		return err
	}
	defer p.kill()
	s, err := b.raceRenewd(ctx, p, legOptions{
		leg:     "rss",
		users:   b.Users,
		workers: b.workers(0),
		natsURL: url,
	})
	if err != nil {
		return err
	}
	b.report.RSS = &rssRow{b.Users, s.rate(b.Users), s.peak, memory(server.Pid(), "VmHWM")}
	b.say("a worker without NATS: peak %d MB at %.0f users/s; the NATS server: %d MB", s.peak>>20,
		s.rate(b.Users), b.report.RSS.NATS>>20)
	return nil
}

// rssRow is the most memory of a worker.
type rssRow struct {
	Users int     `json:"users"`
	Rate  float64 `json:"users_per_s"`
	Peak  int64   `json:"worker_peak_rss"`
	NATS  int64   `json:"nats_peak_rss"`
}

// killRow is the result of a kill -9 in the middle of a drain.
type killRow struct {
	GraceS   float64 `json:"grace_s"`
	Deaf     bool    `json:"deaf"` // the provider acted on the dead process's requests too
	DelayMS  int64   `json:"delay_ms"`
	Rate     float64 `json:"users_per_s_before"`
	Lost     int     `json:"families_lost"`
	LostMS   float64 `json:"lost_ms_of_work"`
	Reuse    int     `json:"reuse"`
	Replays  int     `json:"replays"`
	Ready    float64 `json:"ready_s"`    // from the restart
	AllDone  float64 `json:"all_done_s"` // from the restart
	Outcomes uint64  `json:"outcomes"`
}

// kills kills renewd in the middle of a drain. The first provider takes no spent token, the second
// also acts on requests whose client is gone, and the third honours a spent token for a while.
func (b *bench) kills(ctx context.Context) error {
	for _, k := range []killRow{{}, {Deaf: true}, {GraceS: 30}} {
		for range b.Kills {
			r, err := b.killOnce(ctx, k, 20*time.Millisecond)
			if err != nil {
				return err
			}
			b.report.Kills = append(b.report.Kills, r)
			b.say("killed at %.0f users/s, %s: %d families lost (%.0f ms of work), %d reuse, %d "+
				"replays; ready %.1f s and all done %.1f s after the restart",
				r.Rate, r.provider(), r.Lost, r.LostMS, r.Reuse, r.Replays, r.Ready, r.AllDone)
		}
	}
	return nil
}

// provider describes the provider.
func (r killRow) provider() string {
	if r.Deaf {
		return "no grace, acts for clients that are gone"
	}
	return fmt.Sprintf("grace %.0f s", r.GraceS)
}

func (b *bench) killOnce(
	ctx context.Context, k killRow, delay time.Duration,
) (r killRow, err error) {
	var more []string
	if k.Deaf {
		more = append(more, "--deaf")
	}
	p, err := b.startProvider(delay, time.Duration(k.GraceS*float64(time.Second)), lifetime,
		more...)
	if err != nil {
		return r, err
	}
	defer p.kill()
	d, err := b.newDaemon(ctx, daemonOptions{provider: p, concurrency: b.workers(delay)})
	if err != nil {
		return r, err
	}
	defer d.close()
	if _, err := d.seed(ctx, p, plan{users: b.Users, ago: time.Hour, life: lifetime}); err != nil {
		return r, err
	}
	if err := p.begin(ctx); err != nil {
		return r, err
	}
	rotated := 0
	if err := eventually(3*time.Minute, func() error {
		s, err := p.stats(ctx)
		if rotated = s.Rotated; err == nil && rotated < b.Users/2 {
			err = fmt.Errorf("%d of %d rotated", rotated, b.Users)
		}
		return err
	}); err != nil {
		return r, err
	}
	first, err := p.first(ctx)
	if err != nil {
		return r, err
	}
	rate := float64(rotated) / time.Since(first).Seconds()
	d.kill()
	restarted := time.Now()
	if err := d.start(); err != nil {
		return r, err
	}
	r = killRow{
		GraceS:  k.GraceS,
		Deaf:    k.Deaf,
		DelayMS: delay.Milliseconds(),
		Rate:    rate,
		Ready:   time.Since(restarted).Seconds(),
	}
	err = d.afterKill(ctx, p, restarted, &r)
	return r, err
}

// afterKill waits until every user is renewed or lost.
func (d *daemon) afterKill(
	ctx context.Context, p *provider, restarted time.Time, r *killRow,
) error {
	return eventually(3*time.Minute, func() error {
		s, err := p.stats(ctx)
		if err != nil {
			return err
		}
		if r.Outcomes, err = d.outcomes(ctx); err != nil {
			return err
		}
		r.Lost, r.Reuse, r.Replays, r.AllDone = s.RevokedFamilies, s.Reuse, s.Replays,
			time.Since(restarted).Seconds()
		r.LostMS = float64(r.Lost) / r.Rate * 1000
		if left := d.b.Users - r.Lost - int(r.Outcomes); left > 0 {
			return fmt.Errorf("%d users are neither renewed nor lost", left)
		}
		return nil
	})
}
