package reconcile_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/reconcile"
	"github.com/renewd/renewd/internal/testkit/storetest"
	"github.com/renewd/renewd/schema"
)

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
	behind := storetest.Full(grant.Key{Provider: alice.Provider, User: "behind"})
	own := behind.Fingerprint()
	put("fine", grant.Mark{Version: 10, Token: "x"}, nil)
	put("behind", grant.Mark{Version: 12, Token: own}, nil)
	put("superseded", grant.Mark{Version: 12, Token: "x"}, nil)
	put("waiting", grant.Mark{Version: 9, Token: "x"}, func(g *grant.Grant) {
		g.Status, g.LastError = grant.Suspended, schema.ReasonSuperseded
	})
	put("signed out", grant.Mark{Version: 10}, func(g *grant.Grant) {
		g.Status = grant.ReauthRequired
	})
	var mu sync.Mutex
	told := map[string]grant.Mark{}
	got, err := reconcile.Compare(ctx, s, e,
		func(_ context.Context, g grant.Grant, newest grant.Mark) error {
			mu.Lock()
			defer mu.Unlock()
			told[g.User] = newest
			return nil
		})
	want := reconcile.Comparison{
		Grants:     5,
		Live:       3,
		Superseded: 2,
		Waiting:    1,
		Behind:     1,
		Outcomes:   5,
	}
	if err != nil || got != want {
		t.Errorf("Compare = %+v, %v; want %+v", got, err, want)
	}
	if len(told) != 2 || told["superseded"].Version != 12 || told["waiting"].Version != 9 {
		t.Errorf("told of %v", told)
	}
}

// An old store next to new streams has nothing to be compared with, and this is said.
func TestNothingToCompareIsSaid(t *testing.T) {
	_, e := fresh(t)
	var log bytes.Buffer
	r := reconcile.Reconciler{
		Store: listed{
			grants: []grant.ListEntry{record("u", grant.Live, time.Now().Add(time.Hour))},
		},
		Engine: e,
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	}
	walks(t, r, 2)
	if n := strings.Count(log.String(), "hold no outcomes"); n != 1 {
		t.Errorf("said %d times: %s", n, log.String())
	}
}
