package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// sampler looks at the workers every few seconds, as monitoring would.
type sampler struct {
	world *world

	mu      sync.Mutex
	memory  []resident
	counted map[life]float64 // repairs of each life of each worker, as last seen
	repairs []repaired
}

// resident is how much memory a worker has at some time, in KiB.
type resident struct {
	at  time.Time
	kib int64
}

// life is a worker's process, from a start to its end.
type life struct {
	worker *worker
	pid    int
}

// repaired counts the repairs by a worker's reconciler between two looks.
type repaired struct {
	by   *worker
	n    float64
	from time.Time
	to   time.Time
}

const (
	memoryEvery = 10 * time.Second
	repairEvery = 2 * time.Second // a worker may be killed before the next look
)

func (s *sampler) run(ctx context.Context) {
	memory, repairs := time.NewTicker(memoryEvery), time.NewTicker(repairEvery)
	defer memory.Stop()
	defer repairs.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-memory.C:
			s.weigh()
		case <-repairs.C:
			now := time.Now()
			s.look(ctx, last)
			last = now
		}
	}
}

// weigh reads the memory of every running worker.
func (s *sampler) weigh() {
	for _, k := range s.world.workers {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", k.pid()))
		if err != nil {
			continue // dead just now
		}
		for line := range strings.Lines(string(raw)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
				if kib, err := strconv.ParseInt(f[1], 10, 64); err == nil {
					s.mu.Lock()
					s.memory = append(s.memory, resident{time.Now(), kib})
					s.mu.Unlock()
				}
			}
		}
	}
}

// repairsMetric matches renewd_reconciler_repaired_total with any labels.
var repairsMetric = regexp.MustCompile(
	`(?m)^renewd_reconciler_repaired\S*?_total(?:\{[^}]*\})? (\S+)$`,
)

// look reads how much every worker's reconciler has repaired.
func (s *sampler) look(ctx context.Context, last time.Time) {
	var wg sync.WaitGroup
	for _, k := range s.world.workers {
		wg.Go(func() {
			of := life{k, k.pid()}
			text, err := k.metrics(ctx)
			if err != nil {
				return // dead, or stalled
			}
			sum := 0.0
			for _, m := range repairsMetric.FindAllStringSubmatch(text, -1) {
				n, _ := strconv.ParseFloat(m[1], 64) // a figure, by its exposition format
				sum += n
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if n := sum - s.counted[of]; n > 0 {
				s.repairs = append(s.repairs, repaired{k, n, last, time.Now()})
			}
			s.counted[of] = sum
		})
	}
	wg.Wait()
}

func (k *worker) metrics(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+k.http+"/metrics", nil)
	if err != nil {
		return "", err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return string(body), err
}

// memory is the median of the workers' memory in each third of the run, in KiB.
type memory struct{ Start, Middle, End int64 }

// MarshalJSON names the unit.
func (m memory) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]int64{
		"start_kib":  m.Start,
		"middle_kib": m.Middle,
		"end_kib":    m.End,
	})
}

func (s *sampler) thirds() (m memory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.memory)
	for i, to := range []*int64{&m.Start, &m.Middle, &m.End} {
		*to = middle(s.memory[n*i/3 : n*(i+1)/3])
	}
	return m
}

func middle(all []resident) int64 {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.SortedFunc(slices.Values(all), func(a, b resident) int {
		return int(a.kib - b.kib)
	})
	return sorted[len(sorted)/2].kib
}

// walks is the longest time from the loss of a timer until the reconciler has set the timer again
// and the sampler has seen the repair.
const walks = 4 * time.Minute

// repairs checks that the reconciler had nothing to repair. A repair is excused if all NATS servers
// were killed at once shortly before, since messages acknowledged in their last moments may not be
// on any disk then. A server killed alone loses nothing.
func (a *audit) repairs(s *sampler) {
	c := a.count("grants that the reconciler had to repair, though the servers can have lost " +
		"nothing")
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.repairs {
		excused := slices.ContainsFunc(a.schedule.strikes, func(x *strike) bool {
			all := x.kind == allKilled ||
				len(a.world.nodes) == 1 && x.lane == serverLane && x.outage
			return all && x.from.Before(r.to) && x.over().Add(walks).After(r.from)
		})
		if !excused {
			for range int(r.n) {
				c.add("by %s between %s and %s", r.by.name, r.from.Format(clockFormat),
					r.to.Format(clockFormat))
			}
		}
	}
}
