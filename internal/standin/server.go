package standin

import (
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Rotation is the change of a refresh token by a refresh.
type Rotation string

// The rotations.
const (
	Strict Rotation = "strict" // a new token each time, the old token is dead at once
	// the same, but the previous token is taken for Options.Grace more, however often
	Grace Rotation = "grace"
	Never Rotation = "never" // the token stays
)

// Options are the provider's behaviour. The zero value: strict rotation, reuse ends the session,
// access tokens of 30 minutes, a public client "renewd-test".
type Options struct {
	Lifetime     time.Duration // of access tokens; default 30 min
	Signing      Signing       // of access tokens; default ES256
	Rotation     Rotation      // default Strict
	Grace        time.Duration // for Rotation Grace; default 30 s
	KeepOnReuse  bool          // a reuse is refused, but does not end the session
	SessionLife  time.Duration // from login; 0: forever
	IdleLife     time.Duration // of a session from its last refresh; 0: forever
	ClientID     string        // default "renewd-test"
	ClientSecret string        // "": a public client
	ClientBasic  bool          // the secret is wanted in the Authorization header, else in the form
	OmitRefresh  bool          // answers carry no refresh token (use with Never)
	Nested       bool          // access_token is an object, as at PropelAuth's session endpoint
	LaxUserInfo  bool          // userinfo looks at the access token only, not at the session
	// userinfo names the user in sub too, and discovery names the revocation endpoint (RFC 7009)
	OIDC    bool
	Latency time.Duration // before each answer
	Admin   bool          // serve /_admin/
	Issuer  string        // of access tokens; "": they have no issuer
	// Observe is told of each presentation once it is answered, or will not be; nil: no observer.
	// Observe may be called from many goroutines at once, and must not call the Server.
	Observe func(Presentation)
	// Asked is told of each arriving userinfo call, under the same terms; nil: no observer.
	Asked func(Call)
	Now   func() time.Time // default time.Now
}

func (o Options) withDefaults() Options {
	o.Lifetime = cmp.Or(o.Lifetime, 30*time.Minute)
	o.Signing = cmp.Or(o.Signing, ES256)
	o.Rotation = cmp.Or(o.Rotation, Strict)
	o.Grace = cmp.Or(o.Grace, 30*time.Second)
	o.ClientID = cmp.Or(o.ClientID, "renewd-test")
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// session is one login of a user and all tokens that came of the login: a family. A session is
// small, since there may be millions.
type session struct {
	user        *user
	id          int
	gen         int   // of the current refresh token
	loginAt     int64 // Unix ns, as is
	rotatedAt   int64
	spent       int    // the generation a replay is taken of, within its grace
	spentAt     int64  // when spent was first presented
	presented   uint32 // count of the current refresh token's presentations
	inFlight    int16
	maxInFlight int16
	dead        bool
}

// user is an account.
type user struct {
	name string
	// the profile, once edited; until then made at each request
	edited   map[string]any
	created  int64 // Unix s, as is
	active   int64
	sessions []*session // newest last
	truth    UserStats
	disabled bool
	deleted  bool
}

// Server is the stand-in. It serves HTTP.
type Server struct {
	options Options
	mux     *http.ServeMux

	mu       sync.Mutex
	secret   []byte // replaced by Load, never changed
	signer   *signer
	users    map[string]*user
	sessions []*session
	stats    Stats
	fault    func(Request) *Fault
}

// New returns a stand-in without users. New panics if the options name no way to sign, or there is
// no randomness.
func New(o Options) *Server {
	s := &Server{
		options: o.withDefaults(),
		secret:  make([]byte, 32),
		users:   map[string]*user{},
		mux:     http.NewServeMux(),
	}
	_, _ = rand.Read(s.secret) // never fails
	var err error
	if s.signer, err = newSigner(s.options.Signing); err != nil {
		panic("standin: " + err.Error())
	}
	s.routes()
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Tokens is the result of a login or a refresh.
type Tokens struct {
	Access    string `json:"access_token"`
	Refresh   string `json:"refresh_token,omitempty"`
	TokenType string `json:"token_type"`
	ExpiresIn int    `json:"expires_in"`
}

// Login opens a session for a user. The first login creates the user with a fresh profile.
func (s *Server) Login(name string) Tokens {
	s.mu.Lock()
	u := s.account(name)
	u.deleted = false
	now := s.options.Now().UnixNano()
	ses := &session{id: len(s.sessions), user: u, loginAt: now, rotatedAt: now, spent: -1}
	s.sessions = append(s.sessions, ses)
	u.sessions = append(u.sessions, ses)
	u.truth.Logins++
	t := s.ticket(ses)
	s.mu.Unlock()
	return s.tokens(t, true)
}

func (s *Server) account(name string) *user {
	u := s.users[name]
	if u == nil {
		now := s.options.Now().Unix()
		u = &user{name: strings.Clone(name), created: now, active: now}
		s.users[u.name] = u
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

// Disable disables the account, as an administrator would.
func (s *Server) Disable(name string) { s.set(name, func(u *user) { u.disabled = true }) }

// Enable undoes Disable.
func (s *Server) Enable(name string) { s.set(name, func(u *user) { u.disabled = false }) }

// Delete removes the account. A later login makes a new account of the same name. Its older
// sessions stay dead.
func (s *Server) Delete(name string) {
	s.EndSessions(name)
	s.set(name, func(u *user) { u.deleted, u.edited = true, nil })
}

// Edit changes the user's profile. change must not keep the map.
func (s *Server) Edit(name string, change func(profile map[string]any)) {
	s.set(name, func(u *user) {
		if u.edited == nil {
			u.edited = profileOf(u.name, u.created)
		}
		change(u.edited)
	})
}

func (s *Server) set(name string, change func(*user)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s.account(name))
}

// alive reports whether the session is renewed.
func (s *Server) alive(ses *session) bool {
	now := s.options.Now().UnixNano()
	over := func(life time.Duration, since int64) bool {
		return life > 0 &&
			now-since > int64(life)
	}
	return !ses.dead && !ses.user.disabled && !ses.user.deleted &&
		!over(s.options.SessionLife, ses.loginAt) && !over(s.options.IdleLife, ses.rotatedAt)
}

// ticket holds everything a token is made from, so that no token is made under the lock.
type ticket struct {
	user    string
	session int
	gen     int
	at      time.Time
	secret  []byte
	signer  *signer
}

func (s *Server) ticket(ses *session) ticket {
	return ticket{
		user:    ses.user.name,
		session: ses.id,
		gen:     ses.gen,
		at:      s.options.Now(),
		secret:  s.secret,
		signer:  s.signer,
	}
}

// sealed is kind.session.generation[.time].mac, so that millions of sessions need no table of
// tokens.
func (t ticket) sealed(kind string, more ...int64) string {
	head := kind + "." + strconv.Itoa(t.session) + "." + strconv.Itoa(t.gen)
	for _, n := range more {
		head += "." + strconv.FormatInt(n, 10)
	}
	return head + "." + mac(t.secret, head)
}

func (t ticket) refresh() string { return t.sealed("rt") }

func (s *Server) tokens(t ticket, refresh bool) Tokens {
	out := Tokens{TokenType: "Bearer", ExpiresIn: int(s.options.Lifetime.Seconds())}
	out.Access = t.signer.access(t, s.options.Issuer, s.options.ClientID,
		t.sealed("at", t.at.UnixNano()), s.options.Lifetime)
	if refresh {
		out.Refresh = t.refresh()
	}
	return out
}

// open finds the session of one of this server's tokens. numbers are the numbers after the token's
// session: its generation, and in an access token the time the token was made, in Unix ns.
func (s *Server) open(kind, token string) (ses *session, numbers []int64, ok bool) {
	parts := strings.Split(token, ".")
	last := len(parts) - 1
	if last < 3 || parts[0] != kind ||
		!hmac.Equal([]byte(parts[last]), []byte(mac(
			s.secret, token[:len(token)-len(parts[last])-1],
		))) {
		return nil, nil, false
	}
	for _, part := range parts[1:last] {
		n, err := strconv.ParseInt(part, 10, 64)
		if err != nil {
			return nil, nil, false
		}
		numbers = append(numbers, n)
	}
	if numbers[0] >= int64(len(s.sessions)) {
		return nil, nil, false // of a state replaced by Load
	}
	return s.sessions[numbers[0]], numbers[1:], true
}

// opens returns the account that an access token opens.
func (s *Server) opens(token string) (*user, bool) {
	ses, numbers, ok := s.open("at", idOf(token))
	if !ok || s.options.Now().Sub(time.Unix(0, numbers[1])) >= s.options.Lifetime ||
		!s.options.LaxUserInfo && !s.alive(ses) {
		return nil, false
	}
	return ses.user, true
}
