package health

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
)

// The hosts that were pinned first stay until an operator replaces them, for one issuer.
func TestHostsStayPinned(t *testing.T) {
	s := newSite(t)
	open := func(context.Context) (jetstream.KeyValue, error) { return s.bucket, nil }
	pins := Pins{Provider: "p", Issuer: "https://a.example", Open: open}
	is := func(of Pins, want ...string) {
		t.Helper()
		if got, err := of.Pinned(t.Context()); err != nil || !slices.Equal(got, want) {
			t.Errorf("pinned %q, %v, want %q", got, err, want)
		}
	}
	looking := pins
	looking.Look = true
	if got, err := looking.Pin(t.Context(), []string{"a:443"}); err != nil || len(got) != 1 {
		t.Errorf("%q, %v", got, err)
	}
	is(pins)
	for _, hosts := range [][]string{{"a:443"}, {"b:443"}} {
		if got, err := pins.Pin(t.Context(), hosts); err != nil ||
			!slices.Equal(got, []string{"a:443"}) {
			t.Errorf("%q, %v", got, err)
		}
	}
	is(pins, "a:443")
	other := pins
	other.Issuer = "https://b.example"
	is(other)
	if err := pins.Replace(t.Context(), []string{"b:443", "c:443"}); err != nil {
		t.Fatal(err)
	}
	is(pins, "b:443", "c:443")
	if _, err := other.Pin(t.Context(), []string{"d:443"}); err != nil {
		t.Fatal(err)
	}
	is(other, "d:443")
	if _, err := s.bucket.Put(t.Context(), "p_hosts", []byte(`{"v":2}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := pins.Pinned(t.Context()); !errors.Is(err, ErrRecord) {
		t.Errorf("a record of a later version: %v", err)
	}
	if err := pins.Replace(t.Context(), nil); !errors.Is(err, ErrRecord) {
		t.Errorf("a record of a later version was replaced: %v", err)
	}
}
