package door_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"golang.org/x/oauth2"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/tokens"
	"github.com/renewd/renewd/internal/tokens/door"
	"github.com/renewd/renewd/schema"
)

const canary = "canary-access-token"

// source is a token source that a test speaks for.
type source struct {
	mu    sync.Mutex
	asked []tokens.Request
	get   func(ctx context.Context, r tokens.Request) (tokens.Token, error)
	// refused are the codes of the requests that were not worth a Get, by provider.
	refused map[string][]string
}

func (s *source) Refused(r tokens.Request, code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refused == nil {
		s.refused = map[string][]string{}
	}
	s.refused[r.Provider] = append(s.refused[r.Provider], code)
}

func (s *source) Get(ctx context.Context, r tokens.Request) (tokens.Token, error) {
	s.mu.Lock()
	s.asked = append(s.asked, r)
	s.mu.Unlock()
	return s.get(ctx, r)
}

func (s *source) requests() []tokens.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]tokens.Request(nil), s.asked...)
}

// world is a door on a NATS server, and a service beside it.
type world struct {
	*source
	service *nats.Conn
	end     func() error
}

func open(t *testing.T, c door.Config) world {
	t.Helper()
	s, err := natsd.Start(t.Context(), natsd.Config{StoreDir: t.TempDir()})
	must(t, err)
	t.Cleanup(s.Shutdown)
	w := world{source: &source{}}
	w.get = func(context.Context, tokens.Request) (tokens.Token, error) {
		return token(time.Hour), nil
	}
	w.service = connect(t, s)
	c.Conn, c.Tokens = connect(t, s), w.source
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	w.end = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { must(t, w.end()) })
	w.await(t, c.Subjects)
	return w
}

func connect(t *testing.T, s *natsd.Server) *nats.Conn {
	t.Helper()
	nc, err := s.Connect()
	must(t, err)
	t.Cleanup(nc.Close)
	return nc
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// await waits until both endpoints answer.
func (w world) await(t *testing.T, s schema.Subjects) {
	t.Helper()
	for _, sender := range []string{"", "x"} {
		subject := strings.Replace(s.TokenGets(sender), ">", "-.u", 1)
		for deadline := time.Now().Add(testkit.Patience); ; {
			_, err := w.service.Request(subject, nil, time.Second)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal(subject, err)
			}
		}
	}
}

func token(life time.Duration) tokens.Token {
	return tokens.Token{
		Access: secret.New(canary), Type: "Bearer", Scope: "email", ExpiresAt: time.Now().Add(life),
		Version: 7, Short: schema.ShortDelayed,
	}
}

var whom = consumers.Whom{Provider: "propelauth", User: "jane@example.com"}

func TestTokenOverNATS(t *testing.T) {
	for _, prefix := range []string{"", "acme.eu"} {
		subjects, err := schema.NewSubjects(prefix)
		must(t, err)
		w := open(t, door.Config{Subjects: subjects})
		spy, err := w.service.SubscribeSync(">")
		must(t, err)
		to := whom
		to.Prefix = prefix
		got, err := consumers.Token(t.Context(), w.service, to, 5*time.Minute)
		must(t, err)
		if got.AccessToken != canary || got.TokenType != "Bearer" || got.Scope != "email" ||
			got.Version != 7 || got.Short != schema.ShortDelayed ||
			time.Until(got.ExpiresAt) < time.Minute {
			t.Errorf("%q %q %v", got.AccessToken, got.TokenType, got.ExpiresAt)
		}
		want := tokens.Request{
			Provider: whom.Provider,
			User:     whom.User,
			MinValid: 5 * time.Minute,
			Door:     tokens.DoorNATS,
		}
		if r := w.requests(); len(r) != 1 || r[0] != want {
			t.Errorf("asked for %+v", r)
		}
		for seen := 0; seen < 2; seen++ { // the request, and its answer
			m, err := spy.NextMsg(20 * time.Second)
			must(t, err)
			text := fmt.Sprint(m.Subject, m.Header, string(m.Data))
			if strings.Contains(text, canary) {
				t.Errorf("in plain sight: %s", text)
			}
		}
		if text := fmt.Sprintf("%v %+v %#v", got, got, got); strings.Contains(text, canary) {
			t.Error(text)
		}
	}
}

func TestLeastValidity(t *testing.T) {
	w := open(t, door.Config{})
	for _, c := range []struct{ asked, want time.Duration }{
		{0, 0}, {-1, -1}, {time.Second, time.Second}, {1500 * time.Millisecond, 2 * time.Second},
		{48 * time.Hour, 24 * time.Hour},
	} {
		_, err := consumers.Token(t.Context(), w.service, whom, c.asked)
		must(t, err)
		r := w.requests()
		if got := r[len(r)-1].MinValid; got != c.want {
			t.Errorf("asked for %v: %v, want %v", c.asked, got, c.want)
		}
	}
}

// Nothing of a bad request reaches the source, and its sender is told what is wrong.
func TestHostileRequests(t *testing.T) {
	w := open(t, door.Config{})
	asker, err := seal.NewAsker()
	must(t, err)
	key, err := asker.JWK()
	must(t, err)
	good := fmt.Sprintf(`{"key":%s}`, key)
	body := func(members string) string { return fmt.Sprintf(`{"key":%s,%s}`, key, members) }
	rsa := `{"kty":"RSA","n":"` + strings.Repeat("A", 700) + `","e":"AQAB"}`
	const u = "token.get.p.u"
	zero := strings.Repeat("A", 43)
	for _, c := range []struct{ subject, body, want string }{
		{u, "", "no JSON object"},
		{u, "{}", "missing"},
		{u, `{"key":null}`, "kty EC"},
		{u, `{"key":` + rsa + `}`, "kty EC"},
		{u, `{"key":` + strings.Replace(string(key), "P-256", "P-384", 1) + `}`, "P-256"},
		{u, `{"key":{"kty":"EC","crv":"P-256","x":"` + zero + `","y":"` + zero + `"}}`, "no point"},
		{
			u,
			`{"key":` + strings.Replace(string(key), `"x"`, `"d":"AA","x"`, 1) + `}`,
			"private key",
		},
		{u, `{"key":` + strings.Repeat("[", 1500) + `}`, "no JSON object"},
		{u, good + strings.Repeat(" ", schema.MaxTokenGet), "at most 2048"},
		{u, strings.Repeat("x", 900_000), "at most 2048"},
		{u, body(`"min_valid_seconds":-1`), "min_valid_seconds"},
		{u, body(`"min_valid_seconds":86401`), "min_valid_seconds"},
		{u, body(`"min_valid_seconds":"60"`), "no JSON object"},
		{"token.get.p.jane@example.com", good, "want"},
		{"token.get.p", good, "want"},
		{"token.get.P.u", good, "provider"},
		{"token.get.p.=7", good, "user"},
		{"from.Shop.token.get.p.u", good, "sender"},
		{"from.shop.token.get.p.u.v", good, "want"},
	} {
		m, err := w.service.Request(c.subject, []byte(c.body), 20*time.Second)
		if err != nil {
			t.Errorf("%s %.80s: %v", c.subject, c.body, err)
			continue
		}
		var no schema.NoToken
		must(t, json.Unmarshal(m.Data, &no))
		if no.Code != schema.TokenMalformed || !strings.Contains(no.Message, c.want) {
			t.Errorf("%s %.80s: %+v, want %q", c.subject, c.body, no, c.want)
		}
		if m.Header.Get(schema.TokenErrorCode) != no.Code || m.Header.Get(schema.TokenError) == "" {
			t.Errorf("headers %v", m.Header)
		}
	}
	must(t, w.service.Publish(u, []byte(good))) // without a reply
	must(t, w.service.PublishRequest(u, "$JS.ACK.S.c.1.1.1.1.1", []byte(good)))
	_, err = consumers.Token(t.Context(), w.service, whom, 0)
	must(t, err)
	if r := w.requests(); len(r) != 1 {
		t.Errorf("asked for %+v", r)
	}
}

func TestWhoMayRead(t *testing.T) {
	w := open(t, door.Config{MayRead: func(sender, provider string) bool {
		return sender == "shop" && provider == "propelauth"
	}})
	asker, err := seal.NewAsker()
	must(t, err)
	key, err := asker.JWK()
	must(t, err)
	body := fmt.Appendf(nil, `{"key":%s}`, key)
	for subject, want := range map[string]string{
		"from.shop.token.get.propelauth.u": "",
		"from.shop.token.get.okta.u":       schema.TokenForbidden,
		"from.mail.token.get.propelauth.u": schema.TokenForbidden,
		"token.get.propelauth.u":           schema.TokenForbidden,
	} {
		m, err := w.service.Request(subject, body, 20*time.Second)
		must(t, err)
		if got := m.Header.Get(schema.TokenErrorCode); got != want {
			t.Errorf("%s: %q, want %q", subject, got, want)
		}
	}
	if r := w.requests(); len(r) != 1 || r[0].Reader != "shop" {
		t.Errorf("asked for %+v", r)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.refused["okta"]) != 1 || len(w.refused["propelauth"]) != 2 {
		t.Errorf("noted as refused %v", w.refused)
	}
}

// The same errors reach a caller through an http.Client.
func TestErrorsThroughAnHTTPClient(t *testing.T) {
	w := open(t, door.Config{})
	since := time.Date(2026, 3, 1, 3, 12, 0, 0, time.UTC)
	w.get = func(context.Context, tokens.Request) (tokens.Token, error) {
		no := &schema.NoToken{
			Code:    schema.TokenSignIn,
			Message: "m",
			Reason:  "revoked",
			Since:   since,
		}
		return tokens.Token{}, fmt.Errorf("token of p/u: %w", no)
	}
	client := oauth2.NewClient(t.Context(), consumers.TokenSource(w.service, "propelauth", "u"))
	_, err := client.Get("http://127.0.0.1:1/")
	var no *schema.NoToken
	if !errors.As(err, &no) || !no.SignInAgain() || no.Reason != "revoked" ||
		!no.Since.Equal(since) {
		t.Errorf("%v", err)
	}
	w.get = func(context.Context, tokens.Request) (tokens.Token, error) {
		return tokens.Token{}, errors.New("of renewd's inside")
	}
	_, err = consumers.Token(t.Context(), w.service, whom, 0)
	if !errors.As(err, &no) || no.Code != schema.TokenTryAgain ||
		strings.Contains(err.Error(), "inside") {
		t.Errorf("%v", err)
	}
}

// A client goes on with the token that it has until that is not good for long enough.
func TestTokenSourceAsksWhenItMust(t *testing.T) {
	w := open(t, door.Config{})
	var calls []string
	api := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		calls = append(calls, r.Header.Get("Authorization"))
	}))
	t.Cleanup(api.Close)
	life := time.Hour
	w.get = func(context.Context, tokens.Request) (tokens.Token, error) { return token(life), nil }
	source := consumers.TokenSource(w.service, "propelauth", "u",
		consumers.WithMinValid(10*time.Minute), consumers.WithContext(t.Context()))
	client := oauth2.NewClient(t.Context(), source)
	get := func() {
		t.Helper()
		answer, err := client.Get(api.URL)
		must(t, err)
		must(t, answer.Body.Close())
	}
	get()
	get()
	if r := w.requests(); len(r) != 1 || r[0].MinValid != 10*time.Minute {
		t.Errorf("asked for %+v", r)
	}
	if len(calls) != 2 || calls[0] != "Bearer "+canary || calls[1] != calls[0] {
		t.Errorf("%q", calls)
	}
	life = 9 * time.Minute // as of a provider that is down
	client = oauth2.NewClient(t.Context(), consumers.TokenSource(
		w.service, "propelauth", "u", consumers.WithMinValid(10*time.Minute)))
	get()
	get()
	if r := w.requests(); len(r) != 3 {
		t.Errorf("asked for %+v", r)
	}
}

func TestBusy(t *testing.T) {
	w := open(t, door.Config{Most: 1})
	taken, release := make(chan struct{}), make(chan struct{})
	w.get = func(context.Context, tokens.Request) (tokens.Token, error) {
		taken <- struct{}{}
		<-release
		return token(time.Hour), nil
	}
	first := make(chan error, 1)
	go func() {
		_, err := consumers.Token(context.Background(), w.service, whom, 0)
		first <- err
	}()
	<-taken
	_, err := consumers.Token(t.Context(), w.service, whom, 0)
	var no *schema.NoToken
	if !errors.As(err, &no) || no.Code != schema.TokenBusy || no.RetryAfter() != time.Second {
		t.Errorf("%v", err)
	}
	close(release)
	must(t, <-first)
}

// A caller's context ends its wait; a door that ends answers those who wait.
func TestWaitsEnd(t *testing.T) {
	w := open(t, door.Config{})
	taken := make(chan struct{}, 2)
	w.get = func(ctx context.Context, _ tokens.Request) (tokens.Token, error) {
		taken <- struct{}{}
		<-ctx.Done()
		return tokens.Token{}, ctx.Err()
	}
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	errs := make(chan error, 2)
	go func() {
		_, err := consumers.Token(ctx, w.service, whom, 0)
		errs <- err
	}()
	<-taken
	cancel(gone)
	if err := <-errs; !errors.Is(err, gone) {
		t.Error(err)
	}
	go func() {
		_, err := consumers.Token(context.Background(), w.service, whom, 0)
		errs <- err
	}()
	<-taken
	must(t, w.end())
	var no *schema.NoToken
	if err := <-errs; !errors.As(err, &no) || no.Code != schema.TokenTryAgain {
		t.Error(err)
	}
	_, err := consumers.Token(t.Context(), w.service, whom, 0)
	if !errors.Is(err, nats.ErrNoResponders) || !strings.Contains(err.Error(), "--reader") {
		t.Error(err)
	}
}

// `nats micro ls` and `nats micro info` ask on these subjects.
func TestServiceIsListed(t *testing.T) {
	w := open(t, door.Config{})
	m, err := w.service.Request("$SRV.INFO."+door.Name, nil, 20*time.Second)
	must(t, err)
	var info micro.Info
	must(t, json.Unmarshal(m.Data, &info))
	subjects := map[string]bool{}
	for _, e := range info.Endpoints {
		subjects[e.Subject] = true
	}
	if info.Name != door.Name || !subjects["token.get.>"] || !subjects["from.*.token.get.>"] {
		t.Errorf("%+v", info)
	}
}

// Another client on the account answers in renewd's place, with what it has.
func TestAnswersThatAreNoneAreRefused(t *testing.T) {
	s, err := natsd.Start(t.Context(), natsd.Config{StoreDir: t.TempDir()})
	must(t, err)
	t.Cleanup(s.Shutdown)
	nc := connect(t, s)
	answer := func([]byte) []byte { return nil }
	_, err = nc.Subscribe("token.get.>", func(m *nats.Msg) { _ = m.Respond(answer(m.Data)) })
	must(t, err)
	sealed := func(provider, user, plain string) func([]byte) []byte {
		return func(request []byte) []byte {
			var get schema.TokenGet
			_ = json.Unmarshal(request, &get)
			key, err := seal.ParseAnswerKey(get.Key)
			if err != nil {
				t.Error(err)
			}
			jwe, err := seal.SealAnswer(key, provider, user, []byte(plain))
			if err != nil {
				t.Error(err)
			}
			return []byte(jwe)
		}
	}
	for what, a := range map[string]func([]byte) []byte{
		"nothing":      func([]byte) []byte { return nil },
		"plain":        func([]byte) []byte { return []byte(`{"access_token":"x"}`) },
		"another user": sealed("propelauth", "eve", `{"access_token":"x"}`),
		"no token":     sealed(whom.Provider, whom.User, `{}`),
		"no JSON":      sealed(whom.Provider, whom.User, `x`),
	} {
		answer = a
		got, err := consumers.Token(t.Context(), nc, whom, 0)
		if err == nil || got.AccessToken != "" {
			t.Errorf("%s: %q, %v", what, got.AccessToken, err)
		}
	}
	bad := consumers.Whom{Provider: "P", User: "u"}
	if _, err := consumers.Token(t.Context(), nc, bad, 0); !errors.Is(err, schema.ErrSubject) {
		t.Error(err)
	}
}
