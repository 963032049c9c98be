package tokens

import (
	"context"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// loading is the reading of one user's record: one load at a time, and one more load after it for
// all callers who came meanwhile. So a crowd for one user costs the store one load, and each caller
// still gets a record that was read after the call began.
type loading struct{ next *sharedLoad }

// sharedLoad is a load for several waiting callers.
type sharedLoad struct {
	done chan struct{} // closed when g and err are set
	g    grant.Grant
	err  error
}

// loadLimit is how long a shared load may take.
const loadLimit = 5 * time.Second

// read reads the record of k.
func (s *Source) read(ctx context.Context, k grant.Key) (grant.Grant, error) {
	s.loadMu.Lock()
	l := s.loads[k]
	if l == nil {
		s.loads[k] = &loading{}
		s.loadMu.Unlock()
		defer s.readNext(k)
		return s.c.Store.Load(ctx, k)
	}
	if l.next == nil {
		l.next = &sharedLoad{done: make(chan struct{})}
	}
	shared := l.next
	s.loadMu.Unlock()
	select {
	case <-shared.done:
		return shared.g, shared.err
	case <-ctx.Done():
		return grant.Grant{Key: k}, context.Cause(ctx)
	}
}

// readNext starts the next shared load, if callers wait for a load.
func (s *Source) readNext(k grant.Key) {
	s.loadMu.Lock()
	defer s.loadMu.Unlock()
	l := s.loads[k]
	shared := l.next
	if shared == nil {
		delete(s.loads, k)
		return
	}
	l.next = nil
	go func() {
		defer s.readNext(k)
		ctx, cancel := context.WithTimeout(context.Background(), loadLimit)
		defer cancel()
		defer close(shared.done)
		shared.g, shared.err = s.c.Store.Load(ctx, k)
	}()
}
