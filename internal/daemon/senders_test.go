package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// Three workers let in of one sender what its rate allows once, not three times, and nothing that
// they would not let in is answered otherwise than by a rejection.
func TestASendersRateIsOfAllWorkers(t *testing.T) {
	t.Parallel()
	js := streams(t)
	bucket, err := js.KeyValue(t.Context(), topology.BucketProviders)
	if err != nil {
		t.Fatal(err)
	}
	rights := map[string]settings.Sender{"shop": {Rate: 0.001, Burst: 30}}
	conf := &settings.Settings{Senders: rights}
	type admit = func(n uint64, sender string) error
	var workers []admit
	for range 3 {
		p := &Resources{Conf: conf, log: slog.New(slog.DiscardHandler), health: bucket}
		if p.Engine, err = stream.NewEngine(js, stream.Config{}); err != nil {
			t.Fatal(err)
		}
		if err := p.Engine.SyncClock(t.Context()); err != nil {
			t.Fatal(err)
		}
		gate := p.admit()
		workers = append(workers, func(n uint64, sender string) error {
			subject := fmt.Sprintf("from.%s.user.refresh_due.acme.u%d", sender, n)
			m := &runner.Message{
				Subject:    subject,
				Stream:     topology.Requests,
				Sequence:   n,
				Time:       time.Now(),
				Deliveries: 1,
			}
			e := schema.Event{
				Type:     schema.UserRefreshDue,
				Provider: "acme",
				User:     fmt.Sprint("u", n),
				Sender:   sender,
			}
			return gate(t.Context(), m, e)
		})
	}
	in := map[string]int{}
	for n := range uint64(300) {
		for _, sender := range []string{"shop", "crm"} {
			err := workers[n%3](n, sender)
			if _, malformed := errors.AsType[*schema.Malformed](err); err != nil && !malformed {
				t.Fatal(err)
			}
			if err == nil {
				in[sender]++
			}
		}
	}
	if in["shop"] != 30 || in["crm"] != 300 {
		t.Errorf("let in: %v, want 30 of shop, and all of crm, which has no rate", in)
	}
}
