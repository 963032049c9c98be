package natskv

import (
	"sync"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// sightings remembers since when others' claims have been seen as they are, by this machine's
// monotonic clock: the only one that nobody can set. It starts no earlier than the claim was
// written, so it ends no claim early. It forgets what was not asked for in a long while; whatever
// is forgotten lives longer, by its full length at most.
type sightings struct {
	mu         sync.Mutex
	young, old map[grant.Key]sighting // a full young becomes old
}

type sighting struct {
	revision uint64
	at       time.Time
}

// sightingsMost is how many a half holds: some 10 MB.
const sightingsMost = 1 << 16

// seen is for how long the revision of k has been seen at now, which is later than it was read;
// zero at first sight.
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
