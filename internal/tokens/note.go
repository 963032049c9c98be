package tokens

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nuid"

	"github.com/renewd/renewd/internal/grant"
)

const (
	// notesAtOnce is how many reads are being written down at most. Further reads are left to the
	// user's next read: a reader never waits for a note.
	notesAtOnce = 64
	// noteLimit is how long a note may take.
	noteLimit = 5 * time.Second
)

// note writes down that the user of g was asked for, where the policy lets idle users rest, and
// where no read was written down in the last minutes.
func (s *Source) note(g grant.Grant) {
	p := s.c.Policies[g.Provider]
	if s.c.Save == nil || !g.Notes(&p, s.c.Now()) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.base.Err() != nil || len(s.notes) >= notesAtOnce || s.notes[g.Key] {
		return
	}
	s.notes[g.Key] = true
	s.runs.Go(func() {
		if err := s.noted(g.Key, &p); err != nil && s.base.Err() == nil {
			s.c.Logger.Warn("could not write down that a user was asked for: the next read will",
				"grant", g.Key, "error", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.notes, g.Key)
	})
}

// noted writes the read down in the record as it is now. If another writer comes in between, the
// next read has its turn.
func (s *Source) noted(k grant.Key, p *grant.Policy) error {
	ctx, cancel := context.WithTimeout(s.base, noteLimit)
	defer cancel()
	g, err := s.c.Store.Load(ctx, k)
	now := s.c.Now()
	switch {
	case errors.Is(err, grant.ErrNotFound):
		return nil
	case err != nil:
		return err
	case g.Status != grant.Live || !g.Notes(p, now):
		return nil
	}
	if _, err = s.c.Save(ctx, g.Noted(nuid.Next(), now)); errors.Is(err, grant.ErrConflict) {
		return nil
	}
	return err
}

// judge is judge, for a user whose session the policy may have ended.
func (s *Source) judge(g grant.Grant, want time.Duration) verdict {
	now := s.c.Now()
	if p := s.c.Policies[g.Provider]; g.Outlasted(&p, now) {
		return verdict{none: outlasted(g)} // the end is due: no token is given out until then
	}
	return judge(g, want, now)
}
