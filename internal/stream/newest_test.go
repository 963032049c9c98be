package stream_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/storetest"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

func TestNewest(t *testing.T) {
	_, e := fresh(t)
	ctx := t.Context()
	park := func(version int64) error {
		_, err := e.Park(ctx, alice, grant.Parcel{Version: version})
		return err
	}
	for i, step := range []struct {
		do   func() error
		want grant.Mark
	}{
		{func() error { return nil }, grant.Mark{}},
		{func() error { return e.Publish(ctx, outcome("unmarked", schema.UserSynced)) }, grant.Mark{}},
		{func() error {
			return e.PublishMarked(ctx, outcome("synced", schema.UserSynced), grant.Mark{Version: 7, Token: "a"})
		}, grant.Mark{Version: 7, Token: "a"}},
		{func() error {
			return e.PublishMarked(ctx, outcome("failed", schema.UserRefreshFailed), grant.Mark{Version: 6, Token: "b"})
		}, grant.Mark{Version: 7, Token: "a"}},
		{func() error { return park(7) }, grant.Mark{Version: 7, Token: "a"}},
		{func() error { return park(8) }, grant.Mark{Version: 8, Token: "parked"}},
		{func() error {
			return e.PublishMarked(ctx, outcome("out", schema.UserReauthRequired), grant.Mark{Version: 9})
		}, grant.Mark{Version: 9}},
		{func() error { return e.EraseTraces(ctx, alice) }, grant.Mark{}},
		{func() error {
			return e.PublishMarked(ctx, outcome("gone", schema.UserForgotten), grant.Mark{Version: 10})
		}, grant.Mark{Version: 10}},
	} {
		must(t, step.do())
		if got, err := e.Newest(ctx, alice); err != nil || got != step.want {
			t.Errorf("step %d: Newest = %+v, %v; want %+v", i, got, err, step.want)
		}
	}
}

func TestCompare(t *testing.T) {
	_, e := fresh(t)
	ctx := t.Context()
	s := storetest.NewMemory(time.Now)
	put := func(user string, published grant.Mark, change func(*grant.Grant)) {
		g := storetest.Full(grant.Key{Provider: alice.Provider, User: user})
		g.Version, g.Revision = 10, 0
		if change != nil {
			change(&g)
		}
		_, err := s.Save(ctx, g)
		must(t, err)
		event := outcome(user, schema.UserSynced)
		event.User = user
		must(t, e.PublishMarked(ctx, event, published))
	}
	own := storetest.Full(grant.Key{Provider: alice.Provider, User: "behind"}).Fingerprint()
	put("fine", grant.Mark{Version: 10, Token: "x"}, nil)
	put("behind", grant.Mark{Version: 12, Token: own}, nil)
	put("superseded", grant.Mark{Version: 12, Token: "x"}, nil)
	put("waiting", grant.Mark{Version: 9, Token: "x"}, func(g *grant.Grant) { g.Status, g.LastError = grant.Suspended, schema.ReasonSuperseded })
	put("signed out", grant.Mark{Version: 10}, func(g *grant.Grant) { g.Status = grant.ReauthRequired })
	var mu sync.Mutex
	told := map[string]grant.Mark{}
	got, err := stream.Compare(ctx, s, e, func(_ context.Context, g grant.Grant, newest grant.Mark) error {
		mu.Lock()
		defer mu.Unlock()
		told[g.User] = newest
		return nil
	})
	want := stream.Comparison{Grants: 5, Live: 3, Superseded: 2, Waiting: 1, Behind: 1, Outcomes: 5}
	if err != nil || got != want {
		t.Errorf("Compare = %+v, %v; want %+v", got, err, want)
	}
	if len(told) != 2 || told["superseded"].Version != 12 || told["waiting"].Version != 9 {
		t.Errorf("told of %v", told)
	}
}

// An old store next to new streams has nothing to be compared with, which is said.
func TestNothingToCompareIsSaid(t *testing.T) {
	_, e := fresh(t)
	var log bytes.Buffer
	r := stream.Reconciler{Store: listed{grants: []grant.Listed{record("u", grant.Live, time.Now().Add(time.Hour))}}, Engine: e, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	walks(t, r, 2)
	if n := strings.Count(log.String(), "hold no outcomes"); n != 1 {
		t.Errorf("said %d times: %s", n, log.String())
	}
}
