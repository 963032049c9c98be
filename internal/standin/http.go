package standin

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
)

func (s *Server) routes() {
	s.mux.HandleFunc("POST /propelauth/oauth/token", s.serveToken)
	s.mux.HandleFunc("GET /propelauth/oauth/userinfo", s.serveUserInfo)
	s.mux.HandleFunc("GET /.well-known/openid-configuration", s.serveDiscovery)
	s.mux.HandleFunc("GET /.well-known/jwks.json", s.serveKeys)
	s.mux.HandleFunc("POST /propelauth/oauth/revoke", s.serveRevoke)
	s.mux.HandleFunc("POST /api/backend/v1/refresh_token", s.serveSessionRefresh)
	s.mux.HandleFunc("POST /api/backend/v1/logout", s.serveLogout)
	if s.options.Admin {
		s.adminRoutes()
	}
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // an error means: the client is gone
}

func refuse(w http.ResponseWriter, status int, code string) {
	reply(w, status, map[string]string{"error": code})
}

func (s *Server) serveToken(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<16)
	if !s.client(r) {
		// RFC 6749 section 5.2.
		if r.Header.Get("Authorization") != "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="stand-in"`)
		}
		refuse(w, http.StatusUnauthorized, "invalid_client")
		return
	}
	if r.PostFormValue("grant_type") != "refresh_token" {
		refuse(w, http.StatusBadRequest, "unsupported_grant_type")
		return
	}
	s.exchange(w, r, "token", r.PostFormValue("refresh_token"),
		func(w http.ResponseWriter, t ticket, good bool) {
			if !good {
				refuse(w, http.StatusBadRequest, "invalid_grant")
				return
			}
			tokens := s.tokens(t, !s.options.OmitRefresh)
			if !s.options.Nested {
				reply(w, http.StatusOK, tokens)
				return
			}
			reply(w, http.StatusOK, map[string]any{
				"refresh_token": tokens.Refresh,
				"access_token": map[string]any{
					"access_token":       tokens.Access,
					"expires_at_seconds": t.at.Add(s.options.Lifetime).Unix(),
				},
			})
		})
}

// serveSessionRefresh is PropelAuth's other way to refresh: JSON, with the user in the answer, and
// no OAuth errors.
func (s *Server) serveSessionRefresh(w http.ResponseWriter, r *http.Request) {
	token, ok := jsonToken(w, r)
	if !ok {
		http.Error(w, "Bad request", http.StatusBadRequest)
		return
	}
	s.exchange(w, r, "session", token, func(w http.ResponseWriter, t ticket, good bool) {
		if !good {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		tokens, profile := s.tokens(t, true), map[string]any{}
		_ = json.Unmarshal(s.profile(t.user), &profile) // our own
		organisations := profile["org_id_to_org_info"]
		delete(profile, "org_id_to_org_info")
		reply(w, http.StatusOK, map[string]any{
			"refresh_token": tokens.Refresh,
			"access_token": map[string]any{
				"access_token":              tokens.Access,
				"expires_at_seconds":        t.at.Add(s.options.Lifetime).Unix(),
				"user":                      profile,
				"org_id_to_org_member_info": organisations,
			},
		})
	})
}

// exchange is one presentation. write writes the provider's own answer.
func (s *Server) exchange(
	w http.ResponseWriter, r *http.Request, op, token string,
	write func(_ http.ResponseWriter, _ ticket, good bool),
) {
	p, leave := s.enter(token)
	p.From = r.RemoteAddr
	defer func() { leave(p) }()
	f := s.faultFor(Request{Op: op, User: p.User})
	p.Lost = f.wrong() && f.acts() // set now, since a fault may leave by a panic
	s.answer(w, r, f, func(w http.ResponseWriter) {
		var t ticket
		t, p.Verdict = s.present(token)
		write(w, t, p.Verdict == Renewed || p.Verdict == Replay)
	})
	p.Lost = p.Verdict != Unread && (p.Lost || r.Context().Err() != nil)
}

// client checks the client's credentials, which must come in the one registered way.
func (s *Server) client(r *http.Request) bool {
	id, secret, basic := r.BasicAuth()
	if basic {
		if r.PostFormValue("client_secret") != "" {
			return false // two ways at once
		}
		id, _ = url.QueryUnescape(id)
		secret, _ = url.QueryUnescape(secret)
	} else {
		id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	}
	return id == s.options.ClientID && secret == s.options.ClientSecret &&
		basic == (s.options.ClientBasic && s.options.ClientSecret != "")
}

func (s *Server) serveUserInfo(w http.ResponseWriter, r *http.Request) {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	s.mu.Lock()
	s.stats.UserInfos++
	u, ok := s.opens(token)
	var name string
	if ok {
		name = u.name
	}
	s.mu.Unlock()
	if s.options.Asked != nil {
		s.options.Asked(Call{User: name, At: s.options.Now()})
	}
	s.answer(w, r, s.faultFor(Request{Op: "userinfo", User: name}), func(w http.ResponseWriter) {
		if !ok {
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			refuse(w, http.StatusUnauthorized, "invalid_token")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(s.profile(name)) // an error means: the client is gone
	})
}

// serveDiscovery serves PropelAuth's document. As at PropelAuth, refresh works although it is not
// among the grants.
func (s *Server) serveDiscovery(w http.ResponseWriter, r *http.Request) {
	base := "http://" + r.Host
	if r.TLS != nil {
		base = "https://" + r.Host
	}
	alg := s.options.Signing
	if alg == Opaque {
		alg = RS256 // of ID tokens, which the stand-in does not make; the member is required
	}
	s.answer(w, r, s.faultFor(Request{Op: "discovery"}), func(w http.ResponseWriter) {
		document := map[string]any{
			"issuer":                                base,
			"authorization_endpoint":                base + "/propelauth/oauth/authorize",
			"token_endpoint":                        base + "/propelauth/oauth/token",
			"userinfo_endpoint":                     base + "/propelauth/oauth/userinfo",
			"jwks_uri":                              base + "/.well-known/jwks.json",
			"response_types_supported":              []string{"code"},
			"subject_types_supported":               []string{"public"},
			"code_challenge_methods_supported":      []string{"S256"},
			"id_token_signing_alg_values_supported": []Signing{alg},
			"grant_types_supported":                 []string{"authorization_code"},
			"scopes_supported":                      []string{"openid", "email", "profile"},
			"token_endpoint_auth_methods_supported": []string{
				"client_secret_basic", "client_secret_post",
			},
			"claims_supported": []string{
				"email", "email_verified", "exp", "first_name", "iat", "iss", "last_name",
				"picture_url",
			},
		}
		if s.options.OIDC {
			document["revocation_endpoint"] = base + "/propelauth/oauth/revoke"
		}
		reply(w, http.StatusOK, document)
	})
}

// serveRevoke ends the session of a refresh token, spent or not (RFC 7009). An unknown token is
// revoked already.
func (s *Server) serveRevoke(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<16)
	if !s.client(r) {
		refuse(w, http.StatusUnauthorized, "invalid_client")
		return
	}
	s.answer(w, r, s.faultFor(Request{Op: "revoke"}), func(w http.ResponseWriter) {
		s.mu.Lock()
		if ses, _, ok := s.open("rt", r.PostFormValue("token")); ok {
			ses.dead = true
		}
		s.mu.Unlock()
		w.WriteHeader(http.StatusOK)
	})
}

func (s *Server) serveKeys(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	signer := s.signer
	s.mu.Unlock()
	reply(w, http.StatusOK, signer.jwks())
}

func jsonToken(w http.ResponseWriter, r *http.Request) (string, bool) {
	var in struct {
		Refresh string `json:"refresh_token"`
	}
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&in)
	return in.Refresh, err == nil
}

func (s *Server) serveLogout(w http.ResponseWriter, r *http.Request) {
	token, ok := jsonToken(w, r)
	if !ok {
		refuse(w, http.StatusBadRequest, "invalid_request")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ses, _, ok := s.open("rt", token); ok {
		ses.dead = true
	}
}
