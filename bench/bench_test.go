package main

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/idp/idptest"
	"github.com/renewd/renewd/internal/pgtest"
)

// This process is a program of its own like any other: the test binary is asked to be what the
// benchmark starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1][0] != '-' {
		main()
		return
	}
	os.Exit(m.Run())
}

// Everything but the long runs works, on few users.
func TestSmall(t *testing.T) {
	if testing.Short() {
		t.Skip("starts everything")
	}
	c := runCommand{
		What: []string{"throughput", "latency", "rss", "replay"}, Users: 300, Runs: 1, Delay: []time.Duration{0}, Events: 2000, For: time.Second,
		Root: "..", Dir: t.TempDir(), Output: "text",
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
	good := idptest.Stats{Rotated: 10, UserInfos: 20}
	if err := truth(good, 10, true); err != nil {
		t.Error(err)
	}
	for _, bad := range []idptest.Stats{{Rotated: 9, UserInfos: 20}, {Rotated: 10, UserInfos: 10}, {Rotated: 10, UserInfos: 20, Reuse: 1}} {
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
	if p50, p99, most := quantile(all, 0.5), quantile(all, 0.99), quantile(all, 1); p50 != 51 || p99 != 100 || most != 100 {
		t.Errorf("%v %v %v", p50, p99, most)
	}
}
