package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// app is a service with its own name.
type app struct {
	source string
	*publishers.Publisher
}

// newApp is an app just started, which has not seen renewd's public key yet.
func newApp(w *world, source string) (app, error) {
	p, err := publishers.New(w.nc, publishers.WithSource(source))
	return app{source, p}, err
}

// fate is a possible answer to a command besides an outcome of its user.
type fate string

const (
	rejectable fate = "rejectable" // message.rejected is an answer too
	rejected   fate = "rejected"   // message.rejected is the only answer
)

// command is a command to renewd.
type command struct {
	who      *person
	id       string
	source   string
	kind     schema.Type
	want     string
	minValid time.Duration
	fate     fate
	tried    time.Time // first try: a login's tokens are older
	sent     time.Time // not later than the server took the command
	accepted time.Time // when the server's acknowledgement came
	sequence uint64    // in its stream
	session  int       // a login's session
}

// persist tries until renewd has taken the command, as a careful app would. The id makes retries
// safe.
func (p *people) persist(
	ctx context.Context, c command, send func(context.Context) (publishers.Receipt, error),
) (command, bool) {
	c.tried = time.Now()
	for ctx.Err() == nil {
		c.sent = time.Now()
		try, cancel := context.WithTimeout(ctx, 3*time.Second)
		r, err := send(try)
		cancel()
		if err != nil {
			continue
		}
		c.accepted, c.sequence = time.Now(), r.Sequence
		if r.Duplicate {
			c.sent = c.tried
		}
		if c.id == "" {
			c.id = fmt.Sprintf("%s-%d", r.Stream, r.Sequence)
		}
		p.mu.Lock()
		p.commands = append(p.commands, c)
		p.mu.Unlock()
		return c, true
	}
	return c, false
}

func newID(kind schema.Type) string {
	return fmt.Sprintf("%s-%d-%d", kind, time.Now().UnixNano(), rand.Uint32())
}

// give publishes a login with these tokens.
func (p *people) give(
	ctx context.Context, x *person, by app, tokens publishers.Tokens, f fate,
) (command, bool) {
	c := command{
		who:     x,
		id:      newID(schema.UserLogin),
		source:  by.source,
		kind:    schema.UserLogin,
		fate:    f,
		session: sessionOf(tokens.RefreshToken),
	}
	if tokens.RefreshToken == "" {
		c.session = x.session
	}
	return p.persist(ctx, c, func(ctx context.Context) (publishers.Receipt, error) {
		return by.Login(ctx, x.provider.id, x.name, tokens, publishers.WithID(c.id))
	})
}

// again publishes a sealed login as it is.
func (p *people) again(ctx context.Context, c command, m *nats.Msg) {
	p.persist(ctx, c, func(ctx context.Context) (publishers.Receipt, error) {
		return p.raw(ctx, m)
	})
}

// raw publishes a message not made by an SDK.
func (p *people) raw(ctx context.Context, m *nats.Msg) (publishers.Receipt, error) {
	ack, err := p.world.js.PublishMsg(ctx, m)
	if err != nil {
		return publishers.Receipt{}, err
	}
	return publishers.Receipt{Stream: ack.Stream, Sequence: ack.Sequence}, nil
}

// ask publishes a request.
func (p *people) ask(ctx context.Context, x *person, by app, id string, due schema.RefreshDue) {
	c := command{
		who:      x,
		id:       id,
		source:   by.source,
		kind:     schema.UserRefreshDue,
		want:     due.Want,
		minValid: time.Duration(due.MinValidSeconds) * time.Second,
	}
	p.persist(ctx, c, func(ctx context.Context) (publishers.Receipt, error) {
		return by.RefreshDue(ctx, x.provider.id, x.name, due, publishers.WithID(id))
	})
}

// askBare publishes a request as a person at a terminal does, without any header.
func (p *people) askBare(ctx context.Context, x *person, tokens bool) {
	m := &nats.Msg{Subject: x.subject(schema.UserRefreshDue)}
	c := command{who: x, source: "/nats", kind: schema.UserRefreshDue}
	if tokens {
		m.Data, c.want = []byte(`{"want":"tokens"}`), schema.WantTokens
	}
	p.persist(ctx, c, func(ctx context.Context) (publishers.Receipt, error) {
		return p.raw(ctx, m)
	})
}

// request asks for a person in a random way, like an app. Ids of different sources collide, and so
// do ids of different users.
func (p *people) request(ctx context.Context, x *person, r *rand.Rand) {
	due := schema.RefreshDue{Reason: "chaos"}
	switch r.IntN(5) {
	case 0, 1:
		due.Want = schema.WantTokens
	case 2:
		due.MinValidSeconds = int(p.world.Life.Seconds()) / 2
	}
	by := p.apps[r.IntN(len(p.apps))]
	switch r.IntN(30) {
	case 0, 1, 2:
		p.askBare(ctx, x, due.Want == schema.WantTokens)
	case 3, 4, 5:
		id := newID("colliding")
		for _, a := range p.apps {
			p.ask(ctx, x, a, id, due)
		}
	case 6:
		p.ask(ctx, x, by, fmt.Sprintf("nightly-%d", time.Now().Unix()/10), due)
	default:
		p.ask(ctx, x, by, newID(schema.UserRefreshDue), due)
	}
}
