package natsd

import (
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Whatever is lost or changed on the way is found, and what goes by itself is not.
func TestALossIsFound(t *testing.T) {
	was := content{last: 9, lasting: 5, sum: [32]byte{1}, acked: map[string]uint64{"c": 4}}
	for what, c := range map[string]struct {
		change func(c *content)
		lost   bool
	}{
		"nothing":              {func(*content) {}, false},
		"a timer fired":        {func(c *content) { c.last, c.messages = 10, 7 }, false},
		"a message is gone":    {func(c *content) { c.lasting-- }, true},
		"a message is another": {func(c *content) { c.sum[0] = 2 }, true},
		"the end is gone":      {func(c *content) { c.last = 8 }, true},
		"a consumer fell back": {func(c *content) { c.acked["c"] = 3 }, true},
		"a consumer is gone":   {func(c *content) { delete(c.acked, "c") }, true},
	} {
		is := was
		is.acked = maps.Clone(was.acked)
		c.change(&is)
		err := contents{"A/S": was}.compare(contents{"A/S": is})
		if errors.Is(err, ErrDiffers) != c.lost {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := (contents{"A/S": was}).compare(contents{}); !errors.Is(err, ErrDiffers) {
		t.Errorf("the stream is gone: %v", err)
	}
}

func TestWhenAMessageGoesByItself(t *testing.T) {
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	day := jetstream.StreamConfig{MaxAge: 24 * time.Hour}
	for what, c := range map[string]struct {
		header nats.Header
		of     jetstream.StreamConfig
		end    time.Time
	}{
		"never":           {nil, jetstream.StreamConfig{}, time.Time{}},
		"with its stream": {nil, day, noon.Add(24 * time.Hour)},
		"in its time": {
			nats.Header{"Nats-TTL": {"1h0m0s"}}, day, noon.Add(time.Hour),
		},
		"in seconds": {
			nats.Header{"Nats-TTL": {"60"}}, jetstream.StreamConfig{}, noon.Add(time.Minute),
		},
		"not in its time": {
			nats.Header{"Nats-TTL": {"never"}}, jetstream.StreamConfig{}, time.Time{},
		},
		"as a timer": {
			nats.Header{"Nats-Schedule": {"@at 2026-03-01T13:00:00Z"}}, jetstream.StreamConfig{},
			noon.Add(time.Hour),
		},
	} {
		m := &jetstream.RawStreamMsg{Time: noon, Header: c.header}
		if got := endOf(m, c.of); !got.Equal(c.end) {
			t.Errorf("%s: %v, want %v", what, got, c.end)
		}
	}
}
