package senders_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/schema"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// gate is one with a clock that the test moves.
func gate(list senders.List) (g *senders.Gate, clock *time.Time) {
	now := noon
	return senders.NewGate(list, func() time.Time { return now }, nil), &now
}

func command(sender string, of schema.Type) schema.Event {
	return schema.Event{Type: of, Provider: "acme", User: "u1", Sender: sender}
}

// admitted counts how many of n commands are let in, at their first delivery.
func admitted(t *testing.T, g *senders.Gate, e schema.Event, n int) (in int) {
	t.Helper()
	for range n {
		err := g.Admit(t.Context(), e, 1, func(context.Context) (bool, error) {
			t.Error("a first delivery was looked for")
			return false, nil
		})
		if err == nil {
			in++
			continue
		}
		bad, ok := errors.AsType[*schema.Malformed](err)
		if !ok || bad.Reason != schema.RejectSenderRate ||
			!strings.Contains(bad.Message, "senders.shop.rate") {
			t.Fatalf("refused with %v", err)
		}
	}
	return in
}

// A sender has its burst, then its rate, of logins and requests each; another sender, and one
// without a rate, is not held up by it.
func TestASenderHasItsRateAndNobodyElses(t *testing.T) {
	g, now := gate(senders.List{"shop": {Rate: 2, Burst: 5}, "crm": {Rate: 2}, "free": {}})
	ask := command("shop", schema.UserRefreshDue)
	if n := admitted(t, g, ask, 1000); n != 5 {
		t.Errorf("%d of a flood were let in, want the burst of 5", n)
	}
	if n := admitted(t, g, command("shop", schema.UserLogin), 5); n != 5 {
		t.Errorf("%d logins beside a flood of requests were let in, want 5", n)
	}
	if n := admitted(t, g, command("crm", schema.UserRefreshDue), 20); n != 20 {
		t.Errorf("%d of another sender were let in, want ten seconds' worth, 20", n)
	}
	for _, sender := range []string{"free", "stranger", ""} {
		if n := admitted(t, g, command(sender, schema.UserRefreshDue), 1000); n != 1000 {
			t.Errorf("%d of %q, which has no rate, were let in", n, sender)
		}
	}
	*now = noon.Add(2 * time.Second)
	if n := admitted(t, g, ask, 1000); n != 4 {
		t.Errorf("%d were let in two seconds later, want 4", n)
	}
}

// permits are shared ones that a test grants, or has away.
type permits struct {
	left int
	err  error
}

func (p *permits) Take(context.Context) (bool, error) {
	if p.left--; p.left < 0 && p.err == nil {
		return false, nil
	}
	return p.err == nil, p.err
}

// The permits that all workers share are what counts. While they are away no command is refused: as
// many as one worker's rate allows are let in, and each of the rest when it is delivered again.
func TestNoCommandIsLostWithoutTheSharedPermits(t *testing.T) {
	shared := map[string]*permits{}
	g := senders.NewGate(senders.List{"shop": {Rate: 2, Burst: 5}, "free": {}},
		func() time.Time { return noon },
		func(name string, rate float64, burst int) senders.Permits {
			if rate != 2 || burst != 5 {
				t.Errorf("%s: %g a second after %d", name, rate, burst)
			}
			shared[name] = &permits{left: 3}
			return shared[name]
		})
	e := command("shop", schema.UserRefreshDue)
	if n := admitted(t, g, e, 100); n != 3 || len(shared) != len(schema.Commands()) {
		t.Errorf("%d let in by %d permits, want 3", n, len(shared))
	}
	away := errors.New("no leader")
	shared["shop.user.refresh_due"].err = away
	in, later := 0, 0
	for range 100 {
		switch err := g.Admit(t.Context(), e, 1, nil); {
		case err == nil:
			in++
		case errors.Is(err, away):
			later++
		default:
			t.Fatalf("refused: %v", err)
		}
	}
	if in != 5 || later != 95 {
		t.Errorf("%d let in and %d put off, want 5 and 95", in, later)
	}
	again := func(context.Context) (bool, error) { return false, nil }
	if err := g.Admit(t.Context(), e, 2, again); err != nil {
		t.Errorf("delivered again: %v", err)
	}
}

// A command that comes again has one answer: the rejection if that is out, else what the command
// asked for.
func TestACommandThatComesAgainHasOneAnswer(t *testing.T) {
	g, _ := gate(senders.List{"shop": {Rate: 1, Burst: 1}})
	e, away := command("shop", schema.UserRefreshDue), errors.New("no leader")
	admitted(t, g, e, 2)
	for name, tt := range map[string]struct {
		before bool
		fails  error
		want   string
	}{
		"rejected":     {before: true, want: schema.RejectSenderRate},
		"let in":       {},
		"nobody knows": {fails: away, want: "no leader"},
	} {
		err := g.Admit(t.Context(), e, 2, func(context.Context) (bool, error) {
			return tt.before, tt.fails
		})
		if (err != nil) != (tt.want != "") ||
			err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Without read for anybody everybody may read, as before there was such a right; with it what it
// does not name may not.
func TestMayRead(t *testing.T) {
	open := senders.List{"shop": {Login: []string{"acme"}}}
	list := senders.List{
		"shop":  {Read: []string{"acme"}},
		"crm":   {Ask: []string{"acme"}},
		"audit": {Read: []string{"*"}},
	}
	for _, tt := range []struct {
		list     senders.List
		sender   string
		provider string
		may      bool
	}{
		{nil, "shop", "acme", true}, {open, "shop", "globex", true},
		{open, "stranger", "acme", true},
		{list, "shop", "acme", true}, {list, "shop", "globex", false},
		{list, "audit", "globex", true},
		{list, "crm", "acme", false}, {list, "stranger", "acme", false}, {list, "", "acme", false},
		{list, "shop", "*", false},
	} {
		if may := tt.list.MayRead(tt.sender, tt.provider); may != tt.may {
			t.Errorf("%v: MayRead(%s, %s) = %t", tt.list, tt.sender, tt.provider, may)
		}
	}
	if open.LimitsReading() || !list.LimitsReading() {
		t.Errorf("LimitsReading = %t, %t", open.LimitsReading(), list.LimitsReading())
	}
}

// A durable that lets through an outcome which its sender may not read exceeds the sender's rights.
func TestExceeds(t *testing.T) {
	list := senders.List{"shop": {Read: []string{"acme", "globex"}}, "audit": {Read: []string{"*"}}}
	for name, tt := range map[string]struct {
		sender  string
		filters []string
		exceeds bool
	}{
		"one provider": {
			"shop", []string{"user.synced.acme.*", "*.*.globex", "*.*.globex.*"}, false,
		},
		"one user": {"shop", []string{"*.*.acme.u1"}, false},
		"another provider": {
			"shop", []string{"user.synced.acme.*", "user.synced.initech.*"}, true,
		},
		"all providers":     {"shop", []string{"user.synced.*.*"}, true},
		"all of a type":     {"shop", []string{"message.rejected.>"}, true},
		"no filter":         {"shop", nil, true},
		"everything":        {"shop", []string{">"}, true},
		"what operators do": {"shop", []string{"operator.acted"}, true},
		"a stranger":        {"crm", []string{"user.synced.acme.*"}, true},
		"an auditor":        {"audit", nil, false},
	} {
		if got := list.Exceeds(tt.sender, tt.filters); got != tt.exceeds {
			t.Errorf("%s: Exceeds = %t", name, got)
		}
	}
	if (senders.List{"shop": {}}).Exceeds("shop", nil) {
		t.Error("a durable exceeds rights that nobody set")
	}
}
