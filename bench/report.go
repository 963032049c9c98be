package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
)

// report is the result of all measurements. With -o json, report is printed as it is. Durations are
// in milliseconds, sizes in bytes.
type report struct {
	Machine    machine      `json:"machine"`
	Users      int          `json:"users"` // of the throughput, memory and kill runs
	Throughput []throughput `json:"throughput,omitempty"`
	Latency    []latencyRow `json:"latency,omitempty"`
	Reads      *readsRow    `json:"reads,omitempty"`
	RSS        *rssRow      `json:"rss,omitempty"`
	Kills      []killRow    `json:"kill,omitempty"`
	Replay     *replayRow   `json:"replay,omitempty"`
	Steady     *steadyRow   `json:"steady,omitempty"`
	Scale      []scaleRow   `json:"scale,omitempty"`
}

// machine is the machine of the benchmark.
type machine struct {
	CPU      string    `json:"cpu"`
	Cores    int       `json:"cores"`
	Load     string    `json:"load"` // of the machine before it began
	Go       string    `json:"go"`
	Postgres string    `json:"postgres"`
	At       time.Time `json:"at"`
}

// throughput is a leg's median, by its rate.
type throughput struct {
	Leg      string    `json:"leg"`
	DelayMS  int64     `json:"delay_ms"`
	Exchange string    `json:"exchange"` // long or short
	Rate     float64   `json:"users_per_s"`
	Rates    []float64 `json:"all_users_per_s"`
	CPU      float64   `json:"cpu_s_per_1000"`
	Own      float64   `json:"own_cpu_s_per_1000"`
	Provider float64   `json:"provider_cpu_s_per_1000"`
	Database float64   `json:"database_cpu_s_per_1000"`
	NATS     float64   `json:"nats_cpu_s_per_1000"` // 0 where NATS is a part of renewd
	Peak     int64     `json:"peak_rss"`
	// Work is PostgreSQL's work for the run of the median.
	Work databaseWork `json:"postgres"`
}

func throughputRow(l leg, delay time.Duration, users int, all []sample) throughput {
	r := throughput{Leg: l.name, DelayMS: delay.Milliseconds(), Exchange: "short"}
	if l.long {
		r.Exchange = "long"
	}
	for _, s := range all {
		r.Rates = append(r.Rates, s.rate(users))
	}
	slices.SortFunc(all, func(a, b sample) int { return int(a.took - b.took) })
	s := all[len(all)/2]
	r.Rate, r.CPU, r.Own = s.rate(users), perThousand(s.cpu, users), perThousand(s.self, users)
	r.Provider, r.Database = perThousand(s.provider, users), perThousand(s.database, users)
	r.NATS, r.Peak, r.Work = perThousand(s.nats, users), s.peak, s.work
	return r
}

func (b *bench) machine(ctx context.Context) (m machine, err error) {
	m = machine{Cores: runtime.NumCPU(), Go: runtime.Version(), At: time.Now(), CPU: runtime.GOARCH}
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(raw)) {
			if text, ok := strings.CutPrefix(line, "model name"); ok {
				m.CPU = strings.TrimLeft(strings.TrimSpace(text), ": \t")
				break
			}
		}
	}
	if raw, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load = strings.Join(strings.Fields(string(raw))[:3], " ")
	}
	conn, err := pgx.Connect(ctx, b.server.URL("postgres"))
	if err != nil {
		return m, err
	}
	defer conn.Close(ctx)
	return m, conn.QueryRow(ctx, "SHOW server_version").Scan(&m.Postgres)
}

func (r report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s, %d cores, load %s before, %s, PostgreSQL %s, %s\n", r.Machine.CPU,
		r.Machine.Cores, r.Machine.Load, r.Machine.Go,
		r.Machine.Postgres, r.Machine.At.Format(time.DateOnly))
	r.printThroughput(w)
	r.printRest(w)
}

// verdict marks a figure that has a target.
func verdict(ok bool) string {
	if ok {
		return "met"
	}
	return "missed"
}

// printRest prints the results of the other runs, each beside its target.
func (r report) printRest(w io.Writer) {
	say := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	for _, x := range r.Latency {
		say("\nLatency, %d requests, 200 a second, want %s: p50 %.1f ms, p99 %.1f ms, at most "+
			"%.1f ms (p50 ≤ 6 ms, p99 ≤ 40 ms: %s)",
			x.Requests, x.Want, x.P50, x.P99, x.Max, verdict(x.P50 <= 6 && x.P99 <= 40))
	}
	if r.Reads != nil {
		r.Reads.print(say)
	}
	if x := r.RSS; x != nil {
		say("\nMemory of a worker without NATS, %d users at %.0f users/s: %d MB at most (≤ 160 "+
			"MB: %s); the NATS server %d MB", x.Users, x.Rate, x.Peak>>20,
			verdict(x.Peak <= 160<<20), x.NATS>>20)
	}
	for _, x := range r.Kills {
		target := verdict(x.LostMS <= 20 && x.Reuse == x.Lost)
		if x.GraceS > 0 {
			target = verdict(x.Lost == 0 && x.AllDone <= 30)
		}
		say("\nKilled at %.0f users/s, provider %d ms, %s: %d families lost = %.0f ms of work, "+
			"reuse %d, replays %d; after the restart ready in %.1f s, all done in %.1f s (%s)",
			x.Rate, x.DelayMS, x.provider(), x.Lost, x.LostMS, x.Reuse, x.Replays, x.Ready,
			x.AllDone, target)
	}
	if x := r.Replay; x != nil {
		say("\nReplay of %d events of %d users: one user p50 %.1f ms, p99 %.1f ms (p50 ≤ 50 ms: "+
			"%s); all %.0f events/s (≥ 200,000: %s)", x.Events, x.Users, x.P50, x.P99,
			verdict(x.P50 <= 50), x.Rate, verdict(x.Rate >= 200_000))
	}
	if x := r.Steady; x != nil {
		say("\nSteady, %d users each %.0f s: %.0f renewals/s, due to outcome p50 %.0f ms, p99 "+
			"%.0f ms, at most %.0f ms (p99 ≤ 2 s: %s); %d overdue, %d failed; %d MB after the "+
			"first period, %d MB at the end; %.2f cores, renewd %.2f",
			x.Users, x.PeriodS, x.Rate, x.P50, x.P99, x.Max, verdict(x.P99 <= 2000 && x.Late == 0),
			x.Late, x.Failed, x.MemoryA>>20, x.MemoryB>>20, x.Cores, x.CoresOwn)
	}
	r.printScale(w)
}

func (x *readsRow) print(say func(format string, args ...any)) {
	say("\nReads over HTTP, %d connections: %.0f reads/s (≥ 10,000: %s), where %.0f bare "+
		"answers/s are possible; CPU s/1,000: renewd %.3f, PostgreSQL %.3f, callers %.3f; %d rows "+
		"written (none: %s)",
		x.Callers, x.Rate, verdict(x.Rate >= 10_000), x.Bare, x.Own, x.Database, x.Caller,
		x.Rows, verdict(x.Rows == 0))
	say("\nReads at %d/s: p50 %.1f ms, p99 %.1f ms, at most %.1f ms (p99 ≤ 5 ms: %s)",
		x.At, x.P50, x.P99, x.Max, verdict(x.P99 <= 5))
	say("\n%d callers at once for one user whose token has ended: %d presentations (1: %s), "+
		"all answered after %.0f ms, one caller alone after %.0f ms (100 ms more at most: %s), "+
		"the crowd's bare answers after %.0f ms",
		x.Crowd, x.Exchanges, verdict(x.Exchanges == 1), x.All, x.One, verdict(x.All <= x.One+100),
		x.AllBare)
	say("\n%d idle listeners: %.1f KiB each (≤ 40 KiB: %s)",
		x.Listeners, x.Each/1024, verdict(x.Each <= 40<<10))
}

func (r report) printScale(w io.Writer) {
	if len(r.Scale) == 0 {
		return
	}
	fmt.Fprintln(w, "\nScale")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t,
		"grants\tlogins/s\tMB at rest\tB/grant\tNATS disk B/grant\tPostgreSQL B/grant\tidle % of "+
			"a core\tready s\tfirst renewal s\tCPU s/1,000\t")
	for _, x := range r.Scale {
		n := float64(x.Grants)
		fmt.Fprintf(t, "%d\t%.0f\t%d\t%.0f\t%.0f\t%.0f\t%.1f\t%.1f\t%.1f\t%.2f\t\n", x.Grants,
			x.Logins, x.Memory>>20, float64(x.Memory)/n, float64(x.NATSDisk)/n,
			float64(x.Database)/n, 100*x.Idle, x.Ready, x.Renewed, x.CPU)
	}
	_ = t.Flush()
}

func (r report) printThroughput(w io.Writer) {
	if len(r.Throughput) == 0 {
		return
	}
	fmt.Fprintf(w, "\nThroughput: %d users due at once; medians\n", r.Users)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t,
		"provider\texchange\tleg\tusers/s\tCPU "+
			"s/1,000\town\tprovider\tPostgreSQL\tNATS\t"+
			"commits/user\tWAL B/user\tpeak MB\tall runs\t")
	for _, x := range r.Throughput {
		var all []string
		for _, rate := range x.Rates {
			all = append(all, fmt.Sprintf("%.0f", rate))
		}
		fmt.Fprintf(t, "%d ms\t%s\t%s\t%.0f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.0f\t%d\t%s\t\n",
			x.DelayMS, x.Exchange, x.Leg, x.Rate, x.CPU, x.Own, x.Provider, x.Database, x.NATS,
			float64(x.Work.Commits)/float64(r.Users), float64(x.Work.WAL)/float64(r.Users),
			x.Peak>>20, strings.Join(all, " "))
	}
	_ = t.Flush()
	r.printRatios(w)
}

// printRatios holds renewd against the other legs with the same exchange and delay.
func (r report) printRatios(w io.Writer) {
	for _, x := range r.Throughput {
		if !strings.HasPrefix(x.Leg, "renewd") {
			continue
		}
		for _, y := range r.Throughput {
			if y.DelayMS == x.DelayMS && y.Exchange == x.Exchange && y.Leg != x.Leg &&
				!strings.HasPrefix(y.Leg, "http") {
				fmt.Fprintf(w, "provider %d ms, %s: %.2f × %s\n", x.DelayMS, x.Exchange,
					x.Rate/y.Rate, y.Leg)
			}
		}
	}
}
