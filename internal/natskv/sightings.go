package natskv

import (
	"sync"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// sightings remembers since when the claims of other writers have been seen unchanged. The time is
// by this machine's monotonic clock, the only clock that cannot be set. A sighting starts no
// earlier than the claim was written, so sightings ends no claim early. A claim not asked for in a
// long while is forgotten, and then lives longer, by its full length at most.
type sightings struct {
	mu         sync.Mutex
	young, old map[grant.Key]sighting // a full young becomes old
}

type sighting struct {
	revision uint64
	at       time.Time
}

// sightingsMost is the most sightings in a half: some 10 MB.
const sightingsMost = 1 << 16

// seen is how long the revision of k has been seen by now. now is later than the read of the
// revision. At first sight seen is zero.
func (s *sightings) seen(k grant.Key, revision uint64, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	was, ok := s.young[k]
	if !ok {
		was = s.old[k]
	}
	if was.revision != revision {
		was = sighting{revision, now}
	}
	if len(s.young) >= sightingsMost {
		s.old, s.young = s.young, nil
	}
	if s.young == nil {
		s.young = map[grant.Key]sighting{}
	}
	s.young[k] = was
	return now.Sub(was.at)
}
