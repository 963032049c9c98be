package standin

import (
	"slices"
	"time"
)

// Verdict is the provider's decision on a presentation.
type Verdict string

// The verdicts.
const (
	Renewed Verdict = "renewed" // answered with fresh tokens
	Replay  Verdict = "replay"  // the same, for the previous token within its grace
	Reuse   Verdict = "reuse"   // refused: the token was already spent
	Refused Verdict = "refused" // refused: of an ended session, or unknown
	Unread  Verdict = "unread"  // a fault answered: the provider never saw the token
)

// Presentation is one refresh token shown to the token endpoint.
type Presentation struct {
	User       string // empty if the token is unknown
	Session    int    // -1 if the token is unknown
	Generation int    // of the token; 0 at the login
	Verdict    Verdict
	// its answer did not reach the client: a fault stood in between, or the client was gone
	Lost bool
	From string // address of the client's end of the connection
	At   time.Time
	Took time.Duration // until the end of the answer, or of the request
}

// Call is one userinfo call.
type Call struct {
	User string // empty if the access token opens no account
	At   time.Time
}

// Stats is the truth about the requests so far.
type Stats struct {
	Refreshes       int `json:"refreshes"`        // presentations of refresh tokens
	Rotated         int `json:"rotated"`          // refreshes answered with fresh tokens
	Replays         int `json:"replays"`          // refreshes by the previous token, within grace
	Reuse           int `json:"reuse"`            // presentations of a spent token
	RevokedFamilies int `json:"revoked_families"` // sessions ended by a reuse
	// presentations of an unknown token, or of an ended session's token
	Refused     int `json:"refused"`
	UserInfos   int `json:"user_infos"`
	MaxInFlight int `json:"max_in_flight"` // most presentations of one session's tokens at once
	// most presentations of one refresh token while it was the current token
	MaxPresented int `json:"max_presented"`
	Sessions     int `json:"sessions"`
	Live         int `json:"live"`
}

// UserStats is the same of one user.
type UserStats struct {
	Logins      int `json:"logins"`
	Presented   int `json:"presented"` // refresh tokens, rightly or not
	Renewals    int `json:"renewals"`  // answers with fresh tokens
	Replays     int `json:"replays"`
	Reuse       int `json:"reuse"`
	Refused     int `json:"refused"`
	MaxInFlight int `json:"max_in_flight"`
}

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.stats
	stats.Sessions = len(s.sessions)
	for _, ses := range s.sessions {
		if !ses.dead {
			stats.Live++
		}
	}
	return stats
}

// User returns the counts of one user so far.
func (s *Server) User(name string) UserStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[name]
	if u == nil {
		return UserStats{}
	}
	stats := u.truth
	for _, ses := range u.sessions {
		stats.MaxInFlight = max(stats.MaxInFlight, int(ses.maxInFlight))
	}
	return stats
}

// Renewals counts the user's refreshes that brought fresh tokens.
func (s *Server) Renewals(name string) int { return s.User(name).Renewals }

// Users lists the accounts, sorted.
func (s *Server) Users() []string {
	s.mu.Lock()
	names := make([]string, 0, len(s.users))
	for name := range s.users {
		names = append(names, name)
	}
	s.mu.Unlock()
	slices.Sort(names)
	return names
}

// Valid reports whether the provider would take the refresh token now, as the current token of a
// live session.
func (s *Server) Valid(refresh string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	ses, numbers, ok := s.open("rt", refresh)
	return ok && s.alive(ses) && int(numbers[0]) == ses.gen
}

// Issued is the provider's record of one of its access tokens.
type Issued struct {
	User       string
	Session    int
	Generation int // of the refresh token issued with it; 0 at the login
	Ends       time.Time
}

// Issued reports whether the provider made this access token, even if the token is dead by now.
func (s *Server) Issued(access string) (Issued, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ses, numbers, ok := s.open("at", idOf(access))
	if !ok {
		return Issued{}, false
	}
	ends := time.Unix(0, numbers[1]).Add(s.options.Lifetime)
	return Issued{ses.user.name, ses.id, int(numbers[0]), ends}, true
}

// Live reports whether the newest session of the user would be renewed.
func (s *Server) Live(name string) bool { return s.CurrentRefresh(name) != "" }

// CurrentRefresh is the refresh token of the user's newest session, if the provider would take the
// token now; otherwise empty.
func (s *Server) CurrentRefresh(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[name]
	if u == nil || len(u.sessions) == 0 {
		return ""
	}
	ses := u.sessions[len(u.sessions)-1]
	if !s.alive(ses) {
		return ""
	}
	return s.ticket(ses).refresh()
}

// Presented is how often a refresh token was presented while it was the current token of its
// session; 0 for other tokens.
func (s *Server) Presented(refresh string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ses, numbers, ok := s.open("rt", refresh); ok && int(numbers[0]) == ses.gen {
		return int(ses.presented)
	}
	return 0
}

// enter counts a presentation that has begun. leave is called with the result.
func (s *Server) enter(token string) (p Presentation, leave func(Presentation)) {
	p = Presentation{Session: -1, Verdict: Unread, At: s.options.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	ses, numbers, ok := s.open("rt", token)
	if ok {
		p.User, p.Session, p.Generation = ses.user.name, ses.id, int(numbers[0])
		ses.user.truth.Presented++
		ses.inFlight++
		ses.maxInFlight = max(ses.maxInFlight, ses.inFlight)
		s.stats.MaxInFlight = max(s.stats.MaxInFlight, int(ses.inFlight))
		if p.Generation == ses.gen {
			ses.presented++
			s.stats.MaxPresented = max(s.stats.MaxPresented, int(ses.presented))
		}
	}
	return p, func(p Presentation) {
		p.Took = s.options.Now().Sub(p.At)
		if ok {
			s.mu.Lock()
			ses.inFlight--
			s.mu.Unlock()
		}
		if s.options.Observe != nil {
			s.options.Observe(p)
		}
	}
}

// present is the provider's own part of one presentation. For Renewed and Replay, tokens are to be
// made from the ticket.
func (s *Server) present(token string) (ticket, Verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Refreshes++
	ses, numbers, ok := s.open("rt", token)
	if !ok {
		s.stats.Refused++
		return ticket{}, Refused
	}
	truth := &ses.user.truth
	if !s.alive(ses) {
		s.stats.Refused++
		truth.Refused++
		return ticket{}, Refused
	}
	now, gen, verdict := s.options.Now(), int(numbers[0]), Renewed
	switch {
	case gen == ses.gen:
		ses.spent, ses.spentAt = gen, now.UnixNano()
	case s.options.Rotation == Grace && gen == ses.spent &&
		now.UnixNano()-ses.spentAt <= int64(s.options.Grace):
		s.stats.Replays++
		truth.Replays++
		verdict = Replay
	default:
		s.stats.Reuse++
		truth.Reuse++
		if !s.options.KeepOnReuse {
			ses.dead = true
			s.stats.RevokedFamilies++
		}
		return ticket{}, Reuse
	}
	if s.options.Rotation != Never {
		ses.gen++
		ses.presented = 0
	}
	ses.rotatedAt = now.UnixNano()
	ses.user.active = now.Unix()
	s.stats.Rotated++
	truth.Renewals++
	return s.ticket(ses), verdict
}
