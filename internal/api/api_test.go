package api_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/renewd/renewd/internal/api"
	"github.com/renewd/renewd/internal/clients"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/testkit/streams"
	"github.com/renewd/renewd/internal/tokens"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// world is the HTTP interface on a real NATS server, with a store and tokens that tests fill.
type world struct {
	server   *httptest.Server
	js       jetstream.JetStream
	nc       *nats.Conn
	subjects schema.Subjects
	secrets  map[string]string // by client
	keys     *seal.Keyring
	out      *testkit.Logs
	describe func() ([]byte, error)
	clients  *memory

	mu     sync.Mutex
	grants map[grant.Key]grant.Grant
	token  func(tokens.Request) (tokens.Token, error)
	erased []string
	forget error
}

func (w *world) Load(_ context.Context, k grant.Key) (grant.Grant, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	g, ok := w.grants[k]
	switch {
	case k.User == "store-down":
		return g, errors.New("connection refused")
	case !ok:
		return g, grant.ErrNotFound
	}
	return g, nil
}

func (w *world) Get(_ context.Context, r tokens.Request) (tokens.Token, error) { return w.token(r) }

// memory is the clients of a test, by their secrets.
type memory struct {
	mu    sync.Mutex
	known map[string]clients.Client
}

func (m *memory) Authenticate(secret string) (clients.Client, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.known[secret]
	return c, ok
}

func (m *memory) remove(secret string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.known, secret)
}

func newWorld(t testing.TB, change func(*api.Config)) *world {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w := &world{
		secrets: map[string]string{},
		grants:  map[grant.Key]grant.Grant{},
		out:     &testkit.Logs{},
	}
	w.js = streams.Start(t, natsd.Config{})
	w.nc = w.js.Conn()
	var err error
	w.subjects, err = schema.NewSubjects("")
	must(err)
	_, err = topology.Ensure(
		t.Context(),
		w.js,
		topology.Topology{Subjects: w.subjects}.WithDefaults(),
	)
	must(err)
	w.keys, err = seal.NewKeyring(time.Now())
	must(err)
	e, err := stream.NewEngine(w.js, stream.Config{Subjects: w.subjects})
	must(err)
	must(e.PublishKeys(t.Context(), w.keys.JWKS()))
	w.token = func(tokens.Request) (tokens.Token, error) {
		return tokens.Token{
			Access:    secret.New("canary-access"),
			Type:      "Bearer",
			ExpiresAt: time.Now().Add(time.Hour),
			Version:   7,
		}, nil
	}

	known := &memory{known: map[string]clients.Client{}}
	w.clients = known
	for name, may := range map[string][]clients.Right{
		"all":    clients.Rights(),
		"reader": {clients.Read},
		"tokens": {clients.Token},
		"bound":  clients.Rights(),
	} {
		var providers []string
		if name == "bound" {
			providers = []string{"acme"}
		}
		c, secret, err := clients.New(name, may, providers, time.Now())
		must(err)
		known.known[secret], w.secrets[name] = c, secret
	}
	logger := w.out.Logger()
	log := api.NewLog(w.js, w.subjects, topology.Outcomes, logger)
	ctx, stop := context.WithCancel(context.Background())
	var following sync.WaitGroup
	following.Go(func() { log.Run(ctx) })
	t.Cleanup(func() { stop(); following.Wait() })
	all := api.NewNATS(w.nc, w.subjects, time.Now)
	c := api.Config{
		Clients:     known,
		Tokens:      w,
		Commands:    all,
		Outcomes:    all,
		LastOutcome: e.LastOutcome,
		Store:       w,
		Log:         log,
		Logger:      logger,
		Known:       func(p string) bool { return p == "acme" || p == "globex" },
		Forget: func(_ context.Context, k grant.Key, by string) error {
			w.erased = append(w.erased, k.String()+" "+by)
			return w.forget
		},
	}
	if change != nil {
		change(&c)
	}
	mux := http.NewServeMux()
	w.describe = api.New(mux, c).OpenAPI
	w.server = httptest.NewServer(mux)
	t.Cleanup(w.server.Close)
	return w
}

// ask makes a request as a client and checks its answer against the description.
func (w *world) ask(
	t *testing.T,
	client, method, path, body string,
	header ...string,
) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(
		t.Context(),
		method,
		w.server.URL+path,
		strings.NewReader(body),
	)
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if client != "" {
		r.Header.Set("Authorization", "Bearer "+w.secrets[client])
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	w.check(t, method, path, answer, text)
	return answer, string(text)
}

// check holds an answer against the schema that the description has for it.
func (w *world) check(t *testing.T, method, path string, answer *http.Response, text []byte) {
	t.Helper()
	if cache := answer.Header.Get("Cache-Control"); strings.HasPrefix(path, "/v1/users") &&
		cache != "no-store" {
		t.Errorf("%s %s: Cache-Control %q", method, path, cache)
	}
	kind, _, _ := strings.Cut(answer.Header.Get("Content-Type"), ";")
	if len(text) == 0 || kind != "application/json" && kind != "application/problem+json" {
		return
	}
	raw, err := w.describe()
	if err != nil {
		t.Fatal(err)
	}
	var description struct {
		Paths map[string]map[string]struct {
			Responses map[string]struct {
				Content map[string]struct {
					Schema map[string]any `json:"schema"`
				} `json:"content"`
			} `json:"responses"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(raw, &description); err != nil {
		t.Fatal(err)
	}
	operation, found := description.Paths[template(path)][strings.ToLower(method)]
	if !found {
		return // nothing is under the path
	}
	response, found := operation.Responses[fmt.Sprint(answer.StatusCode)]
	if !found {
		t.Errorf(
			"%s %s answers %d, which its description has not: it has %v",
			method,
			path,
			answer.StatusCode,
			slices.Collect(maps.Keys(operation.Responses)),
		)
		return
	}
	content, found := response.Content[kind]
	if !found {
		t.Errorf(
			"%s %s answers %d as %s, which its description has not",
			method,
			path,
			answer.StatusCode,
			kind,
		)
		return
	}
	validate(t, raw, content.Schema, text)
}

// template is the path as the description has it.
func template(path string) string {
	path, _, _ = strings.Cut(path, "?")
	parts := strings.Split(path, "/")
	if len(parts) > 4 && parts[2] == "users" {
		parts[3], parts[4] = "{provider}", "{user}"
	}
	return strings.Join(parts, "/")
}

// validate holds a JSON text against a schema of the description.
func validate(t *testing.T, description []byte, of map[string]any, text []byte) {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(description))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	if err := compiler.AddResource("openapi.json", doc); err != nil {
		t.Fatal(err)
	}
	reference, _ := of["$ref"].(string)
	s, err := compiler.Compile("openapi.json" + reference)
	if err != nil {
		t.Fatalf("schema %v: %v", of, err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if err := s.Validate(value); err != nil {
		t.Errorf("%s: %v", text, err)
	}
}

func code(t *testing.T, text string) string {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return p.Code
}

func TestWhoMayCallWhat(t *testing.T) {
	w := newWorld(t, nil)
	w.grants[grant.Key{Provider: "acme", User: "u"}] = grant.Grant{
		Key:     grant.Key{Provider: "acme", User: "u"},
		Status:  grant.Live,
		Version: 3,
	}
	const login = `{"provider":"acme","user":"u","tokens":{"access_token":"canary-a"}}`
	for _, c := range []struct {
		client, method, path, body string
		want                       int
	}{
		{"", "GET", "/v1/users/acme/u", "", 401},
		{"unknown", "GET", "/v1/users/acme/u", "", 401},
		{"reader", "GET", "/v1/users/acme/u", "", 200},
		{"reader", "GET", "/v1/users/acme/u/token", "", 403},
		{"reader", "POST", "/v1/users/acme/u/refresh", "", 403},
		{"reader", "POST", "/v1/users/acme/u/logout", "", 403},
		{"all", "POST", "/v1/users/acme/u/logout", `{"revoke":true}`, 202},
		{"reader", "POST", "/v1/users/acme/u/suspend", "", 403},
		{"reader", "POST", "/v1/users/acme/u/resume", "", 403},
		{"all", "POST", "/v1/users/acme/u/suspend", `{"reason":"under investigation"}`, 202},
		{"all", "POST", "/v1/users/acme/u/resume", "", 202},
		{"all", "POST", "/v1/users/acme/u/suspend", `{"reasons":"?"}`, 400},
		{"reader", "DELETE", "/v1/users/acme/u", "", 403},
		{"reader", "POST", "/v1/logins", login, 403},
		{"tokens", "GET", "/v1/users/acme/u/token", "", 200},
		{"tokens", "GET", "/v1/users/acme/u", "", 403},
		{"tokens", "GET", "/v1/outcomes", "", 403},
		{"bound", "GET", "/v1/users/acme/u/token", "", 200},
		{"bound", "GET", "/v1/users/globex/u/token", "", 403},
		{"bound", "POST", "/v1/users/globex/u/refresh", "", 403},
		{"bound", "POST", "/v1/logins", strings.Replace(login, "acme", "globex", 1), 403},
		{"bound", "GET", "/v1/outcomes?provider=globex", "", 403},
		{"bound", "POST", "/v1/logins", login, 202},
		{"all", "POST", "/v1/users/acme/u/refresh", "", 202},
		{"all", "POST", "/v1/users/acme/u/refresh", `{"want":"tokens","reason":"webhook"}`, 202},
		{"all", "GET", "/v1/users/nowhere/u", "", 404},
		{"all", "GET", "/v1/users/acme/stranger", "", 404},
		{"all", "GET", "/v1/users/acme/store-down", "", 503},
		{"all", "GET", "/v1/nothing", "", 404},
	} {
		answer, text := w.ask(t, c.client, c.method, c.path, c.body)
		if answer.StatusCode != c.want {
			t.Errorf(
				"%s: %s %s: %d, want %d: %s",
				c.client,
				c.method,
				c.path,
				answer.StatusCode,
				c.want,
				text,
			)
		}
		if answer.StatusCode == 401 && answer.Header.Get("WWW-Authenticate") == "" {
			t.Error("401 without WWW-Authenticate")
		}
	}
	if w.out.Has("canary") {
		t.Error("a token is in the log")
	}
}

func TestBadInputIsNamed(t *testing.T) {
	w := newWorld(t, nil)
	const canary = "canary-refresh"
	for _, c := range []struct {
		method, path, body string
		status             int
		code, location     string
	}{
		{"POST", "/v1/logins", `{`, 400, "malformed", ""},
		{
			"POST", "/v1/logins",
			`{"provider":"acme","user":"u","tokens":{"refresh_token":"` + canary + `"}}`, 400,
			"malformed", "body.tokens",
		},
		{
			"POST", "/v1/logins",
			`{"provider":"acme","user":"u","tokens":{"access_token":{"a":"` + canary + `"}}}`, 400,
			"malformed", "body.tokens.access_token",
		},
		{
			"POST", "/v1/logins",
			`{"provider":"acme","user":"u","token":{"access_token":"` + canary + `"}}`, 400,
			"malformed", "body",
		},
		{
			"POST", "/v1/logins",
			`{"provider":"ACME!","user":"u","tokens":{"access_token":"` + canary + `"}}`, 400,
			"malformed", "provider",
		},
		{
			"POST", "/v1/logins",
			`{"provider":"acme","user":"","tokens":{"access_token":"` + canary + `"}}`, 400,
			"malformed", "user",
		},
		{
			"POST", "/v1/logins",
			`{"provider":"acme","user":"u","tokens":{"access_token":"` +
				strings.Repeat("x", 65<<10) + `"}}`,
			413, "too_large", "",
		},
		{
			"POST", "/v1/users/acme/u/refresh", `{"want":"everything"}`, 400, "malformed",
			"body.want",
		},
		{
			"POST", "/v1/users/acme/u/refresh", `{"min_valid_seconds":-1}`, 400, "malformed",
			"body.min_valid_seconds",
		},
		{"GET", "/v1/users/acme/u/token?min_valid=soon", "", 400, "malformed", "query.min_valid"},
		{"GET", "/v1/users/acme/u/token?min_vaild=5m", "", 400, "malformed", "query.min_vaild"},
		{"GET", "/v1/outcomes?type=user.login", "", 400, "malformed", "query.type"},
		{"GET", "/v1/outcomes?user=u", "", 400, "malformed", "query.provider"},
	} {
		answer, text := w.ask(t, "all", c.method, c.path, c.body)
		var p api.Problem
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		named := c.location == "" ||
			slices.ContainsFunc(
				p.Fields,
				func(f api.FieldProblem) bool { return f.Location == c.location },
			)
		if answer.StatusCode != c.status || p.Code != c.code || !named ||
			p.Type != "/v1/problems/"+c.code {
			t.Errorf("%s %s %.60s: %d %s", c.method, c.path, c.body, answer.StatusCode, text)
		}
		if strings.Contains(text, canary) {
			t.Errorf("a token is in the answer: %s", text)
		}
		if page, err := http.Get(w.server.URL + p.Type); err != nil || page.StatusCode != 200 {
			t.Errorf("page %s: %v %v", p.Type, page, err)
		}
	}
	answer, text := w.ask(t, "all", "POST", "/v1/users/acme/u/refresh", "", "Prefer", "wait=soon")
	if answer.StatusCode != 400 {
		t.Errorf("Prefer: %d %s", answer.StatusCode, text)
	}
}

func TestALoginIsSealedAndPublishedOnce(t *testing.T) {
	w := newWorld(t, nil)
	const body = `{"provider":"acme","user":"auth0|jane","tokens":{"access_token":"canary-a",` +
		`"refresh_token":"canary-r","expires_in":1800,"token_type":"bearer"}}`
	for i, duplicate := range []bool{false, true} {
		answer, text := w.ask(t, "all", "POST", "/v1/logins", body, "Idempotency-Key", "login-1")
		var got struct {
			Source, ID string
			Duplicate  bool
		}
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatal(err)
		}
		if answer.StatusCode != 202 || got.ID != "login-1" || got.Source != "/clients/all" ||
			got.Duplicate != duplicate {
			t.Errorf("request %d: %d %s", i, answer.StatusCode, text)
		}
	}
	s, err := w.js.Stream(t.Context(), topology.Logins)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.GetMsg(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if m.Subject != "from.http.user.login.acme.auth0=7Cjane" ||
		strings.Contains(string(m.Data), "canary") {
		t.Errorf("stored %s: %s", m.Subject, m.Data)
	}
	var sealed schema.Login
	if err := json.Unmarshal(m.Data, &sealed); err != nil {
		t.Fatal(err)
	}
	l, err := w.keys.OpenLogin(sealed.Tokens)
	if err != nil || l.Refresh.Reveal() != "canary-r" {
		t.Errorf("opened: %v", err)
	}
}

// outcome stores one.
func (w *world) outcome(t *testing.T, e schema.Event) {
	t.Helper()
	e.Source, e.Time = "/renewd", time.Now().UTC()
	h, body := schema.Encode(e)
	m := &nats.Msg{Subject: w.subjects.Of(e.Address()), Header: nats.Header(h), Data: body}
	if _, err := w.js.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

func (w *world) synced(t *testing.T, provider, user, id, cause string) {
	t.Helper()
	w.syncedFor(t, "http", provider, user, id, cause)
}

// syncedFor answers a command of this sender.
func (w *world) syncedFor(t *testing.T, sender, provider, user, id, cause string) {
	t.Helper()
	w.outcome(t, schema.Event{
		ID: id, Type: schema.UserSynced, Provider: provider, User: user,
		Data: fmt.Appendf(nil, `{"cause":{"id":%q,"type":"user.refresh_due",`+
			`"source":"/clients/all","sender":%q},`+
			`"began_at":"2020-01-01T00:00:00Z","version":1}`, cause, sender),
	})
}

func TestAnAnswerIsWaitedFor(t *testing.T) {
	w := newWorld(t, nil)
	answered := make(chan struct{})
	sub, err := w.nc.Subscribe("from.http.user.refresh_due.>", func(m *nats.Msg) {
		defer close(answered)
		w.synced(t, "acme", "u", "outcome-1", m.Header.Get("ce-id"))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	answer, text := w.ask(
		t,
		"all",
		"POST",
		"/v1/users/acme/u/refresh",
		`{"want":"tokens"}`,
		"Prefer",
		"respond-async, wait=30",
	)
	select {
	case <-answered:
	default:
		t.Error("the command was not published")
	}
	if answer.StatusCode != 200 || !strings.Contains(text, `"outcome-1"`) ||
		answer.Header.Get("Preference-Applied") != "wait=30" {
		t.Errorf("%d %s %v", answer.StatusCode, text, answer.Header)
	}
}

// Source and id are a publisher's own words: another sender may use the same.
func TestAnotherSendersAnswerIsNotWaitedFor(t *testing.T) {
	w := newWorld(t, nil)
	sub, err := w.nc.Subscribe("from.http.user.refresh_due.>", func(m *nats.Msg) {
		id := m.Header.Get("ce-id")
		w.syncedFor(t, "shop", "acme", "u", "of-shop", id)
		w.synced(t, "acme", "u", "of-http", id)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	_, text := w.ask(t, "all", "POST", "/v1/users/acme/u/refresh", "", "Prefer", "wait=30")
	if !strings.Contains(text, `"of-http"`) {
		t.Errorf("answered by %s", text)
	}
}

func TestAWaitThatIsInVainIsStillAccepted(t *testing.T) {
	w := newWorld(t, nil)
	answer, text := w.ask(t, "all", "POST", "/v1/users/acme/u/refresh", "", "Prefer", "wait=1")
	if answer.StatusCode != 202 || strings.Contains(text, "outcome") {
		t.Errorf("%d %s", answer.StatusCode, text)
	}
}

func TestAToken(t *testing.T) {
	w := newWorld(t, nil)
	answer, text := w.ask(t, "tokens", "GET", "/v1/users/acme/auth0%7Cjane/token?min_valid=5m", "")
	if answer.StatusCode != 200 || !strings.Contains(text, `"access_token":"canary-access"`) ||
		!strings.Contains(text, `"version":7`) {
		t.Errorf("%d %s", answer.StatusCode, text)
	}
	var asked tokens.Request
	for code, want := range map[string]int{
		schema.TokenUnknownUser: 404,
		schema.TokenSignIn:      409,
		schema.TokenSignedOut:   409,
		schema.TokenSuspended:   409,
		schema.TokenSuperseded:  409,
		schema.TokenTryAgain:    503,
		schema.TokenBusy:        503,
		schema.TokenStoreDown:   503,
	} {
		w.token = func(r tokens.Request) (tokens.Token, error) {
			asked = r
			no := &schema.NoToken{Code: code, Message: "m", Reason: "revoked", RetryAfterSeconds: 9}
			return tokens.Token{}, fmt.Errorf("token of acme/u: %w", no)
		}
		answer, text := w.ask(t, "tokens", "GET", "/v1/users/acme/u/token", "")
		var p api.Problem
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			t.Fatal(err)
		}
		if answer.StatusCode != want || p.Code != code || p.Reason != "revoked" ||
			answer.Header.Get("Retry-After") != "9" {
			t.Errorf("%s: %d %s %v", code, answer.StatusCode, text, answer.Header)
		}
	}
	if asked != (tokens.Request{
		Provider: "acme",
		User:     "u",
		MinValid: time.Minute,
		Reader:   "tokens",
		Door:     tokens.DoorHTTP,
	}) {
		t.Errorf("asked for %+v", asked)
	}
}

func TestAState(t *testing.T) {
	w := newWorld(t, nil)
	k := grant.Key{Provider: "acme", User: "auth0|jane"}
	w.grants[k] = grant.Grant{
		Key:       k,
		Status:    grant.ReauthRequired,
		Version:   12,
		LastError: "outage",
		Verdict:   &grant.Verdict{Reason: "revoked"},
		Pair:      grant.Pair{Access: secret.New("canary-a"), Refresh: secret.New("canary-r")},
	}
	w.synced(t, k.Provider, k.User, "outcome-7", "c")
	answer, text := w.ask(t, "reader", "GET", "/v1/users/acme/auth0%7Cjane", "")
	for _, want := range []string{`"reauth_required"`, `"revoked"`, `"version":12`, `"outcome-7"`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	if strings.Contains(text, "canary") || answer.Header.Get("ETag") != `"12"` {
		t.Errorf("%s %v", text, answer.Header)
	}
	answer, text = w.ask(
		t,
		"reader",
		"GET",
		"/v1/users/acme/auth0%7Cjane",
		"",
		"If-None-Match",
		`"12"`,
	)
	if answer.StatusCode != 304 || text != "" {
		t.Errorf("%d %q", answer.StatusCode, text)
	}
}

func TestAnErasure(t *testing.T) {
	w := newWorld(t, nil)
	for err, want := range map[error]int{
		nil:                     204,
		grant.ErrNotFound:       404,
		api.ErrNotAllowed:       403,
		errors.New("half done"): 503,
	} {
		w.forget = err
		answer, text := w.ask(t, "all", "DELETE", "/v1/users/acme/u", "")
		if answer.StatusCode != want {
			t.Errorf("%v: %d %s", err, answer.StatusCode, text)
		}
	}
	if w.erased[0] != "acme/u all" {
		t.Errorf("erased %q", w.erased)
	}
}

// Wrong secrets slow an address down; a right one is taken from the same address.
func TestWrongSecretsAreLimited(t *testing.T) {
	w := newWorld(t, nil)
	seen := map[int]int{}
	for range 40 {
		answer, _ := w.ask(t, "unknown", "GET", "/v1/users/acme/u", "")
		seen[answer.StatusCode]++
	}
	if seen[401] == 0 || seen[429] == 0 {
		t.Errorf("answers %v", seen)
	}
	answer, text := w.ask(t, "all", "GET", "/v1/users/acme/u/token", "")
	if answer.StatusCode != 200 {
		t.Errorf("a right secret: %d %s", answer.StatusCode, text)
	}
}

func TestOneClientsRateIsNotAnothers(t *testing.T) {
	w := newWorld(t, func(c *api.Config) { c.ClientRate = 2 })
	limited := false
	for range 20 {
		answer, _ := w.ask(t, "all", "GET", "/v1/users/acme/u/token", "")
		limited = limited || answer.StatusCode == 429 && answer.Header.Get("Retry-After") != ""
	}
	if !limited {
		t.Error("nothing was limited")
	}
	answer, text := w.ask(t, "tokens", "GET", "/v1/users/acme/u/token", "")
	if answer.StatusCode != 200 {
		t.Errorf("another client: %d %s", answer.StatusCode, text)
	}
}

// listen opens an event stream and returns its lines.
func (w *world) listen(
	t testing.TB,
	ctx context.Context,
	client, query, last string,
) *bufio.Scanner {
	t.Helper()
	r, err := http.NewRequestWithContext(
		ctx,
		http.MethodGet,
		w.server.URL+"/v1/outcomes"+query,
		nil,
	)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+w.secrets[client])
	r.Header.Set("Accept", "text/event-stream")
	if last != "" {
		r.Header.Set("Last-Event-ID", last)
	}
	for {
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		// Its end of the stream is not known yet.
		if answer.StatusCode == http.StatusServiceUnavailable {
			_ = answer.Body.Close()
			continue
		}
		if answer.StatusCode != 200 || answer.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("%s %v", answer.Status, answer.Header)
		}
		t.Cleanup(func() { _ = answer.Body.Close() })
		lines := bufio.NewScanner(answer.Body)
		if !lines.Scan() || lines.Text() != "retry: 1000" {
			t.Fatalf("first line %q", lines.Text())
		}
		return lines
	}
}

// events reads n of them: their places and ids.
func events(t *testing.T, lines *bufio.Scanner, n int) (places, ids []string) {
	t.Helper()
	place := ""
	for len(ids) < n && lines.Scan() {
		if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			place = id
		}
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			var e api.Outcome
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				t.Fatal(err)
			}
			places, ids = append(places, place), append(ids, e.ID)
		}
	}
	if len(ids) < n {
		t.Fatalf("%d events, want %d: %v", len(ids), n, lines.Err())
	}
	return places, ids
}

func TestListenersHearWhatTheyChose(t *testing.T) {
	w := newWorld(t, nil)
	all := w.listen(t, t.Context(), "all", "", "")
	bound := w.listen(t, t.Context(), "bound", "", "")
	one := w.listen(t, t.Context(), "all", "?type=user.synced&provider=acme&user=u1", "")
	w.synced(t, "globex", "u0", "a", "c")
	w.synced(t, "acme", "u0", "b", "c")
	w.synced(t, "acme", "u1", "c", "c")
	if _, ids := events(t, all, 3); !slices.Equal(ids, []string{"a", "b", "c"}) {
		t.Errorf("all: %v", ids)
	}
	if _, ids := events(t, bound, 2); !slices.Equal(ids, []string{"b", "c"}) {
		t.Errorf("bound to acme: %v", ids)
	}
	if _, ids := events(t, one, 1); !slices.Equal(ids, []string{"c"}) {
		t.Errorf("one user: %v", ids)
	}
}

// A listener that comes back misses nothing, whether what it missed is still in memory or not.
func TestAListenerResumes(t *testing.T) {
	w := newWorld(t, nil)
	w.synced(t, "acme", "u", "before", "c")
	ctx, leave := context.WithCancel(t.Context())
	lines := w.listen(t, ctx, "all", "", "")
	w.synced(t, "acme", "u", "0", "c")
	places, _ := events(t, lines, 1)
	leave()
	const missed = 20_000 // more than is kept in memory
	for i := range missed {
		w.publish(t, "globex", fmt.Sprint(i+1))
	}
	w.synced(t, "acme", "u", "last", "c")
	resumed := w.listen(t, t.Context(), "all", "", places[0])
	_, ids := events(t, resumed, missed+1)
	for i, id := range ids[:missed] {
		if id != fmt.Sprint(i+1) {
			t.Fatalf("event %d is %s", i, id)
		}
	}
	if ids[missed] != "last" {
		t.Errorf("last: %s", ids[missed])
	}
	filtered := w.listen(t, t.Context(), "all", "?provider=acme", places[0])
	if _, ids := events(t, filtered, 1); ids[0] != "last" {
		t.Errorf("filtered: %v", ids)
	}
	fromTheStart := w.listen(t, t.Context(), "all", "?provider=acme", "0")
	if _, ids := events(t, fromTheStart, 3); !slices.Equal(ids, []string{"before", "0", "last"}) {
		t.Errorf("from the start: %v", ids)
	}
}

// Several filters on one consumer make the server look through every subject of the stream: a
// listener that resumes reads each type by its own consumer, and hears all types in one order.
func TestAResumedListenerAsksForOneFilterAtATime(t *testing.T) {
	w := newWorld(t, nil)
	made, err := w.nc.SubscribeSync("$JS.API.CONSUMER.CREATE.OUTCOMES.>")
	if err != nil {
		t.Fatal(err)
	}
	types := []schema.Type{
		schema.UserSynced, schema.UserRefreshFailed, schema.MessageRejected, schema.UserSynced,
		schema.UserReauthRequired, schema.UserRefreshFailed, schema.UserForgotten,
	}
	var want []string
	for i, of := range types {
		for _, user := range []string{"u", "other"} {
			id := fmt.Sprint(user, "-", i)
			w.outcome(t, schema.Event{
				ID:       id,
				Type:     of,
				Provider: "acme",
				User:     user,
				Data:     json.RawMessage(`{"cause":{"id":"c"}}`),
			})
			if user == "u" {
				want = append(want, id)
			}
		}
	}
	lines := w.listen(t, t.Context(), "all", "?provider=acme&user=u", "0")
	if _, ids := events(t, lines, len(want)); !slices.Equal(ids, want) {
		t.Errorf("heard %v, want %v", ids, want)
	}
	all, _, err := made.Pending()
	if err != nil || all == 0 {
		t.Fatalf("%d consumers were made, %v", all, err)
	}
	for range all {
		m, err := made.NextMsg(time.Second)
		if err != nil {
			t.Fatal(err)
		}
		var c struct {
			Config jetstream.ConsumerConfig `json:"config"`
		}
		if err := json.Unmarshal(m.Data, &c); err != nil {
			t.Fatal(err)
		}
		if f := c.Config.FilterSubjects; len(f) > 1 {
			t.Errorf("one consumer with %d filters: %v", len(f), f)
		}
	}
}

// publish stores an outcome without waiting for the server.
func (w *world) publish(t *testing.T, provider, id string) {
	t.Helper()
	e := schema.Event{
		ID:       id,
		Source:   "/renewd",
		Type:     schema.UserSynced,
		Provider: provider,
		User:     "u",
		Time:     time.Now().UTC(),
		Data: json.RawMessage(
			`{"cause":{"id":"c","type":"timer"},"began_at":"2020-01-01T00:00:00Z","version":1}`,
		),
	}
	h, body := schema.Encode(e)
	m := &nats.Msg{Subject: w.subjects.Of(e.Address()), Header: nats.Header(h), Data: body}
	if _, err := w.js.PublishMsgAsync(m, jetstream.WithStallWait(time.Minute)); err != nil {
		t.Fatal(err)
	}
}

func TestStoredOutcomesAreRead(t *testing.T) {
	w := newWorld(t, nil)
	w.synced(t, "acme", "u", "a", "c")
	w.synced(t, "globex", "u", "b", "c")
	for client, want := range map[string][]string{"all": {"a", "b"}, "bound": {"a"}} {
		answer, text := w.ask(
			t,
			client,
			"GET",
			"/v1/outcomes",
			"",
			"Accept",
			"application/x-ndjson",
		)
		var ids []string
		for line := range strings.Lines(text) {
			var e api.Outcome
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatal(err)
			}
			ids = append(ids, e.ID)
		}
		if answer.StatusCode != 200 || !slices.Equal(ids, want) {
			t.Errorf("%s: %d %v", client, answer.StatusCode, ids)
		}
	}
}

func TestListenersAreBounded(t *testing.T) {
	w := newWorld(t, func(c *api.Config) { c.MaxListeners = 1 })
	w.listen(t, t.Context(), "all", "", "")
	answer, text := w.ask(t, "all", "GET", "/v1/outcomes", "", "Accept", "text/event-stream")
	if answer.StatusCode != 503 || code(t, text) != schema.TokenBusy {
		t.Errorf("%d %s", answer.StatusCode, text)
	}
}

func TestTheDescriptionIsServed(t *testing.T) {
	w := newWorld(t, nil)
	answer, err := http.Get(w.server.URL + "/v1/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var d struct {
		OpenAPI string
		Paths   map[string]any
	}
	if err := json.NewDecoder(answer.Body).Decode(&d); err != nil || d.OpenAPI != "3.1.0" ||
		len(d.Paths) < 5 {
		t.Errorf("%+v %v", d, err)
	}
}

// A caller that is cut off before its first event has a place to come back with.
func TestAListenerHasAPlaceBeforeItsFirstEvent(t *testing.T) {
	w := newWorld(t, nil)
	known := w.listen(t, t.Context(), "all", "", "")
	w.synced(t, "acme", "u", "before", "c")
	events(t, known, 1)
	lines := w.listen(t, t.Context(), "all", "", "")
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "id: ") {
		t.Fatalf("second line %q", lines.Text())
	}
	w.synced(t, "acme", "u", "missed", "c")
	again := w.listen(t, t.Context(), "all", "", strings.TrimPrefix(lines.Text(), "id: "))
	if _, ids := events(t, again, 1); ids[0] != "missed" {
		t.Errorf("heard %v", ids)
	}
}

// A client that was removed hears nothing more on a stream that is open.
func TestARemovedClientHearsNoMore(t *testing.T) {
	w := newWorld(t, nil)
	lines := w.listen(t, t.Context(), "reader", "", "")
	w.synced(t, "acme", "u", "a", "c")
	events(t, lines, 1)
	w.clients.remove(w.secrets["reader"])
	w.synced(t, "acme", "u", "b", "c")
	for lines.Scan() {
		if strings.Contains(lines.Text(), `"id":"b"`) {
			t.Error("a client that was removed heard an outcome")
		}
	}
}

// A listener that asks for no body takes no place from the others.
func TestHeadOfOutcomesEnds(t *testing.T) {
	w := newWorld(t, func(c *api.Config) { c.MaxListeners = 2 })
	w.listen(t, t.Context(), "all", "", "") // the end of the stream is known
	for _, kind := range []string{"text/event-stream", "application/x-ndjson"} {
		for range 12 {
			answer, text := w.ask(t, "all", "HEAD", "/v1/outcomes", "", "Accept", kind)
			if text != "" || answer.StatusCode != 200 {
				t.Errorf("%s: %d %q", kind, answer.StatusCode, text)
			}
		}
	}
}

// A choice that nothing stored matches goes on without being cut off.
func TestAResumedListenerWithoutAMatchGoesOn(t *testing.T) {
	w := newWorld(t, nil)
	for i := range 9000 * 2 { // beyond what is kept in memory
		w.publish(t, "globex", fmt.Sprint(i))
	}
	lines := w.listen(t, t.Context(), "all", "?provider=acme", "1")
	w.synced(t, "acme", "u", "match", "c")
	if _, ids := events(t, lines, 1); ids[0] != "match" {
		t.Errorf("heard %v", ids)
	}
}

// An erasure takes what is in memory too.
func TestAnErasedUserIsNotToldFromMemory(t *testing.T) {
	w := newWorld(t, nil)
	lines := w.listen(t, t.Context(), "all", "", "")
	w.synced(t, "acme", "jane", "of jane", "c")
	w.synced(t, "acme", "june", "of june", "c")
	places, _ := events(t, lines, 2)
	w.outcome(t, schema.Event{
		ID: "gone", Type: schema.UserForgotten, Provider: "acme", User: "jane",
		Data: json.RawMessage(
			`{"cause":{"id":"c","type":"user.forget"},"began_at":"2020-01-01T00:00:00Z"}`,
		),
	})
	events(t, lines, 1)
	from := fmt.Sprint(must(strconv.Atoi(places[0])) - 1)
	_, ids := events(t, w.listen(t, t.Context(), "all", "", from), 2)
	if !slices.Equal(ids, []string{"of june", "gone"}) {
		t.Errorf("heard %v", ids)
	}
}

func must(n int, err error) int {
	if err != nil {
		panic(err)
	}
	return n
}
