package systemtest_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/schema"
)

// Commands that cannot be understood are rejected where an operator sees them, and do not stop
// other commands.
func TestBadCommandsAreRejected(t *testing.T) {
	w := newWorld(t, options{provider: standin.Options{}, concurrency: 8})
	w.follow()
	w.start()
	nc := w.connect().Conn()
	sealed := func(provider, user string, at time.Time) string {
		jwe, err := seal.SealLogin(w.keys.JWKS(), provider, user, at, seal.Tokens{
			Access:  secret.New("canary-access"),
			Refresh: secret.New("canary-refresh"),
		})
		w.must(err)
		return fmt.Sprintf(`{"tokens":%q}`, jwe)
	}
	for i, tt := range []struct {
		subject, body, reason, field string
		header                       []string
	}{
		{"user.refresh_due.nowhere.u1", "", schema.RejectUnknownProvider, "provider", nil},
		{
			"user.login.nowhere.u1", sealed("nowhere", "u1", time.Now()),
			schema.RejectUnknownProvider, "provider", nil,
		},
		{"user.refresh_due.propelauth.jane@example.com", "", schema.RejectSubject, "subject", nil},
		{"user.refresh_due.propelauth", "", schema.RejectSubject, "subject", nil},
		{"user.refresh_due.Propel.u2", "", schema.RejectSubject, "subject", nil},
		{"user.refresh_due.propelauth.u3", "not json", schema.RejectData, "data", nil},
		{"user.refresh_due.propelauth.u4", `[1]`, schema.RejectData, "data", nil},
		{"user.refresh_due.propelauth.u5", `{"want":"everything"}`, schema.RejectData, "want", nil},
		{
			"user.refresh_due.propelauth.u6", `{"min_valid_seconds":-1}`, schema.RejectData,
			"min_valid_seconds", nil,
		},
		{
			"user.refresh_due.propelauth.u7", `{}`, schema.RejectEnvelope, "type",
			[]string{"ce-id", "x", "ce-type", "user.login"},
		},
		{
			"user.refresh_due.propelauth.u8", `{}`, schema.RejectEnvelope, "subject",
			[]string{"ce-id", "x", "ce-subject", "somebody"},
		},
		{
			"user.refresh_due.propelauth.u9", `{"specversion":"1.0"`, schema.RejectEnvelope, "data",
			[]string{"Content-Type", "application/cloudevents+json"},
		},
		{"user.login.propelauth.u10", `{}`, schema.RejectData, "tokens", nil},
		{"user.login.propelauth.u11", `{"tokens":"a.b.c.d.e"}`, schema.RejectSealed, "tokens", nil},
		{
			"user.login.propelauth.u12", sealed(provider, "somebody", time.Now()),
			schema.RejectSealed, "tokens.sub", nil,
		},
		{
			"user.login.propelauth.u13", sealed("other", "u13", time.Now()), schema.RejectSealed,
			"tokens.iss", nil,
		},
		{
			"user.login.propelauth.u14", sealed(provider, "u14", time.Now().Add(-time.Hour)),
			schema.RejectSealed, "tokens.iat", nil,
		},
	} {
		w.must(raw(nc, tt.subject, tt.body, tt.header...))
		w.await(tt.subject, time.Minute, func(all map[string][]schema.Event) bool {
			for _, list := range all {
				for _, e := range list {
					d := schema.Rejected{}
					if e.Type == schema.MessageRejected && json.Unmarshal(e.Data, &d) == nil &&
						d.Subject == tt.subject {
						if d.Reason != tt.reason || d.Field != tt.field || d.Message == "" ||
							bytes.Contains(e.Data, []byte("canary")) {
							t.Errorf("%d %s: rejected with %s", i, tt.subject, e.Data)
						}
						return true
					}
				}
			}
			return false
		})
	}
	// The server itself refuses messages larger than its limits, and the publisher gets the error.
	w.must(w.publisherIsRefused(strings.Repeat("x", 1<<20)))
	// Meanwhile other users are served.
	w.login(w.publisher(), "fine")
	w.await("a good login after all that", time.Minute,
		func(all map[string][]schema.Event) bool {
			return len(all["fine"]) == 1 && all["fine"][0].Type == schema.UserSynced
		})
}

func (w *world) publisherIsRefused(body string) error {
	_, err := w.js.Publish(w.t.Context(), "user.refresh_due.propelauth.big",
		[]byte(`{"reason":"`+body+`"}`))
	if err == nil {
		return fmt.Errorf("a message of %d bytes was accepted", len(body))
	}
	return nil
}

// What a provider can get wrong fails visibly, is tried again, and signs no user out.
func TestBadProviderAnswers(t *testing.T) {
	for name, tt := range map[string]struct {
		fault  func(standin.Request) *standin.Fault
		reason string
	}{
		"html": {func(r standin.Request) *standin.Fault {
			return &standin.Fault{
				Status: 200,
				Header: http.Header{"Content-Type": {"text/html"}},
				Body:   "<html>canary</html>",
			}
		}, schema.ReasonProviderUnavailable},
		"wrong client": {func(r standin.Request) *standin.Fault {
			return &standin.Fault{
				Status: 401,
				Body:   `{"error":"invalid_client","error_description":"canary"}`,
			}
		}, schema.ReasonConfig},
		"throttled": {func(r standin.Request) *standin.Fault {
			return &standin.Fault{
				Status: 429,
				Header: http.Header{"Retry-After": {"1"}},
				Body:   "canary",
			}
		}, schema.ReasonThrottled},
		"bare 400": {func(r standin.Request) *standin.Fault {
			return &standin.Fault{Status: 400, Body: `{"status":400,"message":"canary"}`}
		}, schema.ReasonProviderUnknown},
		"somebody else": {func(r standin.Request) *standin.Fault {
			if r.Op == "token" {
				return nil
			}
			return &standin.Fault{
				Status: 200,
				Body:   `{"user_id":"canary","email":"canary@example.org"}`,
			}
		}, schema.ReasonSubjectMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{concurrency: 8, settings: []string{
				"RENEWD_POLICY_TRIES=2",
				"RENEWD_POLICY_FLOOR=1ms",
				"RENEWD_POLICY_RETRY_MIN=1ms",
				"RENEWD_POLICY_RETRY_MAX=2ms",
				"RENEWD_POLICY_RETRY_LATER=1h",
			}})
			var log syncBuffer
			w.logger = slog.New(slog.NewJSONHandler(&log, nil))
			w.follow()
			w.start()
			w.provider.SetFault(tt.fault)
			g := w.expired("u")
			w.must(raw(w.js.Conn(), "user.refresh_due.propelauth.u", "", "ce-id", "r1"))
			e := w.answer("u", "r1")
			if d := decode[schema.RefreshFailed](t, e); e.Type != schema.UserRefreshFailed ||
				d.Reason != tt.reason || d.NextAttemptAt == nil {
				t.Errorf("told %s %s", e.Type, e.Data)
			}
			if bytes.Contains(e.Data, []byte("canary")) ||
				strings.Contains(log.String(), "canary") {
				t.Errorf("the provider's body got out: %s %s", e.Data, log.String())
			}
			got, err := w.store.Load(t.Context(), g.Key)
			w.must(err)
			if got.Status != grant.Live || got.Pair.Refresh.IsZero() || got.Profile != "" {
				t.Errorf("the grant is %s, profile %s", got.Status, got.Profile)
			}
		})
	}
}

// answer waits for the outcome of a user's command.
func (w *world) answer(user, id string) (answer schema.Event) {
	w.t.Helper()
	w.await("the answer to "+id, 30*time.Second, func(all map[string][]schema.Event) bool {
		for _, e := range all[user] {
			if decode[struct{ Cause schema.Cause }](w.t, e).Cause.ID == id {
				answer = e
				return true
			}
		}
		return false
	})
	return answer
}

// expired stores a user whose access token has run out and whose timer is an hour away: only a
// command has the user renewed.
func (w *world) expired(name string) grant.Grant {
	w.t.Helper()
	g, later := w.grantOf(name, time.Now()), time.Now().Add(time.Hour)
	g.NextDueAt = later
	_, err := w.store.Save(w.t.Context(), g)
	w.must(err)
	w.must(w.engine(w.js).Arm(w.t.Context(), g.Key, later, g.NextTimer(later)))
	return g
}

// syncBuffer is a buffer that a logger and a test may share.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// The four forms of a request, from a client that knows nothing but NATS.
func TestFourFormsOfARequest(t *testing.T) {
	w := newWorld(t, options{provider: standin.Options{}, concurrency: 8})
	w.follow()
	w.start()
	w.login(w.publisher(), "u17")
	w.await("the login", time.Minute, func(all map[string][]schema.Event) bool {
		return len(all["u17"]) == 1
	})
	nc := w.connect().Conn()
	subject := "user.refresh_due.propelauth.u17"
	for i, tt := range []struct {
		name, body string
		header     []string
		reason     string
	}{
		{
			"binary", `{"reason":"webhook"}`,
			[]string{
				"Ce-Id", "b1", "CE-SOURCE", "/crm", "ce-specversion", "1.0", "ce-type",
				"user.refresh_due", "ce-subject", "u17",
			}, "webhook",
		},
		{
			"structured",
			`{"specversion":"1.0","id":"s1","source":"/crm","type":"user.refresh_due",` +
				`"subject":"u17","data":{"reason":"structured"}}`,
			[]string{"content-type", "application/cloudevents+json"}, "structured",
		},
		{"bare JSON", `{"reason":"bare"}`, nil, "bare"},
		{"empty", "", nil, ""},
	} {
		w.must(raw(nc, subject, tt.body, tt.header...))
		w.await(tt.name, time.Minute, func(all map[string][]schema.Event) bool {
			return len(all["u17"]) == i+2
		})
		e := w.heard()["u17"][i+1]
		if d := decode[schema.Synced](t, e); e.Type != schema.UserSynced ||
			d.Cause.Reason != tt.reason || d.Cause.ID == "" {
			t.Errorf("%s: %s %s", tt.name, e.Type, e.Data)
		}
	}
}

// Two workers hold one due message, and one of them is stalled past its lease. Only one worker
// presents the token.
func TestDoubleDelivery(t *testing.T) {
	w := newWorld(t, options{provider: standin.Options{}, concurrency: 8, postgres: true})
	w.follow()
	w.expired("u")
	// The first worker is stalled in the provider's answer until the second worker has come by.
	arrived, resume := make(chan struct{}, 8), make(chan struct{})
	proceed := sync.OnceFunc(func() { close(resume) })
	t.Cleanup(proceed)
	w.provider.SetFault(func(r standin.Request) *standin.Fault {
		if r.Op == "token" {
			arrived <- struct{}{}
			<-resume
		}
		return nil
	})
	w.start()
	w.must(raw(w.js.Conn(), "user.refresh_due.propelauth.u", `{"want":"tokens"}`, "ce-id", "first"))
	<-arrived
	// A second request replaces the message that is being handled, and is delivered meanwhile.
	w.start()
	w.must(raw(w.js.Conn(), "user.refresh_due.propelauth.u", `{"want":"tokens"}`, "ce-id",
		"second"))
	// Do not proceed before the second delivery. It may come only after the claim, when the first
	// call has run out.
	w.await("the second delivery", 30*time.Second, func(map[string][]schema.Event) bool {
		c, err := w.js.Consumer(t.Context(), "RENEWALS", "renew-"+provider)
		return err == nil && c.CachedInfo().Delivered.Consumer > 1
	})
	proceed()
	w.await("both are answered", 30*time.Second, func(all map[string][]schema.Event) bool {
		return len(all["u"]) >= 2
	})
	if s := w.provider.Stats(); s.MaxInFlight != 1 || s.Reuse != 0 {
		t.Errorf("the provider saw %+v", s)
	}
}
