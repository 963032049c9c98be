package stream_test

import (
	"testing"

	"github.com/renewd/renewd/internal/grant"
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
		{
			func() error { return e.Publish(ctx, outcome("unmarked", schema.UserSynced)) },
			grant.Mark{},
		},
		{func() error {
			return e.PublishMarked(ctx, outcome("synced", schema.UserSynced),
				grant.Mark{Version: 7, Token: "a"})
		}, grant.Mark{Version: 7, Token: "a"}},
		{func() error {
			return e.PublishMarked(ctx, outcome("failed", schema.UserRefreshFailed),
				grant.Mark{Version: 6, Token: "b"})
		}, grant.Mark{Version: 7, Token: "a"}},
		{func() error { return park(7) }, grant.Mark{Version: 7, Token: "a"}},
		{func() error { return park(8) }, grant.Mark{Version: 8, Token: "parked"}},
		{func() error {
			return e.PublishMarked(ctx, outcome("out", schema.UserReauthRequired),
				grant.Mark{Version: 9})
		}, grant.Mark{Version: 9}},
		{func() error { return e.EraseTraces(ctx, alice) }, grant.Mark{}},
		{func() error {
			return e.PublishMarked(ctx, outcome("gone", schema.UserForgotten),
				grant.Mark{Version: 10})
		}, grant.Mark{Version: 10}},
	} {
		must(t, step.do())
		if got, err := e.Newest(ctx, alice); err != nil || got != step.want {
			t.Errorf("step %d: Newest = %+v, %v; want %+v", i, got, err, step.want)
		}
	}
}
