package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/testkit/streams"
	"github.com/renewd/renewd/schema"
)

// site is one NATS server with one provider's record, one consumer's brake, and one clock, for any
// number of workers.
type site struct {
	t      *testing.T
	bucket jetstream.KeyValue
	brake  *recorder
	mu     sync.Mutex
	clock  time.Time
}

func newSite(t *testing.T) *site {
	t.Helper()
	js := streams.Start(t, natsd.Config{})
	bucket, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "providers"})
	if err != nil {
		t.Fatal(err)
	}
	return &site{
		t:      t,
		bucket: bucket,
		brake:  &recorder{limit: full},
		clock:  time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
	}
}

func (s *site) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clock
}

func (s *site) advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock = s.clock.Add(d)
}

const full = 50

// worker is a guard as one process has it. Its rounds are made by hand.
func (s *site) worker(bucket jetstream.KeyValue) *Guard {
	s.t.Helper()
	g, err := New(Config{
		Provider:    "p",
		Settings:    "a",
		Concurrency: full,
		Bucket:      bucket,
		Brake:       s.brake,
		Source:      "/renewd",
		Now:         s.now,
		Logger:      slog.New(slog.DiscardHandler),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return g
}

// fail makes a provider of it that is out, by what g sees.
func (s *site) fail(g *Guard) {
	for range 10 {
		g.Report(&grant.Fault{Class: grant.Ambiguous}, false)
	}
	g.round(s.t.Context())
}

// recorder is a brake that keeps what was set, and outcomes once an id, as the stream does.
type recorder struct {
	limit  int
	until  time.Time
	events []schema.Event
	fails  error // of the next call of each kind, until it is cleared
	lost   bool  // the next publish is stored, and its reply lost
}

func (r *recorder) Pause(_ context.Context, _ string, until time.Time) error {
	if r.fails == nil {
		r.until = until
	}
	return r.fails
}

func (r *recorder) Limit(_ context.Context, _ string, n int) error {
	if r.fails == nil {
		r.limit = n
	}
	return r.fails
}

func (r *recorder) Waiting(context.Context, string) (int64, error) { return 7, nil }

func (r *recorder) Publish(_ context.Context, e schema.Event) error {
	if r.fails != nil {
		return r.fails
	}
	if !slices.ContainsFunc(r.events, func(o schema.Event) bool { return o.ID == e.ID }) {
		r.events = append(r.events, e)
	}
	if r.lost {
		r.lost = false
		return errDown
	}
	return nil
}

func (r *recorder) told() string {
	var types []string
	for _, e := range r.events {
		types = append(types, strings.TrimPrefix(string(e.Type), "provider."))
	}
	return strings.Join(types, " ")
}

var errDown = errors.New("nats: timeout")

// deaf stores what it is told, and loses replies while it is switched on.
type deaf struct {
	jetstream.KeyValue
	on bool
}

func (d *deaf) Update(ctx context.Context, key string, value []byte, last uint64) (uint64, error) {
	rev, err := d.KeyValue.Update(ctx, key, value, last)
	if d.on && err == nil {
		return 0, errDown
	}
	return rev, err
}

// outage takes the site through an outage as far as the first success, which a has just been told
// of.
func (s *site) outage(a *Guard) {
	s.t.Helper()
	s.fail(a)
	if s.brake.limit != 1 || !s.brake.until.Equal(s.now().Add(a.Rules.OpenMin)) {
		s.t.Fatalf("out, and the limit is %d, the pause until %v", s.brake.limit, s.brake.until)
	}
	s.advance(a.Rules.OpenMin)
	a.Report(nil, false)
}

func TestALostReplyOfTheRecoveryEndsNothing(t *testing.T) {
	s := newSite(t)
	bucket := &deaf{KeyValue: s.bucket}
	a := s.worker(bucket)
	s.outage(a)
	bucket.on = true
	a.round(t.Context())
	bucket.on = false
	for range 7 {
		a.round(t.Context())
		s.advance(time.Second)
	}
	if s.brake.limit != full || s.brake.told() != "degraded recovered" {
		t.Errorf("after the outage the limit is %d, told %s", s.brake.limit, s.brake.told())
	}
}

func TestTheDeathOfTheWorkerThatNoticedEndsNothing(t *testing.T) {
	s := newSite(t)
	a, b := s.worker(s.bucket), s.worker(s.bucket)
	b.round(t.Context())
	s.outage(a)
	b.round(t.Context())
	s.brake.fails = errDown // it can write the record, and nothing else, before it dies
	a.round(t.Context())
	s.brake.fails = nil
	for range 8 {
		b.round(t.Context())
		s.advance(time.Second)
	}
	if s.brake.limit != full || s.brake.told() != "degraded recovered" {
		t.Errorf("after the outage the limit is %d, told %s", s.brake.limit, s.brake.told())
	}
}

// A worker that looked at the record before it changed may set the brake after it did. The next
// minute puts it right.
func TestABrakeSetByAnOlderRecordIsPutRight(t *testing.T) {
	s := newSite(t)
	a := s.worker(s.bucket)
	a.round(t.Context())
	s.brake.limit = 1
	s.advance(time.Minute)
	a.round(t.Context())
	if s.brake.limit != full {
		t.Errorf("the limit is still %d", s.brake.limit)
	}
}

func TestEachEventOfAnOutageIsToldOnce(t *testing.T) {
	s := newSite(t)
	a, b := s.worker(s.bucket), s.worker(s.bucket)
	s.brake.fails = errDown // OUTCOMES has no leader while all of it happens
	s.fail(a)
	b.round(t.Context())
	s.advance(a.Rules.OpenMin)
	b.Report(nil, false)
	b.round(t.Context())
	s.brake.fails, s.brake.lost = nil, true
	for range 3 {
		a.round(t.Context())
		b.round(t.Context())
	}
	if s.brake.told() != "degraded recovered" {
		t.Fatalf("told %q", s.brake.told())
	}
	if n := len(b.State().Untold); n != 0 {
		t.Errorf("%d events are still untold", n)
	}
	s.advance(time.Hour)
	s.fail(b)
	if s.brake.told() != "degraded recovered degraded" {
		t.Errorf("the next outage: told %q", s.brake.told())
	}
}

func TestARestartInAnOutageGoesOn(t *testing.T) {
	s := newSite(t)
	s.fail(s.worker(s.bucket))
	s.brake.limit, s.brake.until = full, time.Time{} // streams apply, meanwhile
	b := s.worker(s.bucket)
	b.round(t.Context())
	if b.WaitToPresent(time.Time{}, true) != b.Rules.OpenMin || s.brake.limit != 1 ||
		!s.brake.until.Equal(s.now().Add(b.Rules.OpenMin)) {
		t.Errorf("waits %v, limit %d, paused until %v", b.WaitToPresent(time.Time{}, true),
			s.brake.limit, s.brake.until)
	}
}

func TestAPauseThatFailedIsSetAgain(t *testing.T) {
	s := newSite(t)
	a := s.worker(s.bucket)
	s.brake.fails = errDown
	s.fail(a)
	if a.WaitToPresent(time.Time{}, true) == 0 {
		t.Error("without the brake the provider is called")
	}
	s.brake.fails = nil
	a.round(t.Context())
	if s.brake.limit != 1 || s.brake.until.IsZero() {
		t.Errorf("limit %d, paused until %v", s.brake.limit, s.brake.until)
	}
}

func TestRetryAfterHoldsForEveryWorker(t *testing.T) {
	s := newSite(t)
	a, b := s.worker(s.bucket), s.worker(s.bucket)
	for range throttles {
		a.Report(&grant.Fault{Class: grant.Throttled, Status: 429, RetryAfter: 5 * time.Minute},
			false)
	}
	a.round(t.Context())
	b.round(t.Context())
	if b.WaitToPresent(time.Time{}, true) != 5*time.Minute ||
		!s.brake.until.Equal(s.now().Add(5*time.Minute)) {
		t.Errorf("another worker waits %v, paused until %v", b.WaitToPresent(time.Time{}, true),
			s.brake.until)
	}
	s.advance(5 * time.Minute)
	if b.WaitToPresent(time.Time{}, true) != 0 {
		t.Errorf("when it is over it waits %v", b.WaitToPresent(time.Time{}, true))
	}
}

// While no user is renewed one presentation at a time tries, and the tokens of newer logins are
// presented at once.
func TestOneTriesWhileNobodyIsRenewed(t *testing.T) {
	s := newSite(t)
	a := s.worker(s.bucket)
	for range nobody * 10 {
		a.Report(&grant.Fault{Class: grant.Permanent}, false)
	}
	a.round(t.Context())
	if a.WaitToPresent(time.Time{}, true) == 0 || s.brake.limit != full || !s.brake.until.IsZero() {
		t.Fatalf("waits %v, limit %d, paused until %v", a.WaitToPresent(time.Time{}, true),
			s.brake.limit, s.brake.until)
	}
	if a.WaitToPresent(s.now().Add(time.Millisecond), true) != 0 {
		t.Error("who has just signed in waits behind those who are refused")
	}
	s.advance(a.Rules.OpenMin)
	if a.WaitToPresent(time.Time{}, true) != 0 || a.WaitToPresent(time.Time{}, true) == 0 {
		t.Error("want one try, and no second one beside it")
	}
	a.Report(&grant.Fault{Class: grant.Permanent}, true)
	a.round(t.Context())
	if a.WaitToPresent(time.Time{}, true) < 2*a.Rules.OpenMin {
		t.Errorf("after a try that was refused it waits %v", a.WaitToPresent(time.Time{}, true))
	}
	a.Report(nil, false)
	a.round(t.Context())
	if a.WaitToPresent(time.Time{}, true) != 0 {
		t.Errorf("somebody was renewed, and the others wait %v", a.WaitToPresent(time.Time{}, true))
	}
}

// While most users are refused and none is renewed, a token that was never refused has a turn of
// its own. Otherwise users who are well would wait for as long as the refused ones have the tries.
func TestUsersWhoAreWellHaveATurnOfTheirOwn(t *testing.T) {
	s := newSite(t)
	a := s.worker(s.bucket)
	for range nobody * 10 {
		a.Report(&grant.Fault{Class: grant.Permanent}, false)
	}
	a.round(t.Context())
	for range 5 { // the tries come to nothing, and grow rare
		s.advance(time.Minute)
		if a.WaitToPresent(time.Time{}, true) != 0 {
			t.Fatal("no try after a minute")
		}
		a.Report(&grant.Fault{Class: grant.Permanent}, true)
		a.round(t.Context())
	}
	if a.WaitToPresent(time.Time{}, false) != 0 {
		t.Error("a token that was never refused waits for the tries of refused ones")
	}
	if wait := a.WaitToPresent(time.Time{}, false); wait == 0 || wait > a.Rules.OpenMax {
		t.Errorf("the next such token waits %v", wait)
	}
	s.advance(a.Rules.OpenMax)
	if a.WaitToPresent(time.Time{}, false) != 0 {
		t.Error("the next such token has no turn")
	}
}

// What a later version wrote, or what is damaged, is kept: it holds more than this version knows.
func TestARecordOfAnUnknownVersionIsKept(t *testing.T) {
	for _, raw := range []string{`{"v":99,"settings":{"a":1}}`, `{"v":3}`, `damaged`} {
		t.Run(raw, func(t *testing.T) {
			s := newSite(t)
			if _, err := s.bucket.PutString(t.Context(), "p", raw); err != nil {
				t.Fatal(err)
			}
			a := s.worker(s.bucket)
			s.fail(a)
			held := make(chan string, 1)
			go func() {
				reason, err := a.Withhold(t.Context(), grant.Verdict{
					At: s.now().Add(-1000 * time.Hour),
				})
				held <- fmt.Sprint(reason, err)
			}()
			for got := ""; got == ""; {
				select {
				case got = <-held:
					if got != schema.ReasonUnproven+"<nil>" {
						t.Errorf("a verdict is held for %s", got)
					}
				case <-a.kick:
					a.round(t.Context())
				}
			}
			entry, err := s.bucket.Get(t.Context(), "p")
			if err != nil || string(entry.Value()) != raw {
				t.Errorf("%v: it is now %s", err, entry.Value())
			}
			if _, _, err := Load(t.Context(), s.bucket, "p"); !errors.Is(err, ErrRecord) ||
				!strings.Contains(err.Error(), "nats kv del providers p") {
				t.Errorf("an operator reads %v", err)
			}
		})
	}
}

// A record from before there were versions is read as it is.
func TestARecordWithoutVersionIsRead(t *testing.T) {
	s := newSite(t)
	const raw = `{"settings":"a","proven_at":"2026-03-01T10:00:00Z",` +
		`"window_at":"2026-03-01T11:59:00Z","window":{"ok":5,"dead":1},` +
		`"recent":{"ok":1},"lately":[{"from":"2026-03-01T11:59:58Z","ok":3,"dead":1}],` +
		`"outage":{"reason":"provider_unavailable","since":"2026-03-01T11:59:59Z",` +
		`"until":"2026-03-01T12:00:09Z","tries":1}}`
	if _, err := s.bucket.PutString(t.Context(), "p", raw); err != nil {
		t.Fatal(err)
	}
	a := s.worker(s.bucket)
	a.round(t.Context())
	if got := a.State(); got.ProvenAt.IsZero() || len(got.Lately) != 1 ||
		a.WaitToPresent(time.Time{}, true) == 0 || s.brake.limit != 1 {
		t.Errorf("read as %+v", got)
	}
}
