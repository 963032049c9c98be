package main

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/renewd/renewd/schema"
)

// steadyOptions say how many renewals there are for how long.
type steadyOptions struct {
	Users  int           `default:"500000" help:"Users of the steady run."`
	Period time.Duration `default:"150s" help:"Each is renewed so often in the steady run."`
	For    time.Duration `default:"10m" help:"How long the steady run lasts."`
}

// steadyRow is how a steady load went.
type steadyRow struct {
	Users    int     `json:"users"`
	PeriodS  float64 `json:"period_s"`
	Rate     float64 `json:"renewals_per_s"`
	P50      float64 `json:"due_to_outcome_p50_ms"`
	P99      float64 `json:"due_to_outcome_p99_ms"`
	Max      float64 `json:"due_to_outcome_max_ms"`
	Late     int     `json:"users_overdue_at_end"`
	Failed   int     `json:"outcomes_that_are_no_success"`
	MemoryA  int64   `json:"rss_after_first_period"`
	MemoryB  int64   `json:"rss_at_end"`
	Cores    float64 `json:"cores_all_processes"`
	CoresOwn float64 `json:"cores_renewd"`
}

// steadyWatch sees every outcome of the steady run.
type steadyWatch struct {
	mu     sync.Mutex
	last   map[string]time.Time // newest outcome of each user
	late   histogram            // from due until the outcome arrives here
	failed int
}

// histogram counts durations by the millisecond. There are millions of durations, and the histogram
// is read while more come.
type histogram struct {
	counts map[int]int
	n      int
}

func (h *histogram) add(d time.Duration) {
	h.counts[int(d.Milliseconds())]++
	h.n++
}

// quantile is in milliseconds.
func (h *histogram) quantile(q float64) float64 {
	below := int(q * float64(h.n))
	for _, ms := range slices.Sorted(maps.Keys(h.counts)) {
		if below -= h.counts[ms]; below < 0 {
			return float64(ms)
		}
	}
	return h.most()
}

// most is the longest, in milliseconds.
func (h *histogram) most() float64 {
	longest := 0
	for ms := range h.counts {
		longest = max(longest, ms)
	}
	return float64(longest)
}

func (w *steadyWatch) see(e schema.Event) {
	now := time.Now()
	cause, err := causeOf(e.Data)
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.Type != schema.UserSynced || err != nil {
		w.failed++
		return
	}
	w.last[e.User] = now
	if cause.Type == schema.CauseTimer {
		w.late.add(now.Sub(cause.Time))
	}
}

// causeOf reads an outcome's data only as far as its cause. The listener shares the processor with
// the measured renewd, and the profile, which comes later, is most of an event.
func causeOf(data []byte) (cause schema.Cause, err error) {
	d := json.NewDecoder(bytes.NewReader(data))
	for {
		switch t, err := d.Token(); {
		case err != nil:
			return cause, err
		case t == "cause":
			return cause, d.Decode(&cause)
		}
	}
}

// overdue counts the users without an outcome for longer than limit.
func (w *steadyWatch) overdue(users int, limit time.Duration) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for i := range users {
		if time.Since(w.last[userName(i)]) > limit {
			n++
		}
	}
	return n
}

// steady has tokens run out evenly, and only timers at work.
func (b *bench) steady(ctx context.Context) error {
	defer debug.SetGCPercent(debug.SetGCPercent(equipmentGC))
	o := b.Steady
	life := o.Period * 4 / 3
	p, err := b.startProvider(0, 0, life)
	if err != nil {
		return err
	}
	defer p.kill()
	d, err := b.newDaemon(ctx, daemonOptions{provider: p, concurrency: 128, more: []string{
		"RENEWD_POLICY_MARGIN=" + (life - o.Period).String(), "RENEWD_POLICY_MARGIN_SHARE=0.25",
		"RENEWD_POLICY_JITTER_SHARE=0.001",
	}})
	if err != nil {
		return err
	}
	defer d.close()
	b.say("steady: seeding %d users", o.Users)
	due, err := d.seed(ctx, p, plan{users: o.Users, spread: o.Period, life: life})
	if err != nil {
		return err
	}
	b.say("steady: due from %s on", due.Format(time.TimeOnly))
	w := &steadyWatch{last: map[string]time.Time{}, late: histogram{counts: map[int]int{}}}
	stop, err := d.listen(ctx, w.see)
	if err != nil {
		return err
	}
	defer stop()
	if err := p.begin(ctx); err != nil {
		return err
	}
	<-time.After(time.Until(due))
	return b.watchSteady(ctx, d, p, w)
}

func (b *bench) watchSteady(ctx context.Context, d *daemon, p *provider, w *steadyWatch) error {
	o := b.Steady
	r := &steadyRow{Users: o.Users, PeriodS: o.Period.Seconds()}
	began, before := time.Now(), b.cpu(d.process, p)
	stopProfile := d.profile("steady")
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	end := time.After(o.For)
	for running := true; running; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-end:
			running = false
		case <-tick.C:
		}
		w.mu.Lock()
		r.P50, r.P99, r.Max = w.late.quantile(0.5), w.late.quantile(0.99), w.late.most()
		r.Failed, r.Rate = w.failed, float64(w.late.n)/time.Since(began).Seconds()
		w.mu.Unlock()
		r.MemoryB = memory(d.Pid(), "VmRSS")
		if r.MemoryA == 0 && time.Since(began) > o.Period {
			r.MemoryA = r.MemoryB
		}
		b.say("steady: %.0f renewals/s, due to outcome p50 %.0f ms, p99 %.0f ms, at most %.0f "+
			"ms; %d MB", r.Rate, r.P50, r.P99, r.Max, r.MemoryB>>20)
	}
	took, used := time.Since(began).Seconds(), b.cpu(d.process, p).since(before)
	stopProfile()
	r.CoresOwn, r.Cores = used.self.Seconds()/took, used.sum().Seconds()/took
	r.Late = w.overdue(o.Users, o.Period+10*time.Second)
	b.report.Steady = r
	return nil
}
