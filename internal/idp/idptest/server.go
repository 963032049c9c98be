package idptest

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Rotation says what a refresh does to the refresh token.
type Rotation string

// The rotations.
const (
	Strict Rotation = "strict" // a new token each time, the old one is dead at once
	Grace  Rotation = "grace"  // the same, but the previous token is taken for Options.Grace more
	Never  Rotation = "never"  // the token stays
)

// Options say how the provider behaves. The zero value: strict rotation, reuse ends the session, access tokens of 30
// minutes, a public client "renewd-test".
type Options struct {
	Lifetime     time.Duration // of access tokens; default 30 min
	Rotation     Rotation      // default Strict
	Grace        time.Duration // for Rotation Grace; default 30 s
	KeepOnReuse  bool          // a reuse is refused, but does not end the session
	SessionLife  time.Duration // from login; 0: for ever
	ClientID     string        // default "renewd-test"
	ClientSecret string        // "": a public client
	ClientBasic  bool          // the secret is wanted in the Authorization header, else in the form
	OmitRefresh  bool          // answers carry no refresh token (use with Never)
	Nested       bool          // access_token is an object, as at PropelAuth's session endpoint
	LaxUserInfo  bool          // userinfo looks at the access token only, not at the session
	Latency      time.Duration // before each answer
	Admin        bool          // serve /_admin/
	Now          func() time.Time
}

func (o Options) withDefaults() Options {
	if o.Lifetime == 0 {
		o.Lifetime = 30 * time.Minute
	}
	if o.Rotation == "" {
		o.Rotation = Strict
	}
	if o.Grace == 0 {
		o.Grace = 30 * time.Second
	}
	if o.ClientID == "" {
		o.ClientID = "renewd-test"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Stats is the truth about what was asked.
type Stats struct {
	Refreshes       int `json:"refreshes"`        // presentations of refresh tokens
	Rotated         int `json:"rotated"`          // of them, answered with fresh tokens
	Replays         int `json:"replays"`          // of them, of the previous token within its grace
	Reuse           int `json:"reuse"`            // presentations of a token that was already spent
	RevokedFamilies int `json:"revoked_families"` // sessions that a reuse ended
	Refused         int `json:"refused"`          // presentations of a token of an ended session, or unknown
	UserInfos       int `json:"user_infos"`
	MaxInFlight     int `json:"max_in_flight"` // most presentations of one session's tokens at once
	Sessions        int `json:"sessions"`
	Live            int `json:"live"`
}

// session is one login of a user and all tokens that came of it: a family.
type session struct {
	id        int
	user      string
	gen       int // of the current refresh token
	rotatedAt time.Time
	loginAt   time.Time
	dead      bool
	inFlight  int
}

// user is an account.
type user struct {
	profile  map[string]any
	sessions []*session // newest last
	disabled bool
	deleted  bool
	renewals int
}

// Server is the stand-in. It serves HTTP.
type Server struct {
	options Options
	secret  []byte
	mux     *http.ServeMux

	mu       sync.Mutex
	users    map[string]*user
	sessions []*session
	stats    Stats
	fault    func(Request) *Fault
}

// New returns a stand-in without users.
func New(o Options) *Server {
	s := &Server{options: o.withDefaults(), secret: make([]byte, 32), users: map[string]*user{}, mux: http.NewServeMux()}
	if _, err := rand.Read(s.secret); err != nil {
		panic("idptest: " + err.Error())
	}
	s.routes()
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Tokens is what a login or a refresh brings.
type Tokens struct {
	Access    string `json:"access_token"`
	Refresh   string `json:"refresh_token,omitempty"`
	TokenType string `json:"token_type"`
	ExpiresIn int    `json:"expires_in"`
}

// Login opens a session for a user, who comes to be with a profile of its own the first time.
func (s *Server) Login(name string) Tokens {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.account(name)
	u.deleted = false
	now := s.options.Now()
	ses := &session{id: len(s.sessions), user: name, loginAt: now, rotatedAt: now}
	s.sessions = append(s.sessions, ses)
	u.sessions = append(u.sessions, ses)
	return s.tokens(ses, true)
}

func (s *Server) account(name string) *user {
	u := s.users[name]
	if u == nil {
		u = &user{profile: profileOf(name, s.options.Now())}
		s.users[name] = u
	}
	return u
}

// EndSessions signs the user out everywhere.
func (s *Server) EndSessions(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.users[name]; u != nil {
		for _, ses := range u.sessions {
			ses.dead = true
		}
	}
}

// Disable, Enable and Delete do to an account what an administrator does.
func (s *Server) Disable(name string) { s.set(name, func(u *user) { u.disabled = true }) }

// Enable undoes Disable.
func (s *Server) Enable(name string) { s.set(name, func(u *user) { u.disabled = false }) }

// Delete removes the account.
func (s *Server) Delete(name string) { s.set(name, func(u *user) { u.deleted = true }) }

// Edit changes the user's profile.
func (s *Server) Edit(name string, change func(profile map[string]any)) {
	s.set(name, func(u *user) { change(u.profile) })
}

func (s *Server) set(name string, change func(*user)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s.account(name))
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

// Renewals counts the user's refreshes that brought fresh tokens.
func (s *Server) Renewals(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.users[name]; u != nil {
		return u.renewals
	}
	return 0
}

// Users lists the accounts.
func (s *Server) Users() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.users))
	for name := range s.users {
		names = append(names, name)
	}
	return names
}

// Valid reports whether the provider would take the refresh token now, as the current one of a live session.
func (s *Server) Valid(refresh string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	ses, gen, ok := s.parse("rt", refresh)
	return ok && s.alive(ses) && gen == ses.gen
}

// Live reports whether the user has a session that would be renewed.
func (s *Server) Live(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[name]
	return u != nil && len(u.sessions) > 0 && s.alive(u.sessions[len(u.sessions)-1])
}

func (s *Server) alive(ses *session) bool {
	u := s.users[ses.user]
	old := s.options.SessionLife > 0 && s.options.Now().Sub(ses.loginAt) > s.options.SessionLife
	return !ses.dead && !old && !u.disabled && !u.deleted
}

// A token is kind.session.generation.mac, so that a million sessions need no table of tokens.
func (s *Server) mint(kind string, ses *session) string {
	head := kind + "." + strconv.Itoa(ses.id) + "." + strconv.Itoa(ses.gen)
	return head + "." + s.mac(head)
}

func (s *Server) mac(head string) string {
	h := hmac.New(sha256.New, s.secret)
	h.Write([]byte(head))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:18])
}

func (s *Server) parse(kind, token string) (*session, int, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 4 || parts[0] != kind {
		return nil, 0, false
	}
	id, err1 := strconv.Atoi(parts[1])
	gen, err2 := strconv.Atoi(parts[2])
	if err1 != nil || err2 != nil || id < 0 || id >= len(s.sessions) || !hmac.Equal([]byte(parts[3]), []byte(s.mac(strings.Join(parts[:3], ".")))) {
		return nil, 0, false
	}
	return s.sessions[id], gen, true
}

func (s *Server) tokens(ses *session, refresh bool) Tokens {
	t := Tokens{Access: s.accessToken(ses), TokenType: "Bearer", ExpiresIn: int(s.options.Lifetime.Seconds())}
	if refresh {
		t.Refresh = s.mint("rt", ses)
	}
	return t
}

// refresh is the truth about one presentation. code is the OAuth error, empty for success.
func (s *Server) refresh(token string) (t Tokens, name, code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Refreshes++
	ses, gen, ok := s.parse("rt", token)
	if !ok || !s.alive(ses) {
		s.stats.Refused++
		return Tokens{}, "", "invalid_grant"
	}
	now := s.options.Now()
	switch {
	case gen == ses.gen:
	case s.options.Rotation == Grace && gen == ses.gen-1 && now.Sub(ses.rotatedAt) <= s.options.Grace:
		s.stats.Replays++
	default:
		s.stats.Reuse++
		if !s.options.KeepOnReuse {
			ses.dead = true
			s.stats.RevokedFamilies++
		}
		return Tokens{}, ses.user, "invalid_grant"
	}
	if s.options.Rotation != Never {
		ses.gen++
		ses.rotatedAt = now
	}
	s.stats.Rotated++
	s.users[ses.user].renewals++
	s.users[ses.user].profile["last_active_at"] = now.Unix()
	return s.tokens(ses, !s.options.OmitRefresh), ses.user, ""
}

// enter and leave count presentations of one session in flight.
func (s *Server) enter(token string) (leave func(), name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ses, _, ok := s.parse("rt", token)
	if !ok {
		return func() {}, ""
	}
	ses.inFlight++
	s.stats.MaxInFlight = max(s.stats.MaxInFlight, ses.inFlight)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		ses.inFlight--
	}, ses.user
}

// state is what Save keeps.
type state struct {
	Secret   []byte                    `json:"secret"`
	Sessions []savedSession            `json:"sessions"`
	Profiles map[string]map[string]any `json:"profiles"`
}

type savedSession struct {
	User      string    `json:"user"`
	Gen       int       `json:"gen"`
	RotatedAt time.Time `json:"rotated_at"`
	LoginAt   time.Time `json:"login_at"`
	Dead      bool      `json:"dead,omitempty"`
}

// Save returns everything that a later Load needs to go on with the same sessions.
func (s *Server) Save() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := state{Secret: s.secret, Profiles: map[string]map[string]any{}}
	for _, ses := range s.sessions {
		out.Sessions = append(out.Sessions, savedSession{ses.user, ses.gen, ses.rotatedAt, ses.loginAt, ses.dead})
	}
	for name, u := range s.users {
		out.Profiles[name] = u.profile
	}
	return json.Marshal(out)
}

// Load replaces all users and sessions by what Save returned.
func (s *Server) Load(raw []byte) error {
	var in state
	if err := json.Unmarshal(raw, &in); err != nil || len(in.Secret) == 0 {
		return fmt.Errorf("load the stand-in's state: not what Save wrote")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secret, s.sessions, s.users = in.Secret, nil, map[string]*user{}
	for name, profile := range in.Profiles {
		s.users[name] = &user{profile: profile}
	}
	for i, saved := range in.Sessions {
		ses := &session{id: i, user: saved.User, gen: saved.Gen, rotatedAt: saved.RotatedAt, loginAt: saved.LoginAt, dead: saved.Dead}
		s.sessions = append(s.sessions, ses)
		u := s.account(saved.User)
		u.sessions = append(u.sessions, ses)
	}
	return nil
}
