package main

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/testkit/pgtest"
)

// TestMain lets the test binary act as the programs that the benchmark starts as processes.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1][0] != '-' {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestSmall runs everything except the long runs, on few users.
func TestSmall(t *testing.T) {
	if testing.Short() {
		t.Skip("starts everything")
	}
	c := runCommand{
		What:   []string{"throughput", "latency", "reads", "rss", "replay"},
		Users:  300,
		Runs:   1,
		Delay:  []time.Duration{0},
		Events: 2000,
		For:    time.Second,
		Reads:  readsOptions{Callers: 8, Rate: 100, Crowd: 50, Listeners: 20},
		Root:   "..",
		Dir:    t.TempDir(),
		Output: "text",
	}
	if err := c.Run(t.Context()); errors.Is(err, pgtest.ErrMissing) && os.Getenv("CI") == "" {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
}

func TestProcessorTimeCountsDescendants(t *testing.T) {
	for began := time.Now(); time.Since(began) < 50*time.Millisecond; {
	}
	if own := cpuOf(os.Getpid()); own < 20*time.Millisecond {
		t.Errorf("%v used", own)
	}
	if all, own := cpuOf(os.Getppid()), cpuOf(os.Getpid()); all < own {
		t.Errorf("parent %v, own %v", all, own)
	}
	if memory(os.Getpid(), "VmHWM") < 1<<20 || memory(os.Getpid(), "VmRSS") < 1<<20 {
		t.Error("no memory used")
	}
}

func TestTruth(t *testing.T) {
	good := standin.Stats{Rotated: 10, UserInfos: 20}
	if err := truth(good, 10, true); err != nil {
		t.Error(err)
	}
	for _, bad := range []standin.Stats{
		{Rotated: 9, UserInfos: 20},
		{Rotated: 10, UserInfos: 10},
		{Rotated: 10, UserInfos: 20, Reuse: 1},
	} {
		if truth(bad, 10, true) == nil {
			t.Errorf("%+v passes", bad)
		}
	}
}

func TestQuantile(t *testing.T) {
	var all []time.Duration
	for n := range 100 {
		all = append(all, time.Duration(n+1)*time.Millisecond)
	}
	slices.Reverse(all)
	if p50, p99, most := quantile(all, 0.5), quantile(all, 0.99),
		quantile(all, 1); p50 != 51 || p99 != 100 || most != 100 {
		t.Errorf("%v %v %v", p50, p99, most)
	}
}
