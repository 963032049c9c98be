// Package door answers requests for access tokens over NATS.
//
// The door is a micro service of nats.go, so `nats micro ls` shows it. There is one endpoint for
// requests of renewd's own account, and one for requests whose sender an account's import names.
// All workers share the requests as a queue group. A request carries a public key made for it by
// its caller, and its answer is sealed to this key, useless to any other connection that sees it.
//
// A request that is malformed, too large, without a sound key, or of a sender who may not read is
// refused before the store is asked. The door holds a bounded number of requests, keeps nothing of
// them, and leaves all rules of when there is a token to package tokens.
package door

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/tokens"
	"github.com/renewd/renewd/schema"
)

// Name is the name of the service, as `nats micro ls` shows it.
const Name = "renewd-tokens"

// protocol is the version of requests and answers. The format grows with optional members only.
const protocol = "1.0.0"

// Tokens is the source of the answers: *tokens.Source.
type Tokens interface {
	Get(ctx context.Context, r tokens.Request) (tokens.Token, error)
	// Refused notes a request refused without a Get, and why.
	Refused(r tokens.Request, code string)
}

// Config holds the dependencies and settings of a door.
type Config struct {
	Conn     *nats.Conn
	Subjects schema.Subjects
	Tokens   Tokens
	// MayRead reports whether a sender may read the tokens of a provider's users; the sender is
	// empty where the request was published to renewd's own account. If nil, every sender may.
	MayRead func(sender, provider string) bool
	// Most is how many requests are handled at a time. More requests are told to try again. Default
	// 32,768.
	Most   int
	Logger *slog.Logger // nil: nothing is logged
}

type door struct {
	Config
	ctx   context.Context
	slots chan struct{} // one for each request being handled
}

// Run answers requests until ctx ends. Requests being handled are then answered without a wait.
func (c Config) Run(ctx context.Context) error {
	if c.Most == 0 {
		c.Most = 1 << 15
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	d := &door{Config: c, ctx: ctx, slots: make(chan struct{}, c.Most)}
	service, err := micro.AddService(c.Conn, micro.Config{
		Name: Name, Version: protocol, Description: "Access tokens of users, kept fresh by renewd",
		ErrorHandler: func(_ micro.Service, err *micro.NATSError) {
			c.Logger.Warn("token requests over NATS may go unanswered: may this NATS user "+
				"subscribe to them? See renewd nats config", "subject", err.Subject,
				"error", err.Description)
		},
	})
	if err != nil {
		return fmt.Errorf("answer token requests: %w", err)
	}
	for name, sender := range map[string]string{"own": "", "senders": schema.AnySender} {
		subject := micro.WithEndpointSubject(c.Subjects.TokenGets(sender))
		if err := service.AddEndpoint(name, micro.HandlerFunc(d.take), subject); err != nil {
			return errors.Join(fmt.Errorf("answer token requests: %w", err), service.Stop())
		}
	}
	<-ctx.Done()
	err = service.Stop()
	for range cap(d.slots) { // no request is being handled once all are taken
		d.slots <- struct{}{}
	}
	if err != nil && !c.Conn.IsClosed() {
		return fmt.Errorf("stop answering token requests: %w", err)
	}
	return nil
}

// take refuses a request at once, or answers it in a goroutine: requests come one by one.
func (d *door) take(r micro.Request) {
	if r.Reply() == "" || strings.HasPrefix(r.Reply(), "$") {
		// No caller waits for the answer. The server's own subjects begin with $: such a request
		// lay in a stream, and its answer would be taken for an ack there.
		return
	}
	q, key, no := d.read(r.Subject(), r.Data())
	if no == nil && !d.slot() {
		const message = "too many requests are under way"
		no = &schema.NoToken{Code: schema.TokenBusy, Message: message, RetryAfterSeconds: 1}
	}
	if no != nil {
		d.Tokens.Refused(q, no.Code)
		d.refuse(r, no)
		return
	}
	go func() {
		defer func() { <-d.slots }()
		d.answer(r, q, key)
	}()
}

// slot takes a free slot, if any.
func (d *door) slot() bool {
	select {
	case d.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

// read checks a request. Beside a refusal, the request holds all that could be read.
func (d *door) read(subject string, body []byte) (
	q tokens.Request, key seal.AnswerKey, no *schema.NoToken,
) {
	refuse := func(code string, message string) (tokens.Request, seal.AnswerKey, *schema.NoToken) {
		return q, seal.AnswerKey{}, &schema.NoToken{Code: code, Message: message}
	}
	a, err := d.Subjects.ParseTokenGet(subject)
	q = tokens.Request{Provider: a.Provider, User: a.User, Reader: a.Sender, Door: tokens.DoorNATS}
	if err != nil {
		return refuse(schema.TokenMalformed, err.Error())
	}
	if d.MayRead != nil && !d.MayRead(a.Sender, a.Provider) {
		return refuse(schema.TokenForbidden, forbidden(a))
	}
	if len(body) > schema.MaxTokenGet {
		message := fmt.Sprintf("%d bytes, at most %d", len(body), schema.MaxTokenGet)
		return refuse(schema.TokenMalformed, message)
	}
	var get schema.TokenGet
	if err := json.Unmarshal(body, &get); err != nil {
		return refuse(schema.TokenMalformed,
			"no JSON object with the members key and min_valid_seconds")
	}
	if key, err = seal.ParseAnswerKey(get.Key); err != nil {
		return refuse(schema.TokenMalformed, err.Error())
	}
	if least := get.MinValidSeconds; least != nil {
		if *least < 0 || *least > schema.MaxMinValid {
			message := fmt.Sprintf("min_valid_seconds: %d: want 0 to %d",
				*least, schema.MaxMinValid)
			return refuse(schema.TokenMalformed, message)
		}
		q.MinValid = time.Duration(*least) * time.Second
		if *least == 0 {
			q.MinValid = -1 // any living token
		}
	}
	return q, key, nil
}

func forbidden(a schema.Address) string {
	if a.Sender == "" {
		return "the request names no sender, and renewd's setting senders says who may read: " +
			"give the service a NATS account whose import names it, as renewd nats config prints it"
	}
	return fmt.Sprintf("%s may not read tokens of %s: renewd's setting senders.%s.read "+
		"does not name that provider", a.Sender, a.Provider, a.Sender)
}

// answer gets the token and seals it.
func (d *door) answer(r micro.Request, q tokens.Request, key seal.AnswerKey) {
	t, err := d.Tokens.Get(d.ctx, q)
	if err != nil {
		d.refuse(r, err)
		return
	}
	plain, err := json.Marshal(schema.AccessToken{
		AccessToken: t.Access.Reveal(),
		TokenType:   t.Type,
		Scope:       t.Scope,
		ExpiresAt:   t.ExpiresAt.UTC(),
		Version:     t.Version,
		Short:       t.Short,
	})
	if err != nil {
		panic("door: encode a token: " + err.Error()) // a struct of this module: cannot happen
	}
	sealed, err := seal.SealAnswer(key, q.Provider, q.User, plain)
	if err != nil {
		d.refuse(r, err)
		return
	}
	d.send(r, &nats.Msg{Data: []byte(sealed)})
}

// refuse answers with the *schema.NoToken in err.
func (d *door) refuse(r micro.Request, err error) {
	no, ok := errors.AsType[*schema.NoToken](err)
	if !ok { // ctx is over, or the answer could not be sealed
		d.Logger.Debug("token request not answered", "error", err)
		no = &schema.NoToken{
			Code: schema.TokenTryAgain, Message: "renewd could not answer", RetryAfterSeconds: 1,
		}
	}
	body, err := json.Marshal(no)
	if err != nil {
		panic("door: encode a refusal: " + err.Error()) // a struct of this module: cannot happen
	}
	d.send(r, &nats.Msg{Data: body, Header: nats.Header{
		schema.TokenErrorCode: {no.Code}, schema.TokenError: {no.Message},
	}})
}

// send goes by the connection: the micro package's own answers are for the handler's goroutine.
func (d *door) send(r micro.Request, m *nats.Msg) {
	m.Subject = r.Reply()
	if err := d.Conn.PublishMsg(m); err != nil {
		d.Logger.Debug("answer to a token request not sent", "error", err)
	}
}
