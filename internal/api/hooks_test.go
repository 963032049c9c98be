package api_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/api"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/source/hook"
	"github.com/renewd/renewd/internal/testkit/hooktest"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/publishers"
)

var hookSecret = "whsec_" + strings.Repeat("bmV3", 10)

// withHooks has a source of each of three kinds.
func withHooks(t *testing.T, issuer string) func(*api.Config) {
	return func(c *api.Config) {
		w := c.Store.(*world)
		_, err := topology.Ensure(t.Context(), w.js,
			topology.Topology{Subjects: w.subjects, Sources: true}.WithDefaults())
		if err != nil {
			t.Fatal(err)
		}
		secrets := []secret.Value{secret.New(hookSecret)}
		audience := []string{"c"}
		c.Hooks, err = hook.New([]hook.Config{
			{Name: "propel", Kind: hook.PropelAuth, Provider: "acme", Secrets: secrets},
			{
				Name: "out", Kind: hook.Logout, Provider: "acme", Issuer: issuer,
				Audience: audience, AllowHTTP: true,
			},
			{
				Name: "caep", Kind: hook.SET, Provider: "acme", Issuer: issuer,
				Audience: audience, AllowHTTP: true,
			},
		}, hook.Deps{
			JetStream: w.js, Subjects: w.subjects, Load: w.Load, Logger: c.Logger,
			Publisher: func(source string) (*publishers.Publisher, error) {
				return publishers.New(w.nc, publishers.WithSource(source))
			},
			Calls: func(string, ...string) (http.RoundTripper, error) {
				return http.DefaultTransport, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// signedBy are the headers of a webhook.
func signedBy(t *testing.T, with, front, id, body string) []string {
	t.Helper()
	header := []string{"Content-Type", "application/json"}
	for name, values := range hooktest.Sign(t, with, front, id, time.Now(), body) {
		header = append(header, name, values[0])
	}
	return header
}

// A webhook that is signed over its bytes becomes one command of its source, without a client.
func TestAWebhookBecomesACommand(t *testing.T) {
	w := newWorld(t, withHooks(t, "http://127.0.0.1:1"))
	jane := grant.Key{Provider: "acme", User: "jane"}
	w.grants[jane] = grant.Grant{Key: jane, Status: grant.Live}
	const body = "{ \"event_type\": \"user.updated\",\n\t\"user_id\":\"jane\" }"
	for range 2 {
		answer, text := w.ask(t, "", "POST", "/v1/hooks/propel", body,
			signedBy(t, hookSecret, "svix-", "msg_1", body)...)
		if answer.StatusCode != 202 || text != "" {
			t.Errorf("%d %s", answer.StatusCode, text)
		}
	}
	s, err := w.js.Stream(t.Context(), topology.Requests)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.GetLastMsgForSubject(t.Context(), "from.http.user.refresh_due.acme.jane")
	if err != nil || m.Header.Get("ce-id") != "msg_1" ||
		m.Header.Get("ce-source") != "/sources/propel" || stored(t, s) != 1 {
		t.Errorf("%+v %v", m, err)
	}
}

func stored(t *testing.T, s jetstream.Stream) uint64 {
	t.Helper()
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.State.Msgs
}

// Over a network without TLS a client is refused, whatever its secret. A message that is
// signed is taken.
func TestClientsAreServedWithTLSOnly(t *testing.T) {
	w := newWorld(t, func(c *api.Config) {
		withHooks(t, "http://127.0.0.1:1")(c)
		c.InClear = true
	})
	jane := grant.Key{Provider: "acme", User: "jane"}
	w.grants[jane] = grant.Grant{Key: jane, Status: grant.Live}
	for _, path := range []string{"/v1/users/acme/jane/token", "/v1/users/acme/jane"} {
		for _, client := range []string{"all", "unknown"} {
			answer, text := w.ask(t, client, "GET", path, "")
			if answer.StatusCode != 403 || !strings.Contains(text, "needs_tls") {
				t.Errorf("%s as %s: %d %s", path, client, answer.StatusCode, text)
			}
		}
	}
	const body = `{"event_type": "user.updated", "user_id": "jane"}`
	answer, text := w.ask(t, "", "POST", "/v1/hooks/propel", body,
		signedBy(t, hookSecret, "svix-", "msg_1", body)...)
	if answer.StatusCode != 202 {
		t.Errorf("a signed message: %d %s", answer.StatusCode, text)
	}
}

// What is wrong with a message is told in the form of its kind, and nothing of it is repeated.
func TestRefusedMessages(t *testing.T) {
	issuer := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(issuer.Close)
	w := newWorld(t, withHooks(t, issuer.URL))
	w.grants[grant.Key{Provider: "acme", User: "store-down"}] = grant.Grant{}
	const canary = `{"event_type":"user.updated","user_id":"canary"}`
	const down = `{"event_type":"user.updated","user_id":"store-down"}`
	good := signedBy(t, hookSecret, "webhook-", "m", canary)
	other := signedBy(t, "whsec_"+strings.Repeat("Zm9v", 8), "webhook-", "m", canary)
	form := []string{"Content-Type", "application/x-www-form-urlencoded"}
	set := []string{"Content-Type", "application/secevent+jwt"}
	for _, tt := range []struct {
		path, body string
		header     []string
		status     int
		says       string
	}{
		{"/v1/hooks/none", canary, good, 404, `"code":"not_found"`},
		{"/v1/hooks/propel", canary, other, 403, `"code":"not_believed"`},
		{"/v1/hooks/propel", canary, nil, 400, `"code":"malformed"`},
		{"/v1/hooks/propel", "", nil, 400, `"code":"malformed"`},
		{"/v1/hooks/propel", canary, good, 202, ""}, // of an unknown user
		{
			"/v1/hooks/propel", down, signedBy(t, hookSecret, "svix-", "d", down), 503,
			`"retry_after_seconds":10`,
		},
		{"/v1/hooks/propel", strings.Repeat("canary", 12_000), good, 413, `"code":"too_large"`},
		{"/v1/hooks/out", "logout_token=canary", form, 400, `"error":"invalid_request"`},
		{"/v1/hooks/out", "", nil, 400, `"error":"invalid_request"`},
		{"/v1/hooks/caep", "canary", set, 400, `"err":"invalid_request"`},
		{"/v1/hooks/caep", "canary", nil, 400, `"err":"invalid_request"`},
		{"/v1/hooks/caep", "e30.e30.AA", set, 400, `"err":"invalid_request"`},
	} {
		answer, text := w.ask(t, "", "POST", tt.path, tt.body, tt.header...)
		if answer.StatusCode != tt.status || !strings.Contains(text, tt.says) ||
			answer.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %q: %d %s", tt.path, tt.body[:min(len(tt.body), 40)], answer.StatusCode,
				text)
		}
		if strings.Contains(text, "canary") {
			t.Errorf("the message is quoted: %s", text)
		}
	}
	if answer, _ := w.ask(t, "", "GET", "/v1/hooks/propel", ""); answer.StatusCode != 404 {
		t.Errorf("GET: %d", answer.StatusCode)
	}
	if w.out.Has("canary") {
		t.Error("the log quotes a message")
	}
}

// Who forges many messages is told to wait, and a good one from the same address is taken all the
// same.
func TestForgersAreHeldBack(t *testing.T) {
	w := newWorld(t, withHooks(t, "http://127.0.0.1:1"))
	jane := grant.Key{Provider: "acme", User: "jane"}
	w.grants[jane] = grant.Grant{Key: jane, Status: grant.Live}
	const body = `{"event_type":"user.updated","user_id":"jane"}`
	forged := signedBy(t, "whsec_"+strings.Repeat("Zm9v", 8), "webhook-", "m", body)
	limited := 0
	for range 40 {
		answer, _ := w.ask(t, "", "POST", "/v1/hooks/propel", body, forged...)
		if answer.StatusCode == 429 && answer.Header.Get("Retry-After") != "" {
			limited++
		}
	}
	if limited < 15 {
		t.Errorf("%d of 40 forged messages were told to wait", limited)
	}
	for i := range 30 {
		good := signedBy(t, hookSecret, "webhook-", fmt.Sprint("g", i), body)
		if answer, text := w.ask(t, "", "POST", "/v1/hooks/propel", body, good...); answer.
			StatusCode != 202 {
			t.Fatalf("a good one: %d %s", answer.StatusCode, text)
		}
	}
}

// Without a source there is no such path, and the right of a client opens none.
func TestWithoutSources(t *testing.T) {
	w := newWorld(t, nil)
	if answer, _ := w.ask(t, "all", "POST", "/v1/hooks/propel", "{}"); answer.StatusCode != 404 {
		t.Errorf("%d", answer.StatusCode)
	}
}
