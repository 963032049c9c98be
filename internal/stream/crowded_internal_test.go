package stream

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// A stream that fills up is logged once, and again after there was room.
func TestACrowdedStreamIsToldOnce(t *testing.T) {
	var log bytes.Buffer
	e := &Engine{config: Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}}
	for _, used := range []uint64{0, 74, 75, 80, 100, 60, 76} {
		e.alarm(t.Context(),
			[]Size{{topology.Outcomes, used, 100}, {topology.Renewals, 1 << 40, 0}})
	}
	if n := strings.Count(log.String(), "a stream is filling up"); n != 2 ||
		strings.Contains(log.String(), topology.Renewals) {
		t.Errorf("told %d times, want 2:\n%s", n, log.String())
	}
	if n := strings.Count(log.String(), "room again"); n != 1 {
		t.Errorf("told of room %d times, want 1:\n%s", n, log.String())
	}
}

// In a crowded stream answers about users who do not exist stay for an hour at most.
func TestAnswersAboutNobodyLeaveACrowdedStream(t *testing.T) {
	for _, c := range []struct {
		configured time.Duration
		used       uint64
		want       time.Duration
	}{
		{24 * time.Hour, 10, 24 * time.Hour},
		{24 * time.Hour, 80, time.Hour},
		{time.Minute, 80, time.Minute},
		{-1, 80, time.Hour},
		{-1, 10, -1},
	} {
		e := &Engine{config: Config{RejectedTTL: c.configured, SyncedTTL: time.Minute}}
		e.depths.Store(&Depths{
			Sizes: []Size{{topology.Logins, 100, 100}, {topology.Outcomes, c.used, 100}},
		})
		if got := e.life(schema.MessageRejected, grant.Mark{}); got != c.want {
			t.Errorf("%v at %d %%: %v, want %v", c.configured, c.used, got, c.want)
		}
		if got := e.life(schema.UserReauthRequired, grant.Mark{Version: 1}); got != 0 {
			t.Errorf("user.reauth_required at %d %%: %v", c.used, got)
		}
	}
}
