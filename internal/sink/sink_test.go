package sink_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/testkit/streams"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var eventually = testkit.Eventually

// receiver is a target that notes what it gets, and fails as it is told.
type receiver struct {
	mu   sync.Mutex
	fail func(e schema.Event) error // nil: nothing fails
	got  []schema.Event
}

func (r *receiver) Deliver(_ context.Context, e schema.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		if err := r.fail(e); err != nil {
			return err
		}
	}
	r.got = append(r.got, e)
	return nil
}

func (r *receiver) Close() {}

func (r *receiver) failing(f func(schema.Event) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = f
}

// ids are the events of one user, or of all, in the order in which they came.
func (r *receiver) ids(user string) (ids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.got {
		if user == "" || e.User == user {
			ids = append(ids, e.ID)
		}
	}
	return ids
}

// world is a server with renewd's streams and one sink, crm.
type world struct {
	t      *testing.T
	js     jetstream.JetStream
	engine *stream.Engine
	bucket sink.Bucket
	want   topology.Topology
	acted  chan string
	dial   func(...nats.Option) (*nats.Conn, error) // a connection like another process's
	n      int
	data   string // of the outcomes to come; empty: {}
}

func newWorld(t *testing.T) *world {
	t.Parallel()
	server, err := natsd.Start(t.Context(), natsd.Config{StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	w := &world{t: t, js: streams.Connect(t, server.Connect), want: streams.Wanted(t, ""),
		acted: make(chan string, 10), dial: server.Connect}
	w.want.Sinks = []topology.Sink{{Name: "crm", InHand: 32}}
	streams.Ensure(t, w.js, w.want)
	w.engine = streams.Engine(t, w.js, stream.Config{})
	if w.bucket, err = sink.OpenBucket(t.Context(), w.js, w.want.Subjects); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) config(to sink.Target) sink.Config {
	var durable jetstream.ConsumerConfig
	for _, c := range w.want.Consumers() {
		if c.Config.Durable == topology.ConsumerSink("crm") {
			durable = c.Config
		}
	}
	return sink.Config{
		Name: "crm", Target: to, JetStream: w.js, Stream: topology.Outcomes, Durable: durable,
		Read: w.engine.OutcomeAt, Rand: func() float64 { return 0 }, Drain: time.Second,
		Acted: func(_ context.Context, act string) error { w.acted <- act; return nil },
		// As short as tests are: the real ones are Schedule's.
		Schedule: []time.Duration{time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond},
	}
}

// run runs a sink until the test, or the returned function, ends it.
func (w *world) run(c sink.Config) (stop func()) {
	w.t.Helper()
	s, err := sink.New(c)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			w.t.Error(err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	w.t.Cleanup(stop)
	return stop
}

// say publishes an outcome of a user, and returns its id.
func (w *world) say(user string, of schema.Type) string {
	w.t.Helper()
	w.n++
	id := fmt.Sprintf("e%d", w.n)
	err := w.engine.Publish(w.t.Context(), schema.Event{
		ID: id, Source: "/renewd", Type: of, Provider: "propelauth", User: user, Time: time.Now(),
		Data: []byte(cmp.Or(w.data, `{}`)),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) look() sink.Standing {
	w.t.Helper()
	outcomes, err := w.js.Stream(w.t.Context(), topology.Outcomes)
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := w.bucket.Look(w.t.Context(), outcomes, "crm", time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// One user's outcome that is refused again and again waits, the user's later ones wait behind it in
// their order, and no other user's wait. What fails for good is a dead letter, and comes back by a
// retry.
func TestOneUsersFailureHoldsOnlyThatUser(t *testing.T) {
	w := newWorld(t)
	to := &receiver{}
	refuses := func(user string) func(schema.Event) error {
		return func(e schema.Event) error {
			if e.User == user {
				return &sink.Fault{Blame: sink.Refused, Err: errors.New("answered 400")}
			}
			return nil
		}
	}
	to.failing(refuses("mallory"))
	w.run(w.config(to))
	var bad, good []string
	for range 20 {
		bad = append(bad, w.say("mallory", schema.UserSynced))
		good = append(good, w.say("alice", schema.UserSynced))
	}
	eventually(t, "alice's outcomes", func() bool { return len(to.ids("alice")) == len(good) })
	if got := to.ids("alice"); !slices.Equal(got, good) {
		t.Errorf("alice's came as %v, want %v", got, good)
	}
	eventually(t, "mallory's outcomes are dead letters",
		func() bool { return w.look().Dead == len(bad) })
	letters, err := w.bucket.Letters(t.Context(), "crm")
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range letters {
		if l.ID != bad[i] || l.User != "mallory" || l.Tries != 4 || l.Error != "answered 400" {
			t.Errorf("dead letter %d: %+v, want %s", i, l, bad[i])
		}
	}
	to.failing(nil)
	if err := w.bucket.Retry(t.Context(), "crm", schema.Event{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "mallory's outcomes after a retry",
		func() bool { return len(to.ids("mallory")) == len(bad) })
	if got := to.ids("mallory"); !slices.Equal(got, bad) {
		t.Errorf("mallory's came as %v, want %v", got, bad)
	}
	eventually(t, "nothing waits and nothing is dead",
		func() bool { s := w.look(); return s.Dead+s.Waiting == 0 })
}

// While the target as a whole is down everything waits in the stream, and when it is back all of it
// is delivered, each user's in its order, and none is a dead letter.
func TestTargetDownLosesNothing(t *testing.T) {
	for name, fault := range map[string]error{
		"not reached": &sink.Fault{Blame: sink.Unreachable, Err: errors.New("connection refused")},
		"failing":     errors.New("answered 500"),
		"throttling": &sink.Fault{Blame: sink.Throttled, After: time.Second,
			Err: errors.New("answered 429")},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			to := &receiver{}
			to.failing(func(schema.Event) error { return fault })
			c := w.config(to)
			c.Schedule = sink.Schedule()
			w.run(c)
			want := map[string][]string{}
			for i := range 100 {
				user := fmt.Sprintf("u%d", i%20)
				want[user] = append(want[user], w.say(user, schema.UserSynced))
			}
			eventually(t, "the sink is down", func() bool { return w.look().State == "down" })
			to.failing(nil)
			eventually(t, "all of it", func() bool { return len(to.ids("")) == 100 })
			for user, ids := range want {
				if got := to.ids(user); !slices.Equal(got, ids) {
					t.Errorf("%s: %v, want %v", user, got, ids)
				}
			}
			eventually(t, "the sink is live",
				func() bool {
					s := w.look()
					return s.State == sink.Live && s.LagSeconds == 0 &&
						s.Dead == 0
				})
		})
	}
}

// A receiver that is gone disables its sink, which is told. A resumed sink goes on where it was.
func TestGoneDisables(t *testing.T) {
	w := newWorld(t)
	to := &receiver{}
	to.failing(func(schema.Event) error {
		return &sink.Fault{Blame: sink.Gone, Err: errors.New("answered 410")}
	})
	w.run(w.config(to))
	ids := []string{w.say("alice", schema.UserSynced), w.say("bob", schema.UserSignedOut)}
	if act := testkit.Receive(t, w.acted); act != schema.ActSinksDisable {
		t.Errorf("told was %s", act)
	}
	eventually(t, "it is disabled", func() bool { return w.look().State == sink.Disabled })
	if s := w.look(); s.Reason != "answered 410" {
		t.Errorf("%+v", s)
	}
	to.failing(nil)
	if err := w.bucket.SetState(t.Context(), "crm", sink.State{State: sink.Live}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what waited", func() bool { return len(to.ids("")) == len(ids) })
}

// Of many deliveries to a receiver that is gone, one disables the sink, and none is tried again
// before the sink has stopped.
func TestGoneDisablesOnce(t *testing.T) {
	w := newWorld(t)
	to := &receiver{}
	tries := 0
	to.failing(func(schema.Event) error {
		tries++
		return &sink.Fault{Blame: sink.Gone, Err: errors.New("answered 410")}
	})
	for i := range 30 {
		w.say(fmt.Sprint("u", i), schema.UserSynced)
	}
	stop := w.run(w.config(to))
	eventually(t, "it is disabled", func() bool { return w.look().State == sink.Disabled })
	stop()
	if told := len(w.acted); told != 1 || tries > 8 {
		t.Errorf("it was told %d times after %d tries, want once, after 8 at most", told, tries)
	}
}

// A paused sink delivers nothing, also in a process that starts later.
func TestPause(t *testing.T) {
	w := newWorld(t)
	to := &receiver{}
	if err := w.bucket.SetState(t.Context(), "crm",
		sink.State{State: sink.Paused, By: "jo"}); err != nil {
		t.Fatal(err)
	}
	stop := w.run(w.config(to))
	w.say("alice", schema.UserSynced)
	eventually(t, "a status", func() bool {
		s := w.look()
		return s.State == sink.Paused &&
			s.LagSeconds > 0
	})
	stop()
	if got := to.ids(""); len(got) > 0 {
		t.Errorf("a paused sink delivered %v", got)
	}
	if err := w.bucket.SetState(t.Context(), "crm", sink.State{State: sink.Live}); err != nil {
		t.Fatal(err)
	}
	w.run(w.config(to))
	eventually(t, "it goes on", func() bool { return len(to.ids("")) == 1 })
}

// A replay delivers again what was stored since, and a durable that vanished goes on where it was.
func TestReplay(t *testing.T) {
	w := newWorld(t)
	to := &receiver{}
	w.run(w.config(to))
	old := w.say("alice", schema.UserSynced)
	eventually(t, "the first", func() bool { return slices.Equal(to.ids(""), []string{old}) })
	outcomes, err := w.js.Stream(t.Context(), topology.Outcomes)
	if err != nil {
		t.Fatal(err)
	}
	since := outcomes.CachedInfo().State.FirstTime.Add(time.Nanosecond)
	recent := []string{w.say("alice", schema.UserSynced), w.say("bob", schema.UserSynced)}
	eventually(t, "the others", func() bool { return len(to.ids("")) == 3 })
	if err := w.bucket.Replay(t.Context(), "crm", since); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the others again", func() bool { return len(to.ids("")) == 5 })
	if got := to.ids("")[3:]; !slices.Contains(got, recent[0]) || !slices.Contains(got, recent[1]) {
		t.Errorf("replayed was %v, want %v", got, recent)
	}
	w.say("carol", schema.UserSynced)
	eventually(t, "what comes after", func() bool { return len(to.ids("carol")) == 1 })
}

// Two processes with the same sink: one delivers at a time, and the other goes on where it stopped.
func TestAnotherProcessGoesOn(t *testing.T) {
	w := newWorld(t)
	first, second := &receiver{}, &receiver{}
	c := w.config(first)
	c.Schedule = sink.Schedule()
	stop := w.run(c)
	w.say("alice", schema.UserSynced)
	eventually(t, "the first process", func() bool { return len(first.ids("")) == 1 })
	w.run(w.config(second))
	first.failing(func(schema.Event) error {
		return &sink.Fault{Blame: sink.Unreachable, Err: errors.New("gone away")}
	})
	ids := []string{w.say("alice", schema.UserSynced), w.say("alice", schema.UserSynced),
		w.say("bob", schema.UserSynced)}
	eventually(t, "they are taken", func() bool { return w.look().State == "down" })
	stop()
	eventually(t, "the second process", func() bool { return len(second.ids("")) == 3 })
	if got := second.ids("alice"); !slices.Equal(got, ids[:2]) {
		t.Errorf("alice's came as %v, want %v", got, ids[:2])
	}
}

// Who has acknowledged a user's sign-out is known until the user is erased, and an erasure leaves
// nothing of the user.
func TestToldAndErased(t *testing.T) {
	w := newWorld(t)
	to := &receiver{}
	w.run(w.config(to))
	k := grant.Key{Provider: "propelauth", User: "jane@example.com"}
	id := w.say(k.User, schema.UserSignedOut)
	eventually(t, "the proof", func() bool {
		told, err := w.bucket.ToldOf(t.Context(), "crm", k.Provider, k.User)
		return err == nil && told != nil && told.ID == id && !told.At.IsZero()
	})
	to.failing(func(schema.Event) error {
		return &sink.Fault{Blame: sink.Refused,
			Err: errors.New("no")}
	})
	w.say(k.User, schema.UserSynced)
	eventually(t, "a dead letter", func() bool { return w.look().Dead == 1 })
	if err := w.engine.Erase(t.Context(), k, grant.Position{}); err != nil {
		t.Fatal(err)
	}
	info, err := w.js.Stream(t.Context(), topology.BucketStream(topology.BucketSinks))
	if err != nil {
		t.Fatal(err)
	}
	state, err := info.Info(t.Context(),
		jetstream.WithSubjectFilter("$KV.renewd_sinks.*.crm.propelauth.>"))
	if err != nil || len(state.State.Subjects) > 0 {
		t.Errorf("left are %v, %v", state.State.Subjects, err)
	}
}

// An erasure while an outcome waits: what waits goes, and the user.forgotten is delivered.
func TestErasedWhileWaiting(t *testing.T) {
	w := newWorld(t)
	to := &receiver{}
	to.failing(func(e schema.Event) error {
		if e.Type == schema.UserSynced {
			return &sink.Fault{Blame: sink.Refused, Err: errors.New("no")}
		}
		return nil
	})
	c := w.config(to)
	c.Schedule = sink.Schedule()
	w.run(c)
	w.say("jane", schema.UserSynced)
	eventually(t, "it waits", func() bool { return w.look().Waiting == 1 })
	if err := w.engine.Erase(t.Context(), grant.Key{Provider: "propelauth", User: "jane"},
		grant.Position{}); err != nil {
		t.Fatal(err)
	}
	id := w.say("jane", schema.UserForgotten)
	eventually(t, "the erasure is told", func() bool {
		return slices.Equal(to.ids("jane"),
			[]string{id})
	})
	eventually(t, "nothing waits", func() bool { return w.look().Waiting == 0 })
}

// An outcome that is delivered while its user is erased leaves no proof behind that names the user.
func TestErasedWhileDelivered(t *testing.T) {
	w := newWorld(t)
	k := grant.Key{Provider: "propelauth", User: "jane"}
	to := &receiver{}
	to.failing(func(e schema.Event) error {
		if e.Type == schema.UserSignedOut {
			return w.engine.Erase(t.Context(), k, grant.Position{}) // and then it is delivered
		}
		return nil
	})
	w.run(w.config(to))
	w.say(k.User, schema.UserSignedOut)
	w.say(k.User, schema.UserForgotten)
	eventually(t, "both", func() bool { return len(to.ids(k.User)) == 2 })
	told, err := w.bucket.ToldOf(t.Context(), "crm", k.Provider, k.User)
	if told != nil || err != nil {
		t.Errorf("left is %+v, %v", told, err)
	}
}

// once is a receiver that wants each outcome once, by the version in its data.
type once struct{ receiver }

func (o *once) Version(e schema.Event) int64 {
	var data struct{ Version int64 }
	if json.Unmarshal(e.Data, &data) != nil {
		return 0
	}
	return data.Version
}

// A target that wants each outcome once gets none again by a replay, by another process, or after
// it came in another order; it gets those that are newer.
func TestOnce(t *testing.T) {
	w := newWorld(t)
	to := &once{}
	c := w.config(to)
	stop := w.run(c)
	say := func(version int) {
		w.data = fmt.Sprintf(`{"version":%d}`, version)
		w.say("alice", schema.UserReauthRequired)
	}
	say(7)
	say(7)
	say(6)
	w.data = `{}`
	last := w.say("bob", schema.UserReauthRequired)
	eventually(t, "all of it", func() bool { return slices.Contains(to.ids("bob"), last) })
	eventually(t, "nothing queues", func() bool { return w.look().Queued == 0 })
	if got := to.ids("alice"); len(got) != 1 {
		t.Errorf("alice's came as %v, want one", got)
	}
	if err := w.bucket.Replay(t.Context(), "crm", time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what has no version comes again", func() bool { return len(to.ids("bob")) == 2 })
	w.data = `{"version":9}`
	carol := w.say("carol", schema.UserForgotten)
	eventually(t, "carol's erasure", func() bool { return slices.Contains(to.ids("carol"), carol) })
	stop()
	if told, err := w.bucket.ToldOf(t.Context(), "crm", "propelauth", "carol"); told != nil ||
		err != nil {
		t.Errorf("after an erasure %+v is kept, %v", told, err)
	}
	w.run(c)
	say(8)
	eventually(t, "the newer one", func() bool { return len(to.ids("alice")) == 2 })
	eventually(t, "the proof of the newer one", func() bool {
		told, err := w.bucket.ToldOf(t.Context(), "crm", "propelauth", "alice")
		return err == nil && told != nil && told.Version == 8
	})
}

// An outcome that a target keeps from its receiver is done. It is no failure, and no proof that the
// receiver knows of the sign-out.
func TestWithheldProvesNothing(t *testing.T) {
	w := newWorld(t)
	to := &receiver{}
	to.failing(func(e schema.Event) error {
		if e.User == "alice" {
			return sink.ErrWithheld
		}
		return nil
	})
	w.run(w.config(to))
	for range 4 { // more than failures in a row that stop a sink
		w.say("alice", schema.UserReauthRequired)
	}
	held := w.say("alice", schema.UserReauthRequired)
	w.say("bob", schema.UserReauthRequired)
	told := func(user string) *sink.Told {
		told, err := w.bucket.ToldOf(t.Context(), "crm", "propelauth", user)
		if err != nil {
			t.Fatal(err)
		}
		return told
	}
	eventually(t, "both are done", func() bool {
		alice := told("alice")
		return alice != nil && alice.ID == held && told("bob") != nil
	})
	if !told("alice").Withheld || told("bob").Withheld {
		t.Errorf("%+v, %+v", told("alice"), told("bob"))
	}
	if s := w.look(); s.State != sink.Live || s.Reason != "" || s.Waiting+s.Dead > 0 {
		t.Errorf("the sink is %+v", s)
	}
}
