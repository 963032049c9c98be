package natskv

import (
	"strconv"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// Time runs from the first sight of a revision, and starts again with the next revision.
func TestSightingsStartAnewWithEachRevision(t *testing.T) {
	var s sightings
	k, start := grant.Key{Provider: "p", User: "u"}, time.Now()
	for _, c := range []struct {
		revision uint64
		after    time.Duration
		want     time.Duration
	}{
		{7, 0, 0},
		{7, 9 * time.Second, 9 * time.Second},
		{8, 10 * time.Second, 0},
		{8, 12 * time.Second, 2 * time.Second},
		{9, time.Hour, 0},
	} {
		if got := s.seen(k, c.revision, start.Add(c.after)); got != c.want {
			t.Errorf("revision %d after %v: seen for %v, want %v", c.revision, c.after, got, c.want)
		}
	}
}

// However many claims there are, what is remembered stays bounded, and what is asked for again and
// again is not forgotten.
func TestSightingsAreBounded(t *testing.T) {
	var s sightings
	start := time.Now()
	kept := grant.Key{Provider: "p", User: "kept"}
	for n := range 3 * sightingsMost {
		s.seen(grant.Key{Provider: "p", User: strconv.Itoa(n)}, 1, start)
		if n%1000 == 0 && s.seen(kept, 1, start.Add(time.Duration(n))) != time.Duration(n) {
			t.Fatal("forgot what was asked for just now")
		}
	}
	if n := len(s.young) + len(s.old); n > 2*sightingsMost {
		t.Errorf("remembers %d", n)
	}
}
