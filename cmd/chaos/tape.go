package main

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// tape remembers messages that the streams forget: the newest sealed login of each user, and up to
// which login each erasure reached.
type tape struct {
	mu     sync.Mutex
	logins map[string]*nats.Msg // by subject
	erased map[string]erasure   // by the subject of logins
}

// erasure is a removal of a user's logins from LOGINS.
type erasure struct {
	before uint64 // all logins with a lower sequence
	at     time.Time
}

// loginSubject is where a person's logins are published.
func (x *person) loginSubject() string { return x.subject(schema.UserLogin) }

// outsideSubject is where a source publishes a person's logins.
func (x *person) outsideSubject() string {
	return schema.Subjects{}.Of(schema.Address{
		Type: schema.UserLogin, Provider: x.provider.id, User: x.name, Sender: senders.Source,
	})
}

func (x *person) subject(t schema.Type) string {
	return fmt.Sprintf("%s.%s.%s", t, x.provider.id, schema.EscapeUser(x.name))
}

// renewals are the subjects of RENEWALS where a person's grant may wait.
func (x *person) renewals() []string {
	due := x.subject("renewal.due")
	return []string{x.subject("renewal.timer"), due, due + ".asked", due + ".later"}
}

// newTape listens from now on. The tape misses messages sent while its connection is away.
func newTape(nc *nats.Conn) (*tape, error) {
	t := &tape{logins: map[string]*nats.Msg{}, erased: map[string]erasure{}}
	if _, err := nc.Subscribe(string(schema.UserLogin)+".>", t.login); err != nil {
		return nil, err
	}
	_, err := nc.Subscribe("$JS.API.STREAM.PURGE."+topology.Logins, t.purge)
	return t, err
}

func (t *tape) login(m *nats.Msg) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.logins[m.Subject] = m
}

func (t *tape) purge(m *nats.Msg) {
	var order struct {
		Filter   string `json:"filter"`
		Sequence uint64 `json:"seq"`
	}
	if json.Unmarshal(m.Data, &order) != nil || order.Filter == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.erased[order.Filter] = erasure{order.Sequence, time.Now()}
}

// newest is a copy of the newest login on a subject, without the header by which the server drops
// repetitions. The result is nil if the subject has no login.
func (t *tape) newest(subject string) *nats.Msg {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.logins[subject]
	if m == nil {
		return nil
	}
	again := &nats.Msg{Subject: subject, Data: m.Data, Header: nats.Header{}}
	for name, values := range m.Header {
		again.Header[name] = values
	}
	delete(again.Header, nats.MsgIdHdr)
	return again
}

// erasure returns the last erasure since a moment of the logins on a subject.
func (t *tape) erasure(subject string, since time.Time) (erasure, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.erased[subject]
	return e, ok && e.at.After(since)
}
