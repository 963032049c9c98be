package runner

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// handle brings one task to its end: handler, verdict, answer to the server. The lease is renewed
// until all three are over.
func (x *run) handle(t *task) {
	began := time.Now()
	x.meters.took(t.m)
	ctx, span := startSpan(t.ctx, x.Tracer, x.Template, x.Durable, t.m)
	v := verdictOf(x.call("handler", t.m, func() error { return x.Handler(ctx, t.m) }))
	v = x.ack(ctx, t.m, v)
	endSpan(span, v)
	x.meters.handled(v.kind, time.Since(began))
	x.drop(t)
}

// call runs one of the caller's functions. A panic becomes an error, and counts as a failure of
// this message alone. Only a panic value of the runtime's own is logged, since any other value
// might quote the body.
func (x *run) call(what string, m *Message, f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			kind := fmt.Sprintf("%T", v)
			if e, ok := v.(runtime.Error); ok {
				kind = e.Error()
			}
			x.Logger.Error(what+" panicked", "subject", m.Subject, "sequence", m.Sequence,
				"panic", kind, "stack", string(debug.Stack()))
			err = Retry(fmt.Errorf("%s: %w: %s", what, ErrPanicked, kind), retryAfter)
		}
	}()
	return f()
}

// ack tells the server the verdict on the message, and returns the verdict told. ack goes on after
// ctx has ended.
func (x *run) ack(ctx context.Context, m *Message, v *verdict) *verdict {
	ctx = context.WithoutCancel(ctx)
	span := trace.SpanFromContext(ctx)
	if v.kind == reject && x.Rejected != nil {
		if err := x.call("Rejected", m, func() error {
			return x.Rejected(ctx, m, v.err)
		}); err != nil {
			x.log(slog.LevelError, "rejection could not be recorded", m, err)
			v = &verdict{retry, err, retryAfter}
		}
	}
	if v.kind == retry && x.PutOff != nil && m.Held() && m.Exhausted() {
		v = x.putOff(ctx, m, v)
	}
	switch {
	case v.kind == reject:
		x.log(slog.LevelWarn, "message rejected", m, v.err)
		x.send(m, "+TERM "+v.reason())
		span.AddEvent("term")
	case v.kind != done && !m.Held():
		// A nak, or an ack, would take the message from its present worker.
		x.log(slog.LevelWarn, "lease lost: left to another worker", m, v.err)
		return &verdict{abandoned, v.err, 0}
	case v.kind == retry:
		x.again(m, v)
		span.AddEvent("nak")
	default:
		x.acknowledge(m)
		span.AddEvent("ack")
	}
	return v
}

// putOffLimit bounds a call of Config.PutOff.
const putOffLimit = 10 * time.Second

// putOff has an exhausted message stored elsewhere. If PutOff fails, v stands.
func (x *run) putOff(ctx context.Context, m *Message, v *verdict) *verdict {
	ctx, stop := context.WithTimeout(ctx, putOffLimit)
	defer stop()
	if err := x.call("PutOff", m, func() error { return x.PutOff(ctx, m, v.err) }); err != nil {
		x.log(slog.LevelError, "message could not be put off", m, err)
		return v
	}
	x.log(slog.LevelWarn, "message put off", m, v.err)
	return &verdict{putOff, v.err, 0}
}

// again has the message delivered once more, after the verdict's delay, MaxDelay at most.
func (x *run) again(m *Message, v *verdict) {
	after := v.after
	if after > x.MaxDelay {
		x.Logger.Warn("retry cut short: arm a timer for longer waits", "subject", m.Subject,
			"asked", after, "limit", x.MaxDelay)
		after = x.MaxDelay
	}
	// One repeat is normal: another worker was there first, or a server was away for a moment.
	level := slog.LevelDebug
	what := "message comes again"
	if m.Deliveries > 2 {
		said, left := x.repeats.say(time.Now())
		switch {
		case said && left > 0:
			level, what = slog.LevelWarn,
				fmt.Sprintf("%s, as %d did since the last line like this", what, left)
		case said:
			level = slog.LevelWarn
		}
	}
	x.log(level, what, m, v.err)
	x.send(m, nak(after))
}

// repeats lets one line in a minute through. In an outage each waiting message would otherwise log
// a line each second, and all lines say the same. repeats is safe for concurrent use.
type repeats struct {
	mu   sync.Mutex
	next time.Time
	left int
}

// say reports whether a line may be written at now, and how many lines were left out before it.
func (r *repeats) say(now time.Time) (ok bool, left int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Before(r.next) {
		r.left++
		return false, 0
	}
	left, r.left, r.next = r.left, 0, now.Add(time.Minute)
	return true, left
}

func nak(after time.Duration) string {
	if after <= 0 {
		return "-NAK"
	}
	return `-NAK {"delay":` + strconv.FormatInt(int64(after), 10) + "}"
}

const (
	ackTries   = 3
	ackTimeout = 2 * time.Second
)

// acknowledge waits for the server's answer, because a lost ack repeats all the work. Without an
// answer the message comes again and its handler finds the work done.
func (x *run) acknowledge(m *Message) {
	var err error
	for range ackTries {
		if _, err = x.nc.Request(m.raw.Reply, []byte("+ACK"), ackTimeout); err == nil {
			return
		}
	}
	x.log(slog.LevelWarn, "ack not answered: the message will come again", m, err)
}

func (x *run) log(level slog.Level, what string, m *Message, err error) {
	x.Logger.Log(context.Background(), level, what, "subject", m.Subject, "sequence", m.Sequence,
		"deliveries", m.Deliveries, "error", err)
}
