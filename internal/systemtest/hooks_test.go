package systemtest_test

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/testkit/hooktest"
	"github.com/renewd/renewd/schema"
)

const hookSecret = "whsec_bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3"

// signsTokens is an OpenID issuer that signs logout tokens and security event tokens.
type signsTokens struct {
	*httptest.Server
	key *rsa.PrivateKey
}

func newSigner(t *testing.T) signsTokens {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s := signsTokens{key: key}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var answer any = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
			{Key: key.Public(), KeyID: "k", Algorithm: "RS256", Use: "sig"},
		}}
		if strings.HasSuffix(r.URL.Path, "/openid-configuration") {
			answer = map[string]string{"issuer": s.URL, "jwks_uri": s.URL + "/keys"}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(s.Close)
	return s
}

// token is about user, with one event.
func (s signsTokens) token(t *testing.T, typ, id, user, event string) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithType(jose.ContentType(typ)).WithHeader("kid", "k")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: s.key}, options)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	payload, err := json.Marshal(map[string]any{
		"iss": s.URL, "aud": "renewd-test", "jti": id, "iat": now.Unix(),
		"exp": now.Add(time.Minute).Unix(), "sub": user,
		"sub_id": map[string]string{"format": "opaque", "id": user},
		"events": map[string]any{event: struct{}{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// deliver posts a body, and returns the status of the answer.
func deliver(t *testing.T, url, kind, body string, header http.Header) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", kind)
	for name := range header {
		r.Header.Set(name, header.Get(name))
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	return answer.StatusCode
}

func svix(t *testing.T, id, body string) http.Header {
	t.Helper()
	return hooktest.Sign(t, hookSecret, "svix-", id, time.Now(), body)
}

const (
	formType   = "application/x-www-form-urlencoded"
	setType    = "application/secevent+jwt"
	logoutType = "http://schemas.openid.net/event/backchannel-logout"
	revoked    = "https://schemas.openid.net/secevent/caep/event-type/session-revoked"
)

// What others post has the provider asked. Whose session still lives there stays signed in,
// whatever is posted; whose session has ended is told to sign in again; a forged message does
// nothing. And no secret, signature or token of a message is anywhere.
func TestWhatIsPostedHasTheProviderAsked(t *testing.T) {
	var log syncBuffer
	issuer := newSigner(t)
	file := filepath.Join(t.TempDir(), "renewd.yaml")
	err := os.WriteFile(file, fmt.Appendf(nil, `
sources:
  propel: {kind: propelauth, provider: propelauth, secret: %[1]s}
  sso: {kind: backchannel-logout, provider: propelauth, issuer: "%[2]s"}
  strict: {kind: backchannel-logout, provider: propelauth, issuer: "%[2]s", sign_out: true}
  caep: {kind: set, provider: propelauth, issuer: "%[2]s", secret: canary-of-the-transmitter}
`, hookSecret, issuer.URL), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, options{
		provider: standin.Options{Lifetime: 3 * time.Second}, concurrency: 8,
		settings: append(slices.Clone(quick), "RENEWD_CONFIG="+file),
	})
	w.logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.follow()
	worker := w.start()
	p := w.publisher()
	for _, name := range []string{"synced", "asked", "dead", "out", "revoked"} {
		w.login(p, name)
	}
	// Before the first renewal under these settings no user is signed out.
	w.await("all are in, and the settings are proven", time.Minute,
		func(all map[string][]schema.Event) bool {
			return len(all) == 5 && w.provider.Renewals("synced") > 0
		})
	at := "http://" + worker.HTTPAddr + "/v1/hooks/"
	w.provider.EndSessions("dead")
	w.provider.EndSessions("revoked")
	bearer := http.Header{"Authorization": {"Bearer canary-of-the-transmitter"}}
	hook := func(of, user string) string {
		const body = `{"event_type":"user.%s","user_id":"%s","phone":"canary-phone"}`
		return fmt.Sprintf(body, of, user)
	}
	form := func(id, user string) string {
		token := issuer.token(t, "logout+jwt", id, user, logoutType)
		return url.Values{"logout_token": {token}}.Encode()
	}
	for _, post := range []struct {
		source, kind, body string
		header             http.Header
		want               int
	}{
		{
			"propel", "application/json", hook("updated", "synced"),
			svix(t, "m1", hook("updated", "synced")), 202,
		},
		{
			"propel", "application/json", hook("disabled", "dead"),
			svix(t, "m2", hook("disabled", "dead")), 202,
		},
		{
			"propel", "application/json", hook("deleted", "synced"),
			svix(t, "m3", hook("updated", "synced")), 403,
		},
		{
			"propel", "application/json", hook("deleted", "who"),
			svix(t, "m4", hook("deleted", "who")), 202,
		},
		{"sso", formType, form("j1", "asked"), nil, 200},
		{"sso", formType, form("j2", "asked")[:400], nil, 503}, // the keys were fetched just now
		{"strict", formType, form("j3", "out"), nil, 200},
		{"caep", setType, issuer.token(t, "secevent+jwt", "s1", "revoked", revoked), bearer, 202},
		{"caep", setType, issuer.token(t, "secevent+jwt", "s2", "asked", revoked), nil, 400},
		{"nothing", setType, "canary-body", nil, 404},
	} {
		if got := deliver(t, at+post.source, post.kind, post.body, post.header); got != post.want {
			t.Errorf("%s %.20s: got %d, want %d", post.source, post.body, got, post.want)
		}
	}
	// answers are the types of the outcomes that a source's command is the cause of.
	answers := func(all map[string][]schema.Event, user, source string) (types []schema.Type) {
		for _, e := range all[user] {
			if strings.Contains(string(e.Data), `"source":"/sources/`+source+`"`) {
				types = append(types, e.Type)
			}
		}
		return types
	}
	told := func(all map[string][]schema.Event, user string, of schema.Type) bool {
		return slices.ContainsFunc(all[user], func(e schema.Event) bool { return e.Type == of })
	}
	w.await("what became of them", time.Minute, func(all map[string][]schema.Event) bool {
		return len(answers(all, "synced", "propel")) > 0 && len(answers(all, "asked", "sso")) > 0 &&
			told(all, "dead", schema.UserReauthRequired) &&
			told(all, "revoked", schema.UserReauthRequired) &&
			told(all, "out", schema.UserSignedOut)
	})
	all := w.heard()
	for _, of := range []struct {
		user, source string
		want         schema.Type
	}{
		{"synced", "propel", schema.UserSynced}, {"asked", "sso", schema.UserSynced},
		{"out", "strict", schema.UserSignedOut},
	} {
		if got := answers(all, of.user, of.source); !slices.Equal(got, []schema.Type{of.want}) {
			t.Errorf("%s: %v", of.user, got)
		}
		if of.user != "out" && (told(all, of.user, schema.UserSignedOut) ||
			told(all, of.user, schema.UserReauthRequired)) {
			t.Errorf("%s was signed out", of.user)
		}
	}
	if len(all["who"]) > 0 {
		t.Errorf("an unknown user: %v", all["who"])
	}
	metrics := page(t, "http://"+worker.HTTPAddr+"/metrics")
	if !strings.Contains(metrics, `renewd_source_messages_total{`) {
		t.Error("no figures of sources")
	}
	w.stop()
	found := func(where, text string) {
		t.Helper()
		for _, mark := range []string{"canary", hookSecret[6:], "eyJhbGciOiJSUzI1NiI", "v1,"} {
			if i := strings.Index(text, mark); i >= 0 {
				t.Errorf("%s is in %s: …%s…", mark, where,
					text[max(0, i-60):min(len(text), i+20)])
			}
		}
	}
	found("the log", log.String())
	found("a metric", metrics)
	w.inStreams(found)
}
