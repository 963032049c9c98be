package tokens

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// FirstRead says that a reader got a version of a user's access token, for the first time as far as
// this process remembers.
type FirstRead struct {
	Provider  string
	User      string
	Reader    string // empty: not known
	Door      Door
	Version   int64     // of the user's record
	ExpiresAt time.Time // of the token; zero: the provider gave no end
	At        time.Time // time of the read
}

// ID is the same for each first read of this version by this reader, in any process.
func (f FirstRead) ID() string {
	sum := sha256.Sum256([]byte(strings.Join([]string{
		"renewd read", string(f.Door), f.Reader, f.Provider, f.User,
		strconv.FormatInt(f.Version, 10),
	}, "\x00")))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

const (
	// tellsWaiting is how many first reads wait to be told. Beyond that number, as in a long outage
	// of NATS, first reads are counted only.
	tellsWaiting = 1 << 13
	// tellers are how many first reads are told at a time.
	tellers = 16
	// tellAgain is the pause before a first read is tried again, and tellLast how long the last
	// first reads may take once the Source is closed.
	tellAgain = time.Second
	tellLast  = 3 * time.Second
)

// telling hands first reads to Config.Tell, apart from the reads: no read waits for Config.Tell, or
// fails with it.
type telling struct {
	queue   chan FirstRead
	failing atomic.Bool
	ctx     context.Context // ends tellLast after the Source is closed
}

// startTelling is for a Source with a Config.Tell.
func (s *Source) startTelling() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.base))
	context.AfterFunc(s.base, func() { time.AfterFunc(tellLast, cancel) })
	s.telling.queue, s.telling.ctx = make(chan FirstRead, tellsWaiting), ctx
	for range tellers {
		s.runs.Go(s.tellAll)
	}
}

// tell has f told, if first reads are told and not too many wait.
func (s *Source) tell(f FirstRead) {
	if s.c.Tell == nil {
		return
	}
	select {
	case s.telling.queue <- f:
	default:
		s.untold(f)
	}
}

func (s *Source) untold(f FirstRead) {
	s.meters.untold.Add(context.Background(), 1, s.meters.with(labels{provider: f.Provider}))
}

// tellAll tells first reads until the Source is closed, and then the first reads still waiting.
func (s *Source) tellAll() {
	for {
		select {
		case f := <-s.telling.queue:
			s.tellOne(f)
		case <-s.base.Done():
			select {
			case f := <-s.telling.queue:
				s.tellOne(f)
			default:
				return
			}
		}
	}
}

// tellOne tries until f is told, or tellLast after the Source is closed.
func (s *Source) tellOne(f FirstRead) {
	for s.telling.ctx.Err() == nil {
		err := s.tryTell(s.telling.ctx, f)
		if err == nil {
			if s.telling.failing.Swap(false) {
				s.c.Logger.Info("first reads of access tokens are told again")
			}
			return
		}
		if !s.telling.failing.Swap(true) {
			s.c.Logger.Warn("first reads of access tokens cannot be told, trying again",
				"error", err)
		}
		select {
		case <-s.telling.ctx.Done():
		case <-time.After(tellAgain):
		}
	}
	s.untold(f)
}

// tryTell looks at the record first: nothing is told of a user erased since.
func (s *Source) tryTell(ctx context.Context, f FirstRead) error {
	ctx, cancel := context.WithTimeout(ctx, loadLimit)
	defer cancel()
	g, err := s.c.Store.Load(ctx, grant.Key{Provider: f.Provider, User: f.User})
	switch {
	case errors.Is(err, grant.ErrNotFound), err == nil && g.Status == grant.Forgotten:
		return nil
	case err != nil && !errors.Is(err, grant.ErrUnreadable):
		return err
	}
	return s.c.Tell(ctx, f)
}
