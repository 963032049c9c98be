package main

import (
	"slices"
	"sync"

	"github.com/renewd/renewd/internal/idp/idptest"
)

// shown is one of them, and the worker that showed it; nil if it was gone before anybody looked.
type shown struct {
	idptest.Presentation
	by *worker
	// issued is the generation of the token that it was answered with; 0: with none.
	issued int
}

// presentations are all refresh tokens that one provider was shown.
type presentations struct {
	owners *owners

	mu  sync.Mutex
	all []shown
}

func (s *presentations) add(p idptest.Presentation) {
	by := s.owners.of(p.From)
	s.mu.Lock()
	s.all = append(s.all, shown{Presentation: p, by: by})
	s.mu.Unlock()
}

// bySession is what was shown of each session, in the order of its beginning.
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
			if list[i].Verdict == idptest.Renewed || list[i].Verdict == idptest.Replay {
				generation++ // each answer with tokens takes the place of the one before
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
