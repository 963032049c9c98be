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

// report is everything that was measured; -o json prints it as it is. Durations are in milliseconds, sizes in bytes.
type report struct {
	Machine    machine      `json:"machine"`
	Throughput []throughput `json:"throughput,omitempty"`
	Latency    []latencyRow `json:"latency,omitempty"`
	RSS        *rssRow      `json:"rss,omitempty"`
	Kills      []killRow    `json:"kill,omitempty"`
	Replay     *replayRow   `json:"replay,omitempty"`
	Steady     *steadyRow   `json:"steady,omitempty"`
	Scale      []scaleRow   `json:"scale,omitempty"`
}

// machine is what it was measured on.
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
	Peak     int64     `json:"peak_rss"`
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
	r.Provider, r.Database, r.Peak = perThousand(s.provider, users), perThousand(s.database, users), s.peak
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
	fmt.Fprintf(w, "\n%s, %d cores, load %s before, %s, PostgreSQL %s, %s\n", r.Machine.CPU, r.Machine.Cores, r.Machine.Load, r.Machine.Go,
		r.Machine.Postgres, r.Machine.At.Format(time.DateOnly))
	r.printThroughput(w)
}

func (r report) printThroughput(w io.Writer) {
	if len(r.Throughput) == 0 {
		return
	}
	fmt.Fprintln(w, "\nThroughput: all users due at once; medians")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "provider\texchange\tleg\tusers/s\tCPU s/1,000\town\tprovider\tPostgreSQL\tpeak MB\tall runs\t")
	for _, x := range r.Throughput {
		var all []string
		for _, rate := range x.Rates {
			all = append(all, fmt.Sprintf("%.0f", rate))
		}
		fmt.Fprintf(t, "%d ms\t%s\t%s\t%.0f\t%.2f\t%.2f\t%.2f\t%.2f\t%d\t%s\t\n", x.DelayMS, x.Exchange, x.Leg, x.Rate, x.CPU, x.Own, x.Provider, x.Database,
			x.Peak>>20, strings.Join(all, " "))
	}
	_ = t.Flush()
	r.printRatios(w)
}

// printRatios holds renewd against the others of the same exchange and delay.
func (r report) printRatios(w io.Writer) {
	for _, x := range r.Throughput {
		if !strings.HasPrefix(x.Leg, "renewd") {
			continue
		}
		for _, y := range r.Throughput {
			if y.DelayMS == x.DelayMS && y.Exchange == x.Exchange && y.Leg != x.Leg && !strings.HasPrefix(y.Leg, "http") {
				fmt.Fprintf(w, "provider %d ms, %s: %.2f × %s\n", x.DelayMS, x.Exchange, x.Rate/y.Rate, y.Leg)
			}
		}
	}
}
