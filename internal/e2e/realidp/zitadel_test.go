package realidp

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/op"
	"golang.org/x/text/language"

	"github.com/renewd/renewd/publishers"
)

// zitadelKind is the example server of zitadel/oidc, the library that ZITADEL is built on.
var zitadelKind = kind{
	name: "zitadel", preset: "zitadel", module: "github.com/zitadel/oidc/v3", start: startZitadel,
	endpoints: map[string]string{"/oauth/token": "token", "/userinfo": "userinfo"},
	wrongWay:  "none",
	title:     "zitadel/oidc %s, its example server",
	verdicts: map[string]verdict{
		"refreshed, rotated":        {"success", "", "the library's example server"},
		"revoked":                   {"permanent", "revoked", ""},
		"spent":                     {"permanent", "revoked", "there is no grace window"},
		"unknown":                   {"permanent", "revoked", ""},
		"no token":                  {"unknown", "", "renewd sends no such request"},
		"user deleted":              {"throttled", "", "the token is spent nevertheless"},
		"user deleted, again":       {"permanent", "revoked", ""},
		"wrong secret or client":    {"config", "", "before the token is looked at"},
		"wrong secret, put right":   {"success", "", ""},
		"no secret":                 {"config", "", "client_auth: none, at a client that has one"},
		"unsupported grant":         {"config", "", ""},
		"userinfo":                  {"success", "", ""},
		"userinfo, bad token":       {"refused", "", ""},
		"userinfo, no token":        {"refused", "", ""},
		"userinfo, session revoked": {"refused", "", "access tokens end with their session"},
	},
}

// zitadel is the example server: refresh tokens are for one use, without a grace window.
type zitadel struct {
	issuer string
	people *people
	data   *storage.Storage
	server atomic.Pointer[http.Handler]
}

func startZitadel(t *testing.T, issuer string) provider {
	t.Helper()
	z := &zitadel{issuer: issuer, people: &people{byID: map[string]*storage.User{}}}
	z.data = storage.NewStorageWithClients(z.people, map[string]*storage.Client{
		clientID: storage.WebClient(clientID, clientSecret, callback),
	})
	if err := z.restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	return z
}

func (z *zitadel) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	(*z.server.Load()).ServeHTTP(w, r)
}

// restart keeps what the example server has in its memory, which is its only store.
func (z *zitadel) restart(context.Context) error {
	// The example sets the logger of the whole process to the one that it is given.
	var server http.Handler = exampleop.SetupServer(z.issuer, shortLived{z.data},
		slog.New(slog.DiscardHandler), false)
	z.server.Store(&server)
	return nil
}

const (
	callback = "http://localhost/callback"
	password = "a-made-up-password"
)

func (z *zitadel) enroll(_ context.Context, name string) error {
	z.people.add(name)
	return nil
}

// signIn goes through the login page, as a browser does.
func (z *zitadel) signIn(ctx context.Context, name string) (string, publishers.Tokens, error) {
	page, err := z.redirect(ctx, http.MethodGet, "/auth?"+url.Values{
		"client_id":     {clientID},
		"redirect_uri":  {callback},
		"response_type": {"code"},
		"scope":         {"openid email profile offline_access"},
		"state":         {"made-up"},
	}.Encode(), nil)
	if err != nil {
		return "", publishers.Tokens{}, err
	}
	form := url.Values{
		"username": {name},
		"password": {password},
		"id":       {page.Query().Get("authRequestID")},
	}
	next, err := z.redirect(ctx, http.MethodPost, "/login/username", form)
	if err != nil {
		return "", publishers.Tokens{}, err
	}
	end, err := z.redirect(ctx, http.MethodGet, next.RequestURI(), nil)
	if err != nil {
		return "", publishers.Tokens{}, err
	}
	form = url.Values{
		"grant_type":   {"authorization_code"},
		"code":         {end.Query().Get("code")},
		"redirect_uri": {callback},
	}
	said := z.call(ctx, http.MethodPost, "/oauth/token", form)
	var pair struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		IDToken      string `json:"id_token"`
		ExpiresIn    int    `json:"expires_in"`
	}
	if err := json.Unmarshal(said.Body.Bytes(), &pair); err != nil || pair.RefreshToken == "" {
		return "", publishers.Tokens{}, fmt.Errorf("sign in %s: status %d, no refresh token: %w",
			name, said.Code, err)
	}
	return name, publishers.Tokens{
		AccessToken:  pair.AccessToken,
		RefreshToken: pair.RefreshToken,
		IDToken:      pair.IDToken,
		ExpiresIn:    time.Duration(pair.ExpiresIn) * time.Second,
	}, nil
}

func (z *zitadel) call(
	ctx context.Context, method, path string, form url.Values,
) *httptest.ResponseRecorder {
	req := httptest.NewRequestWithContext(ctx, method, z.issuer+path,
		strings.NewReader(form.Encode()))
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.SetBasicAuth(clientID, clientSecret)
	}
	said := httptest.NewRecorder()
	z.ServeHTTP(said, req)
	return said
}

// redirect returns where the answer of a page sends the browser.
func (z *zitadel) redirect(
	ctx context.Context, method, path string, form url.Values,
) (*url.URL, error) {
	said := z.call(ctx, method, path, form)
	if said.Code != http.StatusFound {
		return nil, fmt.Errorf("%s %s: status %d, want a redirect: %s",
			method, path, said.Code, said.Body)
	}
	return said.Result().Location()
}

func (z *zitadel) revoke(ctx context.Context, name string) error {
	return z.data.TerminateSession(ctx, name, clientID)
}

func (z *zitadel) remove(_ context.Context, name string) error {
	z.people.remove(name)
	return nil
}

// shortLived is the example's storage, with access tokens that are said to live for a short time.
// Their actual lifetime of five minutes is written in the example's code.
type shortLived struct{ *storage.Storage }

func (s shortLived) CreateAccessAndRefreshTokens(
	ctx context.Context, request op.TokenRequest, old string,
) (id, refresh string, ends time.Time, err error) {
	id, refresh, _, err = s.Storage.CreateAccessAndRefreshTokens(ctx, request, old)
	return id, refresh, time.Now().Add(lifetime * time.Second), err
}

// people are the accounts; an id is the name.
type people struct {
	mu   sync.Mutex
	byID map[string]*storage.User
}

func (p *people) add(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.byID[name] = &storage.User{
		ID:                name,
		Username:          name,
		Password:          password,
		FirstName:         "Ada",
		LastName:          "Example",
		Email:             name + "@example.com",
		EmailVerified:     true,
		PreferredLanguage: language.German,
	}
}

func (p *people) remove(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.byID, name)
}

// GetUserByID returns nil for an unknown id.
func (p *people) GetUserByID(id string) *storage.User {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.byID[id]
}

// GetUserByUsername returns nil for an unknown name.
func (p *people) GetUserByUsername(name string) *storage.User { return p.GetUserByID(name) }

// ExampleClientID names a service account, which these tests do without.
func (p *people) ExampleClientID() string { return storage.ServiceUserID }
