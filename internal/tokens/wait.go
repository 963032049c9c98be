package tokens

import (
	"context"
	"time"

	"github.com/nats-io/nuid"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

const (
	// lookAgain is how often the record is looked at during a wait. The answer to the renewal ends
	// the wait; only the record tells of a failed try.
	lookAgain = time.Second
	// vainFor is how long after a wait in vain no renewal is asked for again for its user.
	vainFor = 5 * time.Second
)

// flight is one wait for one user's renewal, shared by all callers of the user.
type flight struct {
	done    chan struct{} // closed at the end of the wait
	callers int           // the waiting callers
	// Set before done is closed.
	g       grant.Grant // the record at its end
	err     error       // why there is no record
	endedAt time.Time
}

func (f *flight) over() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

// crowd counts the waits for users of one provider, and the callers beside.
type crowd struct {
	users  int // waited for
	beside int // callers beside the first of each user
}

// wait has k's grant renewed, or joins the callers who wait for its renewal, and judges the record
// again. v is the caller's verdict without a renewal.
func (s *Source) wait(
	ctx context.Context, k grant.Key, v verdict, want time.Duration, reader string,
) (verdict, error) {
	f, joined := s.join(k, want, reader)
	if !joined {
		return s.without(v, f), nil
	}
	defer s.leave(k, f)
	select {
	case <-f.done:
	case <-ctx.Done():
		return v, context.Cause(ctx)
	}
	if f.err != nil {
		return v, f.err
	}
	return s.judge(f.g, want), nil
}

// without is v for a caller who does not wait: because of f, a wait in vain, or because too many
// callers wait.
func (s *Source) without(v verdict, f *flight) verdict {
	switch {
	case v.none == nil:
	case f != nil:
		no := *v.none
		no.RetryAfterSeconds = seconds(vainFor - s.c.Now().Sub(f.endedAt))
		v.none = &no
	default:
		v.none = &schema.NoToken{
			Code: schema.TokenBusy, RetryAfterSeconds: 1,
			Message: "too many callers wait for tokens of this provider or user",
		}
	}
	return v
}

// join adds the caller to the wait for k; the first caller starts the wait. If too many callers
// wait, join refuses without a flight. If a wait was in vain a moment ago, join refuses with the
// flight of that wait.
func (s *Source) join(k grant.Key, want time.Duration, reader string) (f *flight, joined bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.crowds[k.Provider]
	f = s.flights[k]
	switch {
	case f != nil && f.over():
		if s.c.Now().Sub(f.endedAt) < vainFor {
			return f, false
		}
		f = nil
	case f != nil:
		if f.callers >= s.c.MaxCallers || c.beside >= 2*s.c.MaxCallers {
			return nil, false
		}
		if f.callers++; f.callers > 1 {
			c.beside++
		}
		return f, true
	}
	if c.users >= s.c.MaxUsers || s.base.Err() != nil {
		return nil, false
	}
	f = &flight{done: make(chan struct{}), callers: 1}
	s.flights[k] = f
	c.users++
	s.runs.Go(func() { s.fly(k, f, want, reader) })
	return f, true
}

// leave is the end of one caller's wait.
func (s *Source) leave(k grant.Key, f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.callers--; f.callers > 0 {
		s.crowds[k.Provider].beside--
	}
}

// fly is the wait itself. It belongs to no caller, and ends with the renewal, or after MaxWait.
func (s *Source) fly(k grant.Key, f *flight, want time.Duration, reader string) {
	ctx, cancel := context.WithTimeout(s.base, s.c.MaxWait)
	defer cancel()
	g, err := s.renewed(ctx, k, want, reader)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.crowds[k.Provider].users--
	now := s.c.Now()
	f.g, f.err, f.endedAt = g, err, now
	close(f.done)
	if err == nil && s.judge(g, want).ask {
		// In vain: callers who come now are told so, for a moment.
		time.AfterFunc(vainFor, func() { s.forget(k, f) })
		return
	}
	delete(s.flights, k)
}

func (s *Source) forget(k grant.Key, f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flights[k] == f {
		delete(s.flights, k)
	}
}

// renewed has the grant renewed and returns the record after the renewal. renewed looks at the
// record first: the caller who started the wait may have read it before another wait ended.
func (s *Source) renewed(
	ctx context.Context, k grant.Key, want time.Duration, reader string,
) (grant.Grant, error) {
	g, err := s.load(ctx, k)
	if err != nil || !s.judge(g, want).ask {
		return g, err
	}
	asking, stop := context.WithCancel(ctx)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		s.meters.asked(ctx, k.Provider)
		err := s.c.Asker.Ask(asking, k, s.work(want, reader))
		if err != nil && asking.Err() == nil {
			s.c.Logger.Warn("could not ask for the renewal that a token is wanted from",
				"grant", k, "error", err)
		}
	}()
	defer func() { stop(); <-answered }()
	look := time.NewTicker(lookAgain)
	defer look.Stop()
	for over := false; !over; {
		select {
		case <-answered:
			over = true
		case <-ctx.Done():
			over = true
		case <-look.C:
		}
		g, err = s.last(ctx, k)
		if err == nil && !s.judge(g, want).ask {
			return g, nil
		}
	}
	return g, err
}

// lastLook is how long the record may take to be read at the end of a wait.
const lastLook = 5 * time.Second

// last is load, also at the end of the wait.
func (s *Source) last(ctx context.Context, k grant.Key) (grant.Grant, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastLook)
	defer cancel()
	g, err := s.read(ctx, k)
	return g, refusal(err)
}

// work is the renewal a caller asks for: tokens good for want. The refresh token is presented only
// if the tokens stored when the work is done are not good for as long. So two processes that ask at
// once rotate once.
func (s *Source) work(want time.Duration, reader string) grant.Work {
	now := s.c.Now().UTC()
	if schema.CheckSender(reader) != nil {
		reader = "" // a name of another kind was not given by the NATS server
	}
	return grant.Work{
		Cause: schema.Cause{
			ID: nuid.Next(), Type: schema.UserRefreshDue, Source: "/renewd/tokens", Time: now,
			Reason: "token read", Sender: reader,
		},
		MinValid: min(max(want, 0), schema.MaxMinValid*time.Second),
	}
}
