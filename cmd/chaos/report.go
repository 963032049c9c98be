package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/renewd/renewd/internal/standin"
)

// report is the result of a run.
type report struct {
	Seed    uint64         `json:"seed"`
	Took    time.Duration  `json:"took_ns"`
	Users   int            `json:"users"`
	Store   string         `json:"store"`
	Nodes   int            `json:"nats_servers"`
	Workers int            `json:"workers"`
	Faults  map[string]int `json:"faults"`
	Facts   facts          `json:"facts"`
	// from the last fault's end until nothing was late
	Settled  time.Duration    `json:"settled_ns"`
	Recovery map[string]spans `json:"recovery"`
	Memory   memory           `json:"memory_of_a_worker"`
	Counts   []*count         `json:"counts"`
	Errors   []string         `json:"errors,omitempty"`
}

// spans are durations. The report shows only their median and the longest.
type spans []time.Duration

func (s spans) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{"n": len(s), "median_ns": s.median(), "max_ns": s.longest()})
}

func (s spans) median() time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[len(sorted)/2]
}

func (s spans) longest() time.Duration {
	if len(s) == 0 {
		return 0
	}
	return slices.Max(s)
}

// recovery measures how long after each outage renewals went on, and how long until a killed
// worker's renewals were taken over.
func (a *audit) recovery() map[string]spans {
	out := map[string]spans{}
	all := map[string][]time.Time{}
	for id, p := range a.world.providers {
		for _, seen := range p.seen.list() {
			if seen.Verdict == standin.Renewed {
				all[id] = append(all[id], seen.At)
			}
		}
		slices.SortFunc(all[id], time.Time.Compare)
	}
	for _, x := range a.schedule.strikes {
		if !x.outage {
			continue
		}
		name := x.kind + ", until the next renewal"
		for id, p := range a.world.providers {
			if x.provider != nil && x.provider != p {
				continue
			}
			took := after(all[id], x.healed, a.world.ended)
			if len(took) == 1 && !a.disturbed(p, x.healed, x.healed.Add(took[0]), x) {
				out[name] = append(out[name], took[0])
			}
		}
	}
	out["renewals in a killed worker's hand, until another had them"] = a.pickedUp()
	return out
}

// after is how long after t the next of times came, or empty if the run ended first.
func after(times []time.Time, t, end time.Time) spans {
	i, _ := slices.BinarySearchFunc(times, t, time.Time.Compare)
	if i == len(times) || t.IsZero() || times[i].After(end) {
		return nil
	}
	return spans{times[i].Sub(t)}
}

// pickedUp is how long until another worker presented or answered a token of the same user, where a
// killed worker had presented and not yet answered. It counts only takeovers without a fault of a
// server or the provider meanwhile.
func (a *audit) pickedUp() (took spans) {
	outcomes, taken := map[string][]time.Time{}, map[string][]time.Time{}
	for _, o := range a.heard {
		outcomes[o.provider+"/"+o.user] = append(outcomes[o.provider+"/"+o.user], o.time)
	}
	for key, times := range outcomes {
		slices.SortFunc(times, time.Time.Compare)
		taken[key] = slices.Clone(times)
	}
	for id, p := range a.world.providers {
		for _, shown := range p.seen.list() {
			if shown.by != nil { // not a dead worker's last call
				taken[id+"/"+shown.User] = append(taken[id+"/"+shown.User], shown.At)
			}
		}
	}
	for _, times := range taken {
		slices.SortFunc(times, time.Time.Compare)
	}
	for _, x := range a.schedule.strikes {
		if x.kind != killed && x.kind != rolledKill {
			continue
		}
		for id, p := range a.world.providers {
			for _, shown := range p.seen.list() {
				if shown.by != x.worker || shown.At.After(x.to) ||
					shown.At.Add(patience).Before(x.from) {
					continue
				}
				key := id + "/" + shown.User
				if first := after(outcomes[key], shown.At, a.world.ended); len(first) == 0 ||
					!shown.At.Add(first[0]).After(x.to) {
					continue // answered before the kill, or not in this run
				}
				next := after(taken[key], x.to, a.world.ended)
				if len(next) == 1 && !a.disturbed(p, x.to, x.to.Add(next[0]), nil) {
					took = append(took, next[0])
				}
			}
		}
	}
	return took
}

// patience is how late a renewal may be after its worker was killed.
const patience = 15 * time.Second

// disturbed reports whether a fault other than but put a server or this provider out of order
// between two moments.
func (a *audit) disturbed(p *standIn, from, to time.Time, but *strike) bool {
	return slices.ContainsFunc(a.schedule.strikes, func(x *strike) bool {
		return x != but && !x.unfelt && x.worker == nil && (x.provider == nil || x.provider == p) &&
			x.from.Before(to) && x.over().After(from)
	})
}

func (r *report) failed() (n int) {
	for _, c := range r.Counts {
		if c.Found > 0 {
			n++
		}
	}
	return n + len(r.Errors)
}

func (r *report) print(to io.Writer) {
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "\nseed %d, %v, %d users, %s, %d NATS servers, %d workers\n\n", r.Seed,
		r.Took.Round(time.Second), r.Users, r.Store, r.Nodes, r.Workers)
	fmt.Fprintf(w, "FAULTS\t\n")
	for _, name := range slices.Sorted(maps.Keys(r.Faults)) {
		fmt.Fprintf(w, "%s\t%d\n", name, r.Faults[name])
	}
	f := r.Facts
	fmt.Fprintf(w, "\nWORK\t\n")
	for _, row := range []struct {
		name string
		n    int
	}{
		{"refresh tokens presented", f.Presentations},
		{"renewals", f.Renewals},
		{"replays inside the grace window", f.Replays},
		{"commands accepted", f.Commands},
		{"of them logins", f.Logins},
		{"outcomes in the log", f.Outcomes},
		{"user.reauth_required", f.Reauth},
		{"users erased", f.Erasures},
		{"logins published again", f.Repeated},
		{"renewals answered in the last 0.75 s of a worker, or later", f.InFlight},
		{"pairs lost with it, provider without a grace window", f.LostWithWorker},
		{"pairs lost by the provider's own lost answers, no grace window", f.LostOnTheWay},
		{
			"pairs lost with a grace window that ended before things were calm for 12 s",
			f.LostInStorm,
		},
		{"access tokens read over HTTP", f.ReadHTTP},
		{"access tokens read over NATS", f.ReadNATS},
		{"reads told that the user has none", f.ReadRefused},
		{"reads told to ask again, or not answered", f.ReadUnanswered},
		{"outcomes that an app's webhook got, some of them twice", f.Brought},
		{"logins taken from an app's table", f.FromTable},
		{"suspensions", f.Suspended},
	} {
		fmt.Fprintf(w, "%s\t%d\n", row.name, row.n)
	}
	fmt.Fprintf(w, "\nRECOVERY\tmedian\tlongest\tof\n")
	for _, name := range slices.Sorted(maps.Keys(r.Recovery)) {
		s := r.Recovery[name]
		fmt.Fprintf(w, "%s\t%v\t%v\t%d\n", name, s.median().Round(10*time.Millisecond),
			s.longest().Round(10*time.Millisecond), len(s))
	}
	fmt.Fprintf(w, "all settled after the last fault\t%v\t\t\n", r.Settled.Round(time.Second))
	fmt.Fprintf(w, "\nMEMORY\tat the start\tin the middle\tat the end\n")
	fmt.Fprintf(w, "of a worker, median, MiB\t%d\t%d\t%d\n", r.Memory.Start>>10,
		r.Memory.Middle>>10, r.Memory.End>>10)
	fmt.Fprintf(w, "\nMUST NOT HAPPEN\tfound\n")
	for _, c := range r.Counts {
		fmt.Fprintf(w, "%s\t%d\n", c.Name, c.Found)
	}
	_ = w.Flush() // to a terminal or a buffer
	for _, c := range r.Counts {
		for _, one := range c.Cases {
			fmt.Fprintf(to, "%s: %s\n", c.Name, one)
		}
	}
	for _, e := range r.Errors {
		fmt.Fprintf(to, "error: %s\n", e)
	}
}
