package audit_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/audit"
	"github.com/renewd/renewd/schema"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

var ages = audit.Ages{Outcome: 400 * day, Synced: 7 * day, Rejected: time.Hour}

func outcome(n int, of schema.Type, user string) schema.Event {
	return schema.Event{
		ID: fmt.Sprint("id", n), Source: "/renewd", Type: of, Provider: "acme", User: user,
		Time: noon.Add(time.Duration(n) * time.Minute), Data: json.RawMessage(`{"version": 1}`),
	}
}

func all(events []schema.Event) iter.Seq2[schema.Event, error] {
	return func(yield func(schema.Event, error) bool) {
		for _, e := range events {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// appended opens the file, appends, and returns what the file says then.
func appended(t *testing.T, path string, events []schema.Event) *audit.Chain {
	t.Helper()
	f, err := audit.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Append(f, all(events))
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c, whole, err := audit.ReadChain(raw)
	if err != nil || whole != len(raw) || c.Head() != f.Head() {
		t.Fatalf("%d of %d bytes, %v", whole, len(raw), err)
	}
	return c
}

// Whatever is done to the outcomes after they came into the chain is found, except for what renewd
// itself does: old ones expire, and those of an erased user go.
func TestTheChainShowsWhatWasDone(t *testing.T) {
	stored := []schema.Event{
		outcome(1, schema.UserSynced, "jane"), outcome(2, schema.UserReauthRequired, "joe"),
		outcome(3, schema.OperatorActed, ""), outcome(4, schema.UserReauthRequired, "jane"),
		outcome(5, schema.UserSignedOut, "jim"),
	}
	forgotten := outcome(9, schema.UserForgotten, "jane")
	changed := stored[1]
	changed.Data = json.RawMessage(`{"version": 2}`)
	without := func(n ...int) (left []schema.Event) {
		for i, e := range stored {
			if !slices.Contains(n, i+1) {
				left = append(left, e)
			}
		}
		return left
	}
	chain := appended(t, filepath.Join(t.TempDir(), "chain"), stored)
	for what, c := range map[string]struct {
		now  []schema.Event
		at   time.Time
		want audit.Report
	}{
		"nothing":    {stored, noon, audit.Report{Present: 5}},
		"a newer":    {append(without(), forgotten), noon, audit.Report{Present: 5, Newer: 1}},
		"removed":    {without(2), noon, audit.Report{Present: 4, Missing: 1}},
		"the newest": {without(5), noon, audit.Report{Present: 4, Missing: 1}},
		"all":        {nil, noon, audit.Report{Missing: 5}},
		"changed": {
			append([]schema.Event{stored[0], changed}, stored[2:]...), noon,
			audit.Report{Present: 4, Missing: 1, Foreign: 1},
		},
		"put in": {
			slices.Insert(without(), 2, outcome(7, schema.UserSignedOut, "joe")), noon,
			audit.Report{Present: 5, Foreign: 1},
		},
		"moved": {
			append(without(2), stored[1]), noon, audit.Report{Present: 5, Moved: 1},
		},
		"expired": {without(1), noon.Add(8 * day), audit.Report{Present: 4, Expired: 1}},
		"expired, and removed": {
			without(1, 3), noon.Add(8 * day),
			audit.Report{Present: 3, Expired: 1, Missing: 1},
		},
		"erased": {
			append(without(1, 4), forgotten), noon,
			audit.Report{Present: 3, Erased: 2, Newer: 1},
		},
		"erased, and removed": {
			append(without(1, 2, 4), forgotten), noon,
			audit.Report{Present: 2, Erased: 2, Missing: 1, Newer: 1},
		},
	} {
		got, err := chain.Verify(all(c.now), ages, c.at)
		bad := c.want.Missing + c.want.Foreign + c.want.Moved
		if err != nil || len(got.First) != bad || got.Intact() != (bad == 0) ||
			got.Head != chain.Head() {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
		got.First, got.Head = nil, ""
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: got %+v, want %+v", what, got, c.want)
		}
	}
}

// What is kept for an hour only, since the stream may be crowded, is still missed in the first half
// of that hour.
func TestAYoungRejectionIsMissed(t *testing.T) {
	chain := appended(t, filepath.Join(t.TempDir(), "chain"),
		[]schema.Event{outcome(0, schema.MessageRejected, "jane")})
	for after, want := range map[time.Duration]audit.Report{
		time.Second:      {Missing: 1},
		29 * time.Minute: {Missing: 1},
		31 * time.Minute: {Expired: 1},
	} {
		got, err := chain.Verify(all(nil), ages, noon.Add(after))
		if err != nil || got.Missing != want.Missing || got.Expired != want.Expired {
			t.Errorf("after %v: %+v, %v", after, got, err)
		}
	}
}

// A chain grows by what is new, whatever of it is read again, and its lines name no user.
func TestAChainGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "chain")
	first := []schema.Event{
		outcome(1, schema.UserSynced, "jane"), outcome(2, schema.UserSynced, "joe"),
	}
	before := appended(t, path, first)
	if got := before.Since(); !got.Equal(noon.Add(2*time.Minute - time.Hour)) {
		t.Errorf("goes on at %v", got)
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = file.WriteString("2026-03-01T12:03:00Z user.syn") // a crash while it wrote
	}
	if err = errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	now := appended(t, path, append(first, outcome(3, schema.UserSynced, "jim")))
	if now.Len() != 3 || !now.Has(before.Head()) || !now.Has(now.Head()) || now.Has("other") {
		t.Errorf("%d lines", now.Len())
	}
	raw, err := os.ReadFile(path)
	if err != nil || strings.Contains(string(raw), "jane") || strings.Contains(string(raw), "id1") {
		t.Errorf("%v: %s", err, raw)
	}
	lines := strings.SplitAfter(strings.TrimSuffix(string(raw), "\n"), "\n")
	for what, text := range map[string]string{
		"no title":       strings.Join(lines[1:], "") + "\n",
		"a line removed": lines[0] + lines[2] + lines[3] + "\n",
		"a line changed": strings.Replace(string(raw), "12:02", "12:01", 1),
		"another salt":   strings.Replace(string(raw), "chain 1 ", "chain 1 A", 1),
		"no chain":       "hello\n",
	} {
		if _, _, err := audit.ReadChain([]byte(text)); !errors.Is(err, audit.ErrChain) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// What the last lines were is not in the lines before them: a noted head is.
	cut, _, err := audit.ReadChain([]byte(strings.Join(lines[:2], "")))
	if err != nil || cut.Has(now.Head()) {
		t.Errorf("cut off: %v", err)
	}
}

// Two that append at once would break the chain: the second one is refused.
func TestOnlyOneAppends(t *testing.T) {
	path := filepath.Join(t.TempDir(), "chain")
	late, err := audit.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	events := []schema.Event{outcome(1, schema.UserSynced, "jane")}
	appended(t, path, events)
	if _, err := late.Append(late, all(events)); err == nil ||
		!strings.Contains(err.Error(), "one at a time") {
		t.Errorf("got %v", err)
	}
}

// A head is given to a command, which must not take the head for a flag: in base64url one of 64
// would begin with a dash.
func TestAHeadIsNoFlag(t *testing.T) {
	for range 1000 {
		c, err := audit.NewChain()
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(c.Head(), "-") {
			t.Fatalf("a head is %q", c.Head())
		}
	}
}
