package runner

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/internal/pull"
)

// Runner takes messages from one durable pull consumer and hands them to a Handler.
type Runner struct {
	Config
	meters meters
}

// New checks c and fills in its defaults. Errors name the field.
func New(c Config) (*Runner, error) {
	c = c.WithDefaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	m, err := newMeters(c)
	if err != nil {
		return nil, fmt.Errorf("runner: Meter: %w", err)
	}
	return &Runner{c, m}, nil
}

// Run takes and handles messages until ctx ends, and returns nil after that, when every handler has
// returned. The handlers may go on for Config.Drain and are then cancelled with cause ErrShutdown.
// Messages fetched and not begun go back at once. Run waits for a missing stream or consumer and
// for a lost connection. The only error is a connection closed for good. Run may be called again
// after it returned, and concurrently: each call has its own slots.
func (r *Runner) Run(ctx context.Context) error {
	work, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	x := &run{
		Runner: r,
		nc:     r.JetStream.Conn(),
		clock:  newClock(),
		free:   make(chan struct{}, r.Slots),
		tasks:  make(chan *task),
		ticker: time.NewTicker(r.Beat / 4),
		hand:   map[uint64]*task{},
	}
	defer x.ticker.Stop()
	x.inbox = x.nc.NewInbox()
	answers, err := x.nc.Subscribe(x.inbox+".*.*", x.answered)
	if err != nil {
		return fmt.Errorf("subscribe to the answers to heartbeats: %w", err)
	}
	defer func() { _ = answers.Unsubscribe() }()

	var slots, heartbeats sync.WaitGroup
	for range r.Slots {
		x.free <- struct{}{}
		slots.Go(func() {
			for t := range x.tasks {
				x.handle(t)
			}
		})
	}
	quiet := make(chan struct{})
	heartbeats.Go(func() { x.heartbeat(quiet) })

	err = x.intake(ctx, work)
	close(x.tasks)
	drain := time.AfterFunc(r.Drain, func() { stop(ErrShutdown) })
	slots.Wait()
	drain.Stop()
	close(quiet)
	heartbeats.Wait()
	if x.nc.IsConnected() {
		// The last naks, in case the caller closes the connection now.
		_ = x.nc.FlushTimeout(time.Second)
	}
	return err
}

// run is one call of Run.
type run struct {
	*Runner
	nc     *nats.Conn
	clock  clock
	inbox  string        // answers to heartbeats come to inbox.<task>.<round>
	free   chan struct{} // a token for each free slot
	tasks  chan *task    // to the slots; never blocks for long, as a token was taken first
	ticker *time.Ticker

	repeats repeats // lines about redelivered messages

	mu   sync.Mutex
	last uint64
	hand map[uint64]*task // all messages being handled
}

// task is one message on its way through a slot. Its handler and its keepers run under ctx.
type task struct {
	id  uint64
	m   *Message
	ctx context.Context
}

// intake fetches until ctx ends.
func (x *run) intake(ctx, work context.Context) error {
	var wait pull.Backoff
	var failing string // the remedy; empty: nothing is wrong
	for ctx.Err() == nil {
		err := x.fetch(ctx, work, func() {
			if failing != "" {
				x.Logger.Info("taking messages again", "stream", x.Stream, "consumer", x.Durable)
			}
			failing, wait = "", pull.Backoff{}
		})
		if x.Missing != nil && errors.Is(err, jetstream.ErrConsumerNotFound) && ctx.Err() == nil {
			err = x.Missing(ctx)
		}
		switch {
		case ctx.Err() != nil:
		case x.nc.IsClosed():
			return fmt.Errorf("take messages of %s/%s: %w", x.Stream, x.Durable,
				nats.ErrConnectionClosed)
		case err != nil && failing != hint(err):
			failing = hint(err)
			x.Logger.Warn("no messages for now, trying again", "stream", x.Stream,
				"consumer", x.Durable, "error", err, "hint", failing)
			wait.Wait(ctx)
		default:
			wait.Wait(ctx)
		}
	}
	return nil
}

func hint(err error) string {
	switch {
	case errors.Is(err, ErrVanished):
		return "have it made (renewd subscribers add), or allow this user to make it"
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrConsumerNotFound):
		return "create it: renewd streams apply"
	case errors.Is(err, errConfig):
		return "repair it: renewd streams apply"
	}
	return "is the NATS server up, and may this user pull from the consumer?"
}

var errConfig = errors.New("unfit consumer")

// ErrVanished is wrapped by Config.Missing for a durable its caller may not make.
var ErrVanished = errors.New("the durable vanished, and nothing is heard until it is back")

// LookupLimit bounds one look at the durable; lookEvery is how often a subscription looks.
const (
	LookupLimit = 2 * time.Second
	lookEvery   = 10 * time.Second
)

// lookUp finds the durable, and refuses a durable that a runner cannot work with.
func (x *run) lookUp(ctx context.Context) (jetstream.ConsumerConfig, error) {
	ctx, done := context.WithTimeout(ctx, LookupLimit) // without a leader there is no answer at all
	defer done()
	c, err := x.JetStream.Consumer(ctx, x.Stream, x.Durable)
	if err != nil {
		return jetstream.ConsumerConfig{}, fmt.Errorf("look up consumer %s/%s: %w", x.Stream,
			x.Durable, err)
	}
	config := c.CachedInfo().Config
	if config.AckPolicy != jetstream.AckExplicitPolicy || config.AckWait <= 0 ||
		config.MaxDeliver > 0 {
		return config, fmt.Errorf("%w: %s/%s: want explicit acks, an AckWait and no MaxDeliver",
			errConfig, x.Stream, x.Durable)
	}
	if x.Looked != nil {
		x.Looked(c.CachedInfo())
	}
	return config, nil
}

// fetch looks the durable up and takes messages from it until ctx ends or something is wrong. ready
// is called after each request that the server answered.
func (x *run) fetch(ctx, work context.Context, ready func()) error {
	if !x.nc.IsConnected() {
		return nats.ErrDisconnected
	}
	config, err := x.lookUp(ctx)
	if err != nil {
		return err
	}
	every := min(x.Beat, config.AckWait/3)
	x.ticker.Reset(max(every/4, time.Millisecond))
	// A lease counts from before the request, so a request must be short beside it.
	p, err := pull.New(x.JetStream, x.Stream, x.Durable, min(config.AckWait/10, time.Second),
		x.Slots)
	if err != nil {
		return err
	}
	defer p.Close()
	looked := x.clock.now()
	for ctx.Err() == nil {
		if now := x.clock.now(); x.Looked != nil && now.since(looked) > lookEvery {
			if _, err := x.lookUp(ctx); err != nil {
				return err
			}
			looked = now
		}
		n := x.reserve(ctx)
		if n == 0 || !x.awaitReady(ctx) {
			x.release(n)
			return nil
		}
		asked := x.clock.now()
		take := func(msg *nats.Msg) {
			x.take(ctx, work, msg, newLease(x.clock.now, asked, config.AckWait, every))
		}
		got, err := p.Pull(ctx, n, take)
		if ctx.Err() != nil {
			got += p.Drain(n-got, take)
		}
		x.release(n - got)
		if err != nil {
			return err
		}
		ready()
	}
	return nil
}

// awaitReady waits until messages may be taken; false if ctx ended first.
func (x *run) awaitReady(ctx context.Context) bool {
	if x.Ready == nil {
		return true
	}
	var wait pull.Backoff
	for err := x.Ready(); err != nil; err = x.Ready() {
		if !wait.Waited() {
			x.Logger.Warn("not ready: no messages are taken", "stream", x.Stream,
				"consumer", x.Durable, "error", err)
		}
		if wait.Wait(ctx); ctx.Err() != nil {
			return false
		}
	}
	if wait.Waited() {
		x.Logger.Info("ready: taking messages again", "stream", x.Stream, "consumer", x.Durable)
	}
	return true
}

// reserve waits for a free slot and takes all free slots; 0 if ctx ended first.
func (x *run) reserve(ctx context.Context) int {
	select {
	case <-ctx.Done():
		return 0
	case <-x.free:
	}
	for n := 1; ; n++ {
		select {
		case <-x.free:
		default:
			return n
		}
	}
}

func (x *run) release(n int) {
	for range n {
		x.free <- struct{}{}
	}
}

// take starts the lease l on the message raw and gives the message to a reserved slot. A message
// that comes after ctx ended goes back. A message so late that another worker may have it by now is
// left alone.
func (x *run) take(ctx, work context.Context, raw *nats.Msg, l *lease) {
	m, err := newMessage(raw)
	switch {
	case err != nil:
		x.Logger.Error("dropped a message that does not say where it comes from",
			"subject", raw.Subject, "error", err)
	case !l.isHeld():
		x.Logger.Warn("a message came too late to be trusted", "subject", m.Subject,
			"sequence", m.Sequence)
	case ctx.Err() != nil:
		x.send(m, "-NAK")
	default:
		x.send(m, "+WPI")
		m.lease, m.taken = l, l.now().mono
		t := &task{m: m}
		t.ctx, l.cancel = context.WithCancelCause(work)
		x.mu.Lock()
		x.last++
		t.id = x.last
		x.hand[t.id] = t
		x.mu.Unlock()
		if x.Taken != nil {
			x.Taken(m)
		}
		x.tasks <- t
		return
	}
	x.release(1)
}

// drop ends the rest of a task.
func (x *run) drop(t *task) {
	x.mu.Lock()
	delete(x.hand, t.id)
	x.mu.Unlock()
	t.m.lease.cancel(nil)
	x.release(1)
}

// heartbeat renews the leases of all messages being handled until quiet is closed. Every heartbeat
// asks for an answer: a publish alone proves nothing.
func (x *run) heartbeat(quiet <-chan struct{}) {
	var keeping sync.WaitGroup
	defer keeping.Wait()
	for {
		select {
		case <-quiet:
			return
		case <-x.ticker.C:
		}
		x.mu.Lock()
		hand := slices.Collect(maps.Values(x.hand))
		x.mu.Unlock()
		for _, t := range hand {
			round, extend := t.m.lease.due()
			if round == 0 {
				continue
			}
			reply := x.inbox + "." + strconv.FormatUint(t.id, 10) + "." +
				strconv.FormatUint(round, 10)
			if err := x.nc.PublishRequest(t.m.raw.Reply, reply, []byte("+WPI")); err != nil {
				x.Logger.Warn("heartbeat not sent", "subject", t.m.Subject,
					"sequence", t.m.Sequence, "error", err)
			}
			if extend {
				keeping.Go(func() { x.extend(t) })
			}
		}
	}
}

func (x *run) extend(t *task) {
	if err := t.m.lease.extend(t.ctx); err != nil && t.ctx.Err() == nil {
		x.Logger.Warn("what hangs on the lease was not extended", "subject", t.m.Subject,
			"sequence", t.m.Sequence, "error", err)
	}
}

// answered takes the server's answer to a heartbeat.
func (x *run) answered(msg *nats.Msg) {
	if msg.Header.Get("Status") == "503" {
		return // no responder, so no proof
	}
	id, round, _ := strings.Cut(strings.TrimPrefix(msg.Subject, x.inbox+"."), ".")
	n, err1 := strconv.ParseUint(id, 10, 64)
	r, err2 := strconv.ParseUint(round, 10, 64)
	if err1 != nil || err2 != nil {
		return
	}
	x.mu.Lock()
	t := x.hand[n]
	x.mu.Unlock()
	if t != nil {
		t.m.lease.answered(r)
	}
}

// send publishes one word about a message, unconfirmed.
func (x *run) send(m *Message, word string) {
	if err := x.nc.Publish(m.raw.Reply, []byte(word)); err != nil {
		x.Logger.Warn("not sent", "word", strings.Fields(word)[0], "subject", m.Subject,
			"sequence", m.Sequence, "error", err)
	}
}
