package topology_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

const mebibyte = 1 << 20

func bounded(t *testing.T) topology.Topology {
	t.Helper()
	want := wanted(t, "")
	want.OutcomeBytes, want.CommandBytes = mebibyte, mebibyte
	return want
}

// fill publishes messages of 16 KiB, each of another user, until the stream refuses one; it returns
// how many were taken.
func fill(t *testing.T, js jetstream.JetStream, front string, most uint64) uint64 {
	t.Helper()
	for n := range most {
		_, err := js.Publish(
			t.Context(),
			fmt.Sprintf("%s.propelauth.u%d", front, n),
			make([]byte, 16<<10),
		)
		if api, ok := errors.AsType[*jetstream.APIError](err); ok &&
			strings.Contains(api.Description, "maximum bytes exceeded") {
			return n
		}
		must(t, err)
	}
	return most
}

// With every bounded stream full no command that was accepted is dropped; the publisher of a new
// command gets an error instead. Timers fire, and outcomes are stored.
func TestFullStreams(t *testing.T) {
	js := start(t, natsd.Config{})
	ensure(t, js, bounded(t))
	e := engine(t, js, stream.Config{})
	const most uint64 = 200
	for base, front := range map[string]string{
		topology.Logins:   "user.login",
		topology.Requests: "user.refresh_due",
	} {
		n := fill(t, js, front, most)
		if n == most || messages(t, js, base) != n {
			t.Errorf(
				"%s took %d messages of 16 KiB into 1 MiB, and holds %d",
				base,
				n,
				messages(t, js, base),
			)
		}
	}
	if n := fill(t, js, "user.synced", most); n != most {
		t.Errorf("OUTCOMES refused outcome %d", n)
	}
	if n := messages(t, js, topology.Outcomes); n == most {
		t.Errorf("OUTCOMES kept all %d outcomes of 16 KiB in 1 MiB", n)
	}
	must(t, e.Arm(t.Context(), alice, time.Now().Add(time.Second), work("x")))
	ack(t, renewal(t, js))
	must(t, e.Publish(t.Context(), schema.Event{
		ID:       "last",
		Source:   "/renewd",
		Type:     schema.UserReauthRequired,
		Provider: alice.Provider,
		User:     alice.User,
		Time:     time.Now(),
		Data:     []byte("{}"),
	}))
	if last, found, err := e.LastOutcome(t.Context(), alice); err != nil || !found ||
		last.ID != "last" {
		t.Errorf("last outcome: %+v, %t, %v", last, found, err)
	}
	d, err := e.Depths(t.Context())
	must(t, err)
	for _, s := range d.Sizes {
		if wants := s.Stream == topology.Logins || s.Stream == topology.Requests ||
			s.Stream == topology.Outcomes; s.Crowded() != wants {
			t.Errorf("%s: %d of %d bytes, crowded %t", s.Stream, s.Bytes, s.Limit, s.Crowded())
		}
	}
}

// An installation from before there were limits gets them by Apply alone, and loses nothing.
func TestBoundsAreApplied(t *testing.T) {
	js := start(t, natsd.Config{})
	ensure(t, js, wanted(t, ""))
	kept := fill(t, js, "user.synced", 10)
	plan, err := topology.Plan(t.Context(), js, bounded(t))
	must(t, err)
	rest, left := plan.WithoutBounds(false)
	if rest.Pending() ||
		!slices.Equal(left, []string{topology.Logins, topology.Requests, topology.Outcomes}) {
		t.Errorf("without the limits of %q:\n%s", left, rest)
	}
	if all, none := plan.WithoutBounds(true); len(none) > 0 || all.String() != plan.String() {
		t.Errorf("%q would cut something:\n%s", none, all)
	}
	must(t, topology.Apply(t.Context(), js, plan))
	if plan, err := topology.Plan(t.Context(), js, bounded(t)); err != nil || plan.Pending() {
		t.Errorf("after Apply: %v\n%s", err, plan)
	}
	if n := messages(t, js, topology.Outcomes); n != kept {
		t.Errorf("%d outcomes, before %d", n, kept)
	}
	if plan, err := topology.Plan(t.Context(), js, wanted(t, "")); err != nil ||
		plan.Refusal() != nil ||
		!plan.Pending() {
		t.Errorf("a limit cannot be taken back: %v\n%s", err, plan)
	}
}

func TestBoundsThatCutAreRefused(t *testing.T) {
	js := start(t, natsd.Config{})
	ensure(t, js, wanted(t, ""))
	kept := fill(t, js, "user.synced", 100)
	plan, err := topology.Plan(t.Context(), js, bounded(t))
	must(t, err)
	if err := topology.Apply(t.Context(), js, plan); !errors.Is(err, topology.ErrDestructive) ||
		!strings.Contains(err.Error(), "outcome_bytes") {
		t.Errorf("Apply = %v, want it refused", err)
	}
	rest, left := plan.WithoutBounds(true)
	if !slices.Equal(left, []string{topology.Outcomes}) || rest.Refusal() != nil ||
		!rest.Pending() {
		t.Errorf("without the limits of %q:\n%s", left, rest)
	}
	must(t, topology.Apply(t.Context(), js, rest))
	if n := messages(t, js, topology.Outcomes); n != kept {
		t.Errorf("%d outcomes, before %d", n, kept)
	}
	if plan, err = topology.Plan(t.Context(), js, bounded(t)); err != nil {
		t.Fatal(err)
	}
	plan.Force = true
	must(t, topology.Apply(t.Context(), js, plan))
	if n := messages(t, js, topology.Outcomes); n == kept {
		t.Error("with force the limit cut nothing")
	}
}
