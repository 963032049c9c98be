package idptest

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Request is what a fault may depend on.
type Request struct {
	Op   string // "token" or "userinfo"
	User string // empty if the token is not known
}

// Fault is something that goes wrong with one answer. The zero value changes nothing.
type Fault struct {
	// Act lets the provider do its part first: the token is rotated, only the answer goes wrong.
	Act bool
	// Delay before the answer; the request's own end cuts it short.
	Delay time.Duration
	// Drop closes the connection in place of an answer.
	Drop bool
	// Truncate sends half of the true answer, then closes the connection. It implies Act.
	Truncate bool
	// Status, Header and Body are the answer. Status 0 with the rest unset: the true answer, after Delay.
	Status int
	Header http.Header
	Body   string
}

// SetFault asks f before each answer; nil, or a nil result, means no fault.
func (s *Server) SetFault(f func(Request) *Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

func (s *Server) faultFor(r Request) *Fault {
	s.mu.Lock()
	f := s.fault
	s.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(r)
}

func (s *Server) routes() {
	s.mux.HandleFunc("POST /propelauth/oauth/token", s.serveToken)
	s.mux.HandleFunc("GET /propelauth/oauth/userinfo", s.serveUserInfo)
	s.mux.HandleFunc("GET /.well-known/openid-configuration", s.serveDiscovery)
	s.mux.HandleFunc("POST /api/backend/v1/logout", s.serveLogout)
	if s.options.Admin {
		s.mux.HandleFunc("POST /_admin/login", func(w http.ResponseWriter, r *http.Request) { reply(w, 200, s.Login(r.FormValue("user"))) })
		s.mux.HandleFunc("POST /_admin/end", func(_ http.ResponseWriter, r *http.Request) { s.EndSessions(r.FormValue("user")) })
		s.mux.HandleFunc("GET /_admin/stats", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, s.Stats()) })
		s.mux.HandleFunc("GET /_admin/users", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, s.Users()) })
		s.mux.HandleFunc("GET /_admin/live", func(w http.ResponseWriter, r *http.Request) { reply(w, 200, s.Live(r.FormValue("user"))) })
	}
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone: nobody to tell
}

func refuse(w http.ResponseWriter, status int, code string) {
	reply(w, status, map[string]string{"error": code})
}

func (s *Server) serveToken(w http.ResponseWriter, r *http.Request) {
	if !s.client(r) {
		refuse(w, http.StatusUnauthorized, "invalid_client")
		return
	}
	if r.FormValue("grant_type") != "refresh_token" {
		refuse(w, http.StatusBadRequest, "unsupported_grant_type")
		return
	}
	token := r.PostFormValue("refresh_token")
	leave, name := s.enter(token)
	defer leave()
	s.answer(w, r, s.faultFor(Request{Op: "token", User: name}), func(w http.ResponseWriter) {
		t, _, code := s.refresh(token)
		switch {
		case code != "":
			refuse(w, http.StatusBadRequest, code)
		case s.options.Nested:
			reply(w, http.StatusOK, map[string]any{"refresh_token": t.Refresh, "access_token": map[string]any{
				"access_token": t.Access, "expires_at_seconds": s.options.Now().Add(s.options.Lifetime).Unix(),
			}})
		default:
			reply(w, http.StatusOK, t)
		}
	})
}

// client checks how the client names itself: in the one way that it is registered for.
func (s *Server) client(r *http.Request) bool {
	id, secret, basic := r.BasicAuth()
	if basic {
		id, _ = url.QueryUnescape(id)
		secret, _ = url.QueryUnescape(secret)
	} else {
		id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	}
	return id == s.options.ClientID && secret == s.options.ClientSecret && basic == (s.options.ClientBasic && s.options.ClientSecret != "")
}

func (s *Server) serveUserInfo(w http.ResponseWriter, r *http.Request) {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	s.mu.Lock()
	s.stats.UserInfos++
	u, ok := s.checkAccess(token)
	var body []byte
	var name string
	if ok {
		body, _ = json.Marshal(u.profile)
		name, _ = u.profile["user_id"].(string)
	}
	s.mu.Unlock()
	s.answer(w, r, s.faultFor(Request{Op: "userinfo", User: name}), func(w http.ResponseWriter) {
		if !ok {
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			refuse(w, http.StatusUnauthorized, "invalid_token")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
	})
}

// answer gives the true answer, or what the fault makes of it.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, f *Fault, truth func(http.ResponseWriter)) {
	if f == nil {
		f = &Fault{}
	}
	if wait := s.options.Latency + f.Delay; wait > 0 && !(f.Act || f.Truncate) {
		pause(r, wait)
	}
	wrong := f.Drop || f.Truncate || f.Status != 0
	if !wrong && !f.Act {
		truth(w)
		return
	}
	recorded := &recorder{header: http.Header{}}
	if f.Act || f.Truncate {
		truth(recorded)
		pause(r, s.options.Latency+f.Delay)
	}
	switch {
	case f.Drop:
		panic(http.ErrAbortHandler)
	case f.Truncate:
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(recorded.body[:len(recorded.body)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case f.Status != 0:
		for name, values := range f.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(f.Status)
		_, _ = w.Write([]byte(f.Body))
	default:
		for name, values := range recorded.header {
			w.Header()[name] = values
		}
		w.WriteHeader(recorded.status)
		_, _ = w.Write(recorded.body)
	}
}

func pause(r *http.Request, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.Context().Done():
	}
}

// recorder keeps an answer instead of sending it.
type recorder struct {
	header http.Header
	status int
	body   []byte
}

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(n int)   { r.status = n }
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	r.body = append(r.body, b...)
	return len(b), nil
}

// serveDiscovery says what PropelAuth's document says; like there, refresh works although it is not among the grants.
func (s *Server) serveDiscovery(w http.ResponseWriter, r *http.Request) {
	base := "http://" + r.Host
	if r.TLS != nil {
		base = "https://" + r.Host
	}
	reply(w, http.StatusOK, map[string]any{
		"issuer": base, "authorization_endpoint": base + "/propelauth/oauth/authorize", "token_endpoint": base + "/propelauth/oauth/token",
		"userinfo_endpoint": base + "/propelauth/oauth/userinfo", "jwks_uri": base + "/.well-known/jwks.json",
		"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{"RS256"}, "grant_types_supported": []string{"authorization_code"},
		"scopes_supported": []string{"openid", "email", "profile"}, "token_endpoint_auth_methods_supported": []string{"client_secret_basic", "client_secret_post"},
	})
}

func (s *Server) serveLogout(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Refresh string `json:"refresh_token"`
	}
	if json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&in) != nil {
		refuse(w, http.StatusBadRequest, "invalid_request")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ses, _, ok := s.parse("rt", in.Refresh); ok {
		ses.dead = true
	}
}
