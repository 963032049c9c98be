package main

import (
	"slices"
	"sync"

	"github.com/renewd/renewd/internal/standin"
)

// shown is a presentation and its worker. The worker is nil if its connection was gone before the
// owner was looked up.
type shown struct {
	standin.Presentation
	by *worker
	// issued is the generation of the token in the answer, or 0 if the answer had no token.
	issued int
}

// presentations are all refresh tokens shown to a provider.
type presentations struct {
	owners *owners

	mu  sync.Mutex
	all []shown
}

func (s *presentations) add(p standin.Presentation) {
	by := s.owners.of(p.From)
	s.mu.Lock()
	s.all = append(s.all, shown{Presentation: p, by: by})
	s.mu.Unlock()
}

// bySession groups the presentations by session, in the order in which they began.
func (s *presentations) bySession() map[int][]shown {
	s.mu.Lock()
	defer s.mu.Unlock()
	sessions := map[int][]shown{}
	for _, p := range s.all {
		if p.Session >= 0 {
			sessions[p.Session] = append(sessions[p.Session], p)
		}
	}
	for _, list := range sessions {
		slices.SortStableFunc(list, func(a, b shown) int { return a.At.Compare(b.At) })
		generation := 0
		for i := range list {
			if list[i].Verdict == standin.Renewed || list[i].Verdict == standin.Replay {
				generation++ // each answer with tokens replaces the answer before
				list[i].issued = generation
			}
		}
	}
	return sessions
}

func (s *presentations) list() []shown {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all)
}
