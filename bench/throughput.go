package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/renewd/renewd/internal/standin"
)

// leg is a contestant, or a limit, of the throughput run.
type leg struct {
	name string
	long bool
	run  func(ctx context.Context, p *provider, o legOptions) (sample, error)
}

type legOptions struct {
	leg     string
	users   int
	workers int
	long    bool
	natsURL string // renewd's; empty: embedded
}

// sample is the result of a leg's run.
type sample struct {
	took time.Duration
	cpu  time.Duration // of all processes
	parts
	peak int64 // bytes, of the contestant's own process
	work databaseWork
}

// meter is the consumption before a run began.
type meter struct {
	parts
	work databaseWork
	at   string // the database
}

// parts is the processor time of each kind of process.
type parts struct {
	self, provider, database time.Duration
	nats                     time.Duration // of a server in a separate process
}

func (p parts) since(before parts) parts {
	return parts{
		self:     p.self - before.self,
		provider: p.provider - before.provider,
		database: p.database - before.database,
		nats:     p.nats - before.nats,
	}
}

func (p parts) sum() time.Duration { return p.self + p.provider + p.database + p.nats }

func (b *bench) legs() []leg {
	command := func(
		name string, more ...string,
	) func(context.Context, *provider, legOptions) (sample, error) {
		return func(ctx context.Context, p *provider, o legOptions) (sample, error) {
			return b.race(ctx, p, o, name, more...)
		}
	}
	return []leg{
		{"renewd-asked", true, b.raceRequests},
		{"renewd", true, b.raceRenewd},
		{"loop", true, command("loop")},
		{"river", true, command("river")},
		{"limit", true, command("limit")},
		{"limit-lean", true, command("limit", "--lean")},
		{"http", true, command("limit", "--no-store")},
		{"renewd-asked-short", false, b.raceRequests},
		{"renewd-short", false, b.raceRenewd},
		{"loop-short", false, command("loop")},
		{"river-short", false, command("river")},
		{"limit-short", false, command("limit")},
		{"limit-lean-short", false, command("limit", "--lean")},
		{"http-short", false, command("limit", "--no-store")},
		{"store", false, command("store")},
		{"jetstream", false, command("jetstream")},
	}
}

// throughput has every contestant renew all users, all due at once, again and again in turn.
func (b *bench) throughput(ctx context.Context) error {
	for _, delay := range b.Delay {
		samples := map[string][]sample{}
		var legs []leg
		for _, l := range b.legs() {
			if len(b.Only) == 0 || slices.Contains(b.Only, l.name) {
				legs = append(legs, l)
			}
		}
		for n := range b.Runs {
			for _, l := range legs {
				s, err := b.one(ctx, l, delay)
				if err != nil {
					return fmt.Errorf("%s: %w", l.name, err)
				}
				samples[l.name] = append(samples[l.name], s)
				b.say("run %d, provider %v, %-16s %6.0f users/s  %.2f CPU s per 1,000 (own %.2f, "+
					"provider %.2f, PostgreSQL %.2f, NATS %.2f)  peak %d MB", n+1, delay, l.name,
					s.rate(b.Users), perThousand(s.cpu, b.Users), perThousand(s.self, b.Users),
					perThousand(s.provider, b.Users), perThousand(s.database, b.Users),
					perThousand(s.nats, b.Users), s.peak>>20)
			}
		}
		for _, l := range legs {
			b.report.Throughput = append(b.report.Throughput,
				throughputRow(l, delay, b.Users, samples[l.name]))
		}
	}
	return nil
}

func (s sample) rate(users int) float64 { return float64(users) / s.took.Seconds() }

func perThousand(cpu time.Duration, users int) float64 {
	return cpu.Seconds() / float64(users) * 1000
}

func (b *bench) workers(delay time.Duration) int {
	switch {
	case b.Concurrency > 0:
		return b.Concurrency
	case delay > 0:
		return 256
	default:
		return 128
	}
}

func (b *bench) one(ctx context.Context, l leg, delay time.Duration) (sample, error) {
	if err := b.checkpoint(ctx); err != nil {
		return sample{}, err
	}
	p, err := b.startProvider(delay, 0, lifetime)
	if err != nil {
		return sample{}, err
	}
	defer p.kill()
	s, err := l.run(ctx, p, legOptions{
		leg:     l.name,
		users:   b.Users,
		workers: b.workers(delay),
		long:    l.long,
	})
	if err != nil {
		return s, err
	}
	stats, err := p.stats(ctx)
	if err != nil {
		return s, err
	}
	if l.name == "store" || l.name == "jetstream" {
		return s, nil // these two ask no provider
	}
	return s, truth(stats, b.Users, l.long)
}

// untried is how many calls of userinfo may be made once more. Under settings with which no user
// was renewed yet, renewd shows one token at a time, and puts off the other users it was handling.
const untried = 256

// truth compares the provider's calls with the task: each user renewed once, with these calls and
// no other.
func truth(s standin.Stats, users int, long bool) error {
	infos := users
	if long {
		infos = 2 * users
	}
	if s.Rotated != users || s.Reuse != 0 || s.Refused != 0 || s.UserInfos < infos ||
		s.UserInfos > infos+untried {
		return fmt.Errorf("the provider saw %+v, want each of %d users renewed once, and %d "+
			"times userinfo", s, users, infos)
	}
	return nil
}

// race runs a contestant of this program.
func (b *bench) race(
	ctx context.Context, p *provider, o legOptions, command string, more ...string,
) (sample, error) {
	database, err := b.seedPeer(ctx, p, o.users)
	if err != nil {
		return sample{}, err
	}
	peer, err := b.peer(command,
		peerOptions{
			Database: database,
			Provider: p.url,
			Users:    o.users,
			Workers:  o.workers,
			Long:     o.long,
		}, more...)
	if err != nil {
		return sample{}, err
	}
	defer peer.kill()
	if err := p.begin(ctx); err != nil {
		return sample{}, err
	}
	before, err := b.meter(ctx, peer, p, database)
	if err != nil {
		return sample{}, err
	}
	if err := peer.start(); err != nil {
		return sample{}, err
	}
	r, err := peer.result()
	if err != nil {
		return sample{}, err
	}
	return b.sample(ctx, r.Ended.Sub(r.Began), before, peer, p)
}

func (b *bench) cpu(contestant *process, p *provider) parts {
	return parts{
		self:     cpuOf(contestant.Pid()),
		provider: cpuOf(p.Pid()),
		database: cpuOf(b.server.Pid()),
	}
}

func (b *bench) meter(
	ctx context.Context, contestant *process, p *provider, database string,
) (meter, error) {
	work, err := b.work(ctx, database)
	return meter{b.cpu(contestant, p), work, database}, err
}

func (b *bench) sample(
	ctx context.Context, took time.Duration, before meter, contestant *process, p *provider,
) (sample, error) {
	used := b.cpu(contestant, p).since(before.parts)
	s := sample{took: took, cpu: used.sum(), parts: used, peak: memory(contestant.Pid(), "VmHWM")}
	// Backends report their work a second late.
	<-time.After(1200 * time.Millisecond)
	work, err := b.work(ctx, before.at)
	s.work = work.since(before.work)
	return s, err
}

// raceRenewd has one `renewd serve` with its embedded NATS server renew all users. Every timer is
// set to the same moment. The time until the last outcome is stored counts from that moment, or
// from the first call if the call was sooner.
func (b *bench) raceRenewd(ctx context.Context, p *provider, o legOptions) (sample, error) {
	d, err := b.newDaemon(ctx, daemonOptions{
		provider:    p,
		concurrency: o.workers,
		natsURL:     o.natsURL,
	})
	if err != nil {
		return sample{}, err
	}
	defer d.close()
	due, err := d.seed(ctx, p, plan{users: o.users, ago: time.Hour, life: lifetime, long: o.long})
	if err != nil {
		return sample{}, err
	}
	if err := p.begin(ctx); err != nil {
		return sample{}, err
	}
	<-time.After(time.Until(due.Add(-300 * time.Millisecond)))
	stop := d.profile(o.leg)
	before, err := b.meter(ctx, d.process, p, d.database)
	if err != nil {
		return sample{}, err
	}
	ended, err := d.await(ctx, uint64(o.users), 5*time.Minute)
	if err != nil {
		return sample{}, err
	}
	first, err := p.first(ctx)
	if err != nil {
		return sample{}, err
	}
	if first.Before(due) {
		due = first
	}
	stop()
	return b.sample(ctx, ended.Sub(due), before, d.process, p)
}

// await waits until OUTCOMES has this many outcomes.
func (d *daemon) await(
	ctx context.Context, outcomes uint64, limit time.Duration,
) (time.Time, error) {
	var ended time.Time
	err := eventually(limit, func() error {
		n, err := d.outcomes(ctx)
		ended = time.Now()
		if err == nil && n < outcomes {
			err = fmt.Errorf("%d of %d outcomes", n, outcomes)
		}
		return err
	})
	return ended, err
}
