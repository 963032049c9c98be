package standin

import (
	"net/http"
	"time"
)

// Request is the part of a request that a fault may depend on.
type Request struct {
	// "token", "userinfo", "session" (PropelAuth's own refresh endpoint), "revoke" or "discovery"
	Op   string
	User string // empty if the token is unknown
}

// Fault is a disturbance of one answer. The zero value changes nothing.
type Fault struct {
	// Act lets the provider do its part first: the token is rotated, only the answer goes wrong.
	Act bool
	// Delay before the answer; the request's own end cuts it short.
	Delay time.Duration
	// Hang gives no answer at all, for as long as the client waits.
	Hang bool
	// Drop closes the connection in place of an answer.
	Drop bool
	// Truncate sends half of the true answer, then closes the connection. Truncate implies Act.
	Truncate bool
	// Half sends half of the true answer as if it were all. Half implies Act.
	Half bool
	// Status, Header and Body are the answer. Status 0 with the rest unset: the true answer, after
	// Delay.
	Status int
	Header http.Header
	Body   string
}

// acts reports whether the provider does its part.
func (f Fault) acts() bool { return f.Act || f.Truncate || f.Half }

// wrong reports whether the client gets anything but the true answer.
func (f Fault) wrong() bool { return f.Hang || f.Drop || f.Truncate || f.Half || f.Status != 0 }

// SetFault asks f before each answer; nil, or a nil result, means no fault. f may be called from
// many goroutines at once.
func (s *Server) SetFault(f func(Request) *Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

func (s *Server) faultFor(r Request) Fault {
	s.mu.Lock()
	ask := s.fault
	s.mu.Unlock()
	if ask != nil {
		if f := ask(r); f != nil {
			return *f
		}
	}
	return Fault{}
}

// answer gives the true answer, or the fault's answer.
func (s *Server) answer(
	w http.ResponseWriter, r *http.Request, f Fault, truth func(http.ResponseWriter),
) {
	wait := func() {
		if d := s.options.Latency + f.Delay; d > 0 {
			pause(r, d)
		}
	}
	if !f.wrong() && !f.Act {
		wait()
		truth(w)
		return
	}
	recorded := &recorder{header: http.Header{}}
	if f.acts() {
		truth(recorded)
	}
	wait()
	switch {
	case f.Hang:
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	case f.Drop:
		panic(http.ErrAbortHandler)
	case f.Truncate, f.Half:
		recorded.body = recorded.body[:len(recorded.body)/2]
		recorded.send(w)
		if f.Truncate {
			_ = http.NewResponseController(w).Flush() // the connection is closed either way
			panic(http.ErrAbortHandler)
		}
	case f.Status != 0:
		(&recorder{f.Header, f.Status, []byte(f.Body)}).send(w)
	default:
		recorded.send(w)
	}
}

func pause(r *http.Request, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.Context().Done():
	}
}

// recorder keeps an answer instead of sending it.
type recorder struct {
	header http.Header
	status int
	body   []byte
}

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(n int)   { r.status = n }
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	r.body = append(r.body, b...)
	return len(b), nil
}

func (r *recorder) send(w http.ResponseWriter) {
	for name, values := range r.header {
		w.Header()[name] = values
	}
	w.WriteHeader(r.status)
	_, _ = w.Write(r.body) // an error means: the client is gone
}
