package idp_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

const canary = "canary-refresh-token"

// open makes a client of the provider behind url, changed by change.
func open(t *testing.T, url string, change func(*idp.Config)) *idp.Provider {
	t.Helper()
	c := idp.Config{
		ID:                "p",
		BaseURL:           url,
		ClientID:          "client",
		AllowHTTPLoopback: true,
		Timeout:           5 * time.Second,
	}
	if change != nil {
		change(&c)
	}
	p, err := idp.New(c, idp.Telemetry{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// answering is a provider whose token endpoint always gives this answer.
func answering(t *testing.T, status int, header map[string]string, body string) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for k, v := range header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(s.Close)
	return s
}

// fault is the fault of a refresh that must fail, and says nothing of what was sent or answered.
func fault(t *testing.T, p *idp.Provider) *grant.Fault {
	t.Helper()
	_, err := p.Refresh(t.Context(), secret.New(canary))
	f, ok := errors.AsType[*grant.Fault](err)
	if !ok {
		t.Fatalf("error %v is no fault", err)
	}
	bare := *f
	bare.Detail = "" // that is for the provider's words, and for few eyes
	if s := fmt.Sprintf("%v %+v %#v", err, err, &bare); strings.Contains(s, "canary") {
		t.Errorf("the error quotes what nobody may see: %s", s)
	}
	return f
}

func TestClasses(t *testing.T) {
	json := map[string]string{"Content-Type": "application/json"}
	code := func(c string) string {
		return fmt.Sprintf(`{"error":%q,"error_description":"canary"}`,
			c)
	}
	type row struct {
		name   string
		status int
		header map[string]string
		body   string
		class  grant.Class
		reason string
	}
	rows := []row{
		{
			"html with 200", 200, map[string]string{"Content-Type": "text/html"},
			"<html>canary</html>", grant.Ambiguous, "",
		},
		{"truncated", 200, json, `{"access_token":"canary`, grant.Ambiguous, ""},
		{"empty", 200, json, "", grant.Ambiguous, ""},
		{"no tokens", 200, json, `{"expires_in":60}`, grant.Ambiguous, ""},
		{"nothing new", 200, json, `{"refresh_token":"canary-refresh-token"}`, grant.Ambiguous, ""},
		{
			"a new token beside an error", 200, json,
			`{"refresh_token":"canary","error":"invalid_client"}`, grant.Config, "",
		},
		{
			"a cut error", 200, json, `{"refresh_token":"canary","error":"invalid_grant","x":"`,
			grant.Ambiguous, "",
		},
		{"a new token with 500", 500, json, `{"refresh_token":"canary"}`, grant.Ambiguous, ""},
		{"10 MB", 200, json, strings.Repeat("x", 10<<20), grant.Ambiguous, ""},
		{"500", 500, json, "canary", grant.Ambiguous, ""},
		{"502", 502, nil, "canary", grant.Ambiguous, ""},
		{
			"invalid_grant by a broken gateway", 500, json, code("invalid_grant"), grant.Ambiguous,
			"",
		},
		{"503", 503, nil, "", grant.Throttled, ""},
		{"429", 429, nil, "canary", grant.Throttled, ""},
		{"408", 408, nil, "", grant.Throttled, ""},
		{"425", 425, nil, "", grant.Throttled, ""},
		{"404", 404, nil, "canary", grant.Config, ""},
		{"405", 405, nil, "", grant.Config, ""},
		{"301", 301, map[string]string{"Location": "http://127.0.0.1:1/"}, "", grant.Config, ""},
		{"bare 401", 401, nil, "canary", grant.Config, ""},
		{"bare 403", 403, nil, "<html>", grant.Config, ""},
		{"bare 400 (Twitch)", 400, json, `{"status":400,"message":"canary"}`, grant.Unknown, ""},
		{"unknown code", 400, json, code("out_of_cheese"), grant.Unknown, ""},
		{"unknown code with 401", 401, json, code("out_of_cheese"), grant.Config, ""},
		{"unknown code with 403", 403, json, code("out_of_cheese"), grant.Config, ""},
		{"unknown code with 200", 200, json, code("out_of_cheese"), grant.Unknown, ""},
		{"422", 422, json, "canary", grant.Unknown, ""},
		{"204", 204, json, "", grant.Ambiguous, ""},
		{"504", 504, nil, "canary", grant.Ambiguous, ""},
		{
			"invalid_grant, too many requests: Okta", 429, json, code("invalid_grant"),
			grant.Throttled, "",
		},
		{"throttled in words, 500", 500, json, code("slow_down"), grant.Throttled, ""},
		{
			"tokens beside an error", 200, json,
			`{"access_token":"canary","error":"invalid_grant"}`, grant.Permanent,
			schema.ReasonRevoked,
		},
		{
			"an error that is an object", 401, json,
			`{"error":{"code":"invalid_client","message":"canary"}}`, grant.Config, "",
		},
		{"an error that is a number", 400, json, `{"error":7}`, grant.Unknown, ""},
		{
			"10 MB with 400", 400, json,
			`{"error":"invalid_grant","x":"` + strings.Repeat("x", 10<<20) + `"}`, grant.Unknown,
			"",
		},
		{"Auth0's 403", 403, json, code("invalid_grant"), grant.Permanent, schema.ReasonRevoked},
		{
			"401 with invalid_grant", 401, json, code("invalid_grant"), grant.Permanent,
			schema.ReasonRevoked,
		},
		{
			"GitHub's 200", 200, json, code("bad_refresh_token"), grant.Permanent,
			schema.ReasonRevoked,
		},
		{
			"GitHub's form", 200,
			map[string]string{"Content-Type": "application/x-www-form-urlencoded"},
			"error=bad_refresh_token&error_description=canary", grant.Permanent,
			schema.ReasonRevoked,
		},
		{
			"GitHub's wrong client", 200, json, code("incorrect_client_credentials"), grant.Config,
			"",
		},
		{
			"Slack's 200", 200, json, `{"ok":false,"error":"token_expired"}`, grant.Permanent,
			schema.ReasonExpired,
		},
		{"Slack's not ok", 200, json, `{"ok":false}`, grant.Unknown, ""},
		{
			"Slack's internal error", 200, json, `{"ok":false,"error":"internal_error"}`,
			grant.Throttled, "",
		},
	}
	for _, c := range []string{
		"invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope",
		"invalid_target", "invalid_resource", "bad_client_secret", "invalid_client_id",
		"deleted_client", "disabled_client", "use_dpop_nonce", "invalid_dpop_proof",
	} {
		rows = append(rows, row{c, 400, json, code(c), grant.Config, ""})
	}
	rows = append(rows,
		row{"invalid_client with 401", 401, json, code("invalid_client"), grant.Config, ""})
	for _, c := range []string{
		"temporarily_unavailable", "server_error", "slow_down", "ratelimited", "too_many_requests",
		"fatal_error",
	} {
		rows = append(rows, row{c, 400, json, code(c), grant.Throttled, ""})
	}
	for c, reason := range map[string]string{
		"invalid_grant":         schema.ReasonRevoked,
		"invalid_refresh_token": schema.ReasonRevoked,
		"token_revoked":         schema.ReasonRevoked,
		"interaction_required":  schema.ReasonExpired,
		"login_required":        schema.ReasonExpired,
		"consent_required":      schema.ReasonRevoked,
		"mfa_required":          schema.ReasonExpired,
	} {
		rows = append(rows, row{c, 400, json, code(c), grant.Permanent, reason})
	}
	for _, tt := range rows {
		t.Run(tt.name, func(t *testing.T) {
			f := fault(t, open(t, answering(t, tt.status, tt.header, tt.body).URL, nil))
			if f.Class != tt.class || f.Reason != tt.reason || f.Status != tt.status {
				t.Errorf("%+v, want %s %s", f, tt.class, tt.reason)
			}
		})
	}
}

func TestShapesOfTokens(t *testing.T) {
	jwt := "h." + base64.RawURLEncoding.EncodeToString([]byte(`{"iat":1000,"exp":2800}`)) + ".s"
	for name, tt := range map[string]struct {
		body            string
		access, refresh string
		expires         time.Duration
	}{
		"plain": {
			`{"access_token":"a","refresh_token":"r","expires_in":1800,"new":{"x":1}}`, "a", "r",
			30 * time.Minute,
		},
		"expires as a text": {`{"access_token":"a","expires_in":"60"}`, "a", "", time.Minute},
		"nested": {
			`{"access_token":{"access_token":"a","expires_at_seconds":99},"refresh_token":"r"}`,
			"a", "r", 0,
		},
		"exp of the token": {fmt.Sprintf(`{"access_token":%q}`, jwt), jwt, "", 30 * time.Minute},
		"expires_at_seconds": {
			fmt.Sprintf(`{"access_token":%q,"expires_at_seconds":1060}`, jwt), jwt, "", time.Minute,
		},
		"nothing said": {`{"access_token":"a"}`, "a", "", 0},
		"absurd":       {`{"access_token":"a","expires_in":-5}`, "a", "", 0},
		"beyond time": {
			`{"access_token":"a","expires_in":10000000000}`, "a", "", 10 * 365 * 24 * time.Hour,
		},
		"no number": {`{"access_token":"a","expires_in":"NaN"}`, "a", "", 0},
		"a list of scopes": {
			`{"access_token":"a","refresh_token":"r","expires_in":60,"scope":["x","y"]}`, "a", "r",
			time.Minute,
		},
		"odd members": {
			`{"access_token":"a","refresh_token":"r","expires_in":60,` +
				`"id_token":{},"ok":"yes","scope":7}`,
			"a", "r", time.Minute,
		},
		"no refresh token": {
			`{"access_token":"a","refresh_token":null,"expires_in":60}`, "a", "", time.Minute,
		},
		"a byte order mark": {
			"\xef\xbb\xbf" + `{"access_token":"a","refresh_token":"r","expires_in":60}`, "a", "r",
			time.Minute,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := open(t,
				answering(t, 200, map[string]string{"Content-Type": "application/json"},
					tt.body).URL, nil).Refresh(t.Context(), secret.New("x"))
			if err != nil || got.Access.Reveal() != tt.access ||
				got.Refresh.Reveal() != tt.refresh || got.ExpiresIn != tt.expires ||
				!got.SentAt.IsZero() {
				t.Errorf("%q %q %v, %v", got.Access.Reveal(), got.Refresh.Reveal(), got.ExpiresIn,
					err)
			}
		})
	}
}

// The old token is dead once a new one was named, whatever else is wrong with the answer: a new
// refresh token that can be read is returned, and an access token that cannot is left out.
func TestNewRefreshTokenIsNeverDropped(t *testing.T) {
	const form = "application/x-www-form-urlencoded"
	long := strings.Repeat("x", 300<<10)
	type answer struct {
		contentType, body string
		length            int // that the answer claims to have; 0: its own
	}
	read := func(t *testing.T, a answer) (grant.Tokens, error) {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", a.contentType)
			if a.length > 0 {
				w.Header().Set("Content-Length", fmt.Sprint(a.length))
			}
			_, _ = w.Write([]byte(a.body))
		}))
		defer s.Close()
		return open(t, s.URL, nil).Refresh(t.Context(), secret.New(canary))
	}
	for name, a := range map[string]answer{
		"no access token":     {"", `{"refresh_token":"new","expires_in":60}`, 0},
		"an odd access token": {"", `{"access_token":7,"refresh_token":"new"}`, 0},
		"an empty one":        {"", `{"access_token":"","refresh_token":"new"}`, 0},
		"a long access token": {"", `{"refresh_token":"new","access_token":"` + long + `"}`, 0},
		"a long answer": {
			"", `{"access_token":"a","refresh_token":"new","x":"` + long + `"}`, 0,
		},
		"a long form":             {form, "refresh_token=new&access_token=" + long, 0},
		"broken off":              {"", `{"refresh_token":"new","access_token":"a`, 1000},
		"broken JSON":             {"", `{"refresh_token":"new","access_token":"a`, 0},
		"a form broken off":       {form, "refresh_token=new&access_token=a", 1000},
		"in a form alone":         {form, "refresh_token=new", 0},
		"garbage after the token": {"", `{"refresh_token":"new"}<html>`, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := read(t, a)
			if err != nil || got.Refresh.Reveal() != "new" || !got.Access.IsZero() {
				t.Errorf("%q %d, %v", got.Refresh.Reveal(), len(got.Access.Reveal()), err)
			}
		})
	}
	// Half a token is not a token.
	for name, a := range map[string]answer{
		"JSON":                {"", `{"access_token":"a","refresh_token":"ne`, 1000},
		"a form":              {form, "access_token=a&refresh_token=ne", 1000},
		"beyond what is read": {"", `{"x":"` + long + `","refresh_token":"new"}`, 0},
	} {
		t.Run("half of it, "+name, func(t *testing.T) {
			got, err := read(t, a)
			if f, ok := errors.AsType[*grant.Fault](err); !ok || f.Class != grant.Ambiguous {
				t.Errorf("%q, %v", got.Refresh.Reveal(), err)
			}
		})
	}
}

// A name in other letters cannot put a token in place of another. It is not known which of two
// tokens counts, so one of them is kept.
func TestTokensHaveExactNames(t *testing.T) {
	body := `{"access_token":"a","refresh_token":"r","expires_in":60,` +
		`"ACCESS_TOKEN":"x","Refresh_Token":"x","Error":"invalid_grant","OK":false,"EXPIRES_IN":1}`
	got, err := open(t, answering(t, 200, nil, body).URL, nil).Refresh(t.Context(),
		secret.New(canary))
	if err != nil || got.Access.Reveal() != "a" || got.Refresh.Reveal() != "r" ||
		got.ExpiresIn != time.Minute {
		t.Errorf("%q %q %v, %v", got.Access.Reveal(), got.Refresh.Reveal(), got.ExpiresIn, err)
	}
}

// An absolute time is the provider's, and so is the clock that it is held against: ours may be an
// hour off.
func TestExpiryIsByTheProvidersClock(t *testing.T) {
	theirs := time.Now().Add(-time.Hour).Truncate(time.Second)
	header := map[string]string{"Date": theirs.UTC().Format(http.TimeFormat)}
	body := fmt.Sprintf(`{"access_token":"a","expires_at_seconds":%d}`,
		theirs.Add(time.Minute).Unix())
	got, err := open(t, answering(t, 200, header, body).URL, nil).Refresh(t.Context(),
		secret.New(canary))
	if err != nil || got.ExpiresIn != time.Minute {
		t.Errorf("%v, %v", got.ExpiresIn, err)
	}
	header["Retry-After"] = theirs.Add(time.Minute).UTC().Format(http.TimeFormat)
	if f := fault(t, open(t, answering(t, 429, header, "").URL, nil)); f.RetryAfter != time.Minute {
		t.Errorf("Retry-After %v", f.RetryAfter)
	}
}

// What the content type says is not what decides: an answer that can be read is read, since the old
// token is gone.
func TestContentTypes(t *testing.T) {
	const (
		plain = `{"access_token":"a","refresh_token":"r","scope":["x","y"],"expires_in":60}`
		form  = "access_token=a&refresh_token=r&scope=x+y&expires_in=60"
	)
	for contentType, body := range map[string]string{
		"application/json":                  plain,
		"":                                  plain,
		"text/html":                         plain,
		"application/x-www-form-urlencoded": plain,
		"application/x-www-form-urlencoded; charset=utf-8": form,
	} {
		got, err := open(t,
			answering(t, 200, map[string]string{"Content-Type": contentType}, body).URL,
			nil).Refresh(t.Context(), secret.New("x"))
		if err != nil || got.Access.Reveal() != "a" || got.Refresh.Reveal() != "r" ||
			got.Scope != "x y" || got.ExpiresIn != time.Minute {
			t.Errorf("%q: %q %q %q %v, %v", contentType, got.Access.Reveal(), got.Refresh.Reveal(),
				got.Scope, got.ExpiresIn, err)
		}
	}
}

// An error's code goes into events and logs: never more of it than fits there, and nothing else of
// the answer.
func TestCodesAreCut(t *testing.T) {
	for body, want := range map[string]string{
		`{"error":"` + strings.Repeat("x", 500) + `"}`: strings.Repeat("x", 64),
		`{"error":"a b\n\u001b[31mc\u00e9"}`:           "ab[31mc",
		`{"message":"canary"}`:                         "",
	} {
		if f := fault(t, open(t, answering(t, 400, nil, body).URL, nil)); f.Code != want {
			t.Errorf("%.40s: %q", body, f.Code)
		}
	}
}

// Who reads that the settings are refused reads what to do, too.
func TestConfigFaultsSayWhatToDo(t *testing.T) {
	for body, want := range map[string]string{
		`{"error":"invalid_client"}`:      "client_secret",
		`{"error":"invalid_scope"}`:       "scope",
		`{"error":"unauthorized_client"}`: "client_secret",
		`nothing`:                         "client_auth",
	} {
		if f := fault(t, open(t, answering(t, 401, nil, body).URL, nil)); f.Class != grant.Config ||
			!strings.Contains(f.Error(), want) {
			t.Errorf("%s: %v", body, f)
		}
	}
	if f := fault(t, open(
		t, answering(t, 400, nil, `{"error":"unauthorized_client"}`).URL, nil,
	)); !strings.Contains(f.Error(), "allow it the refresh_token grant") {
		t.Errorf("%v", f)
	}
	for _, status := range []int{302, 404, 405} {
		if f := fault(t, open(
			t, answering(t, status, nil, "").URL, nil,
		)); f.Class != grant.Config || !strings.Contains(f.Error(), "token_url") {
			t.Errorf("%d: %v", status, f)
		}
	}
}

func TestScopeIsSentWhereSet(t *testing.T) {
	var form url.Values
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		form = r.PostForm
		if r.UserAgent() != "renewd" || r.Header.Get("Accept") != "application/json" {
			t.Errorf("header %v", r.Header)
		}
		_, _ = w.Write([]byte(`{"access_token":"a"}`))
	}))
	defer s.Close()
	for _, scope := range []string{"", "openid profile"} {
		if _, err := open(t, s.URL, func(c *idp.Config) { c.Scope = scope }).Refresh(
			t.Context(), secret.New(canary),
		); err != nil {
			t.Fatal(err)
		}
		if form.Get("scope") != scope || form.Has("scope") != (scope != "") {
			t.Errorf("scope %q: %v", scope, form)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	for value, want := range map[string][2]time.Duration{
		"7":           {7 * time.Second, 7 * time.Second},
		"0":           {0, 0},
		"-5":          {0, 0},
		"soon":        {0, 0},
		"":            {0, 0},
		"99999999999": {time.Hour, time.Hour},
		time.Now().Add(10 * time.Minute).UTC().Format(http.TimeFormat): {
			9 * time.Minute, 10 * time.Minute,
		},
		time.Now().Add(-time.Minute).UTC().Format(http.TimeFormat): {0, 0},
	} {
		f := fault(t, open(t, answering(t, 429, map[string]string{"Retry-After": value}, "").URL,
			nil))
		if f.RetryAfter < want[0] || f.RetryAfter > want[1] {
			t.Errorf("Retry-After %q: %v, want %v", value, f.RetryAfter, want)
		}
	}
}

// RFC 6749 section 2.3: one way of client authentication, never two.
func TestClientAuthentication(t *testing.T) {
	const id, password = "the client", "se:cr%t ü"
	for _, tt := range []struct {
		auth   idp.ClientAuth
		secret string
	}{
		{idp.AuthNone, ""},
		{idp.AuthPost, password},
		{idp.AuthBasic, password},
		{idp.AuthAuto, password},
		{idp.AuthAuto, ""},
	} {
		t.Run(string(tt.auth)+tt.secret, func(t *testing.T) {
			var form url.Values
			var header string
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_ = r.ParseForm()
				form, header = r.PostForm, r.Header.Get("Authorization")
				_, _ = w.Write([]byte(`{"access_token":"a"}`))
			}))
			defer s.Close()
			p := open(t, s.URL, func(c *idp.Config) {
				c.ClientID, c.ClientSecret, c.ClientAuth = id, secret.New(tt.secret), tt.auth
			})
			if _, err := p.Refresh(t.Context(), secret.New(canary)); err != nil {
				t.Fatal(err)
			}
			basic := tt.auth == idp.AuthBasic
			if form.Get("grant_type") != "refresh_token" || form.Get("refresh_token") != canary ||
				basic == form.Has("client_id") ||
				form.Has("client_secret") != (tt.secret != "" && !basic) ||
				basic != (header != "") {
				t.Errorf("form %v, Authorization %q", form, header)
			}
			if want := "Basic " +
				base64.StdEncoding.EncodeToString([]byte("the+client:se%3Acr%25t+%C3%BC")); basic &&
				header != want {
				t.Errorf("Authorization %q, want %q", header, want)
			}
		})
	}
}

// A redirect is not followed: it would hand the refresh token to any host that the answer names.
func TestRedirectIsNotFollowed(t *testing.T) {
	var seen atomic.Int32
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		seen.Add(1)
	}))
	defer thief.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		f := fault(t, open(t,
			answering(t, status, map[string]string{"Location": thief.URL}, "").URL, nil))
		if f.Class != grant.Config {
			t.Errorf("%d: %s", status, f.Class)
		}
	}
	if seen.Load() != 0 {
		t.Error("a redirect was followed")
	}
}

func TestNothingSentIsUnsent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := "http://" + l.Addr().String()
	l.Close()
	untrusted := httptest.NewTLSServer(http.NotFoundHandler())
	defer untrusted.Close()
	untrusted.Config.ErrorLog = nil
	for name, url := range map[string]string{
		"refused":      refused,
		"unknown host": "https://nowhere.invalid",
		"certificate":  untrusted.URL,
	} {
		if f := fault(t, open(t, url, nil)); f.Class != grant.Unsent {
			t.Errorf("%s: %v", name, f)
		}
	}
}

// The server reads the request and hangs up: the token may be spent. It is seen once, also on a
// connection that was used before: net/http must not send it again by itself.
func TestHangUpIsAmbiguousAndSentOnce(t *testing.T) {
	var seen atomic.Int32
	hang := atomic.Bool{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		if hang.Load() {
			seen.Add(1)
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write([]byte(`{"access_token":"a"}`))
	}))
	defer s.Close()
	p := open(t, s.URL, nil)
	if _, err := p.Refresh(t.Context(), secret.New("warm")); err != nil {
		t.Fatal(err)
	}
	hang.Store(true)
	if f := fault(t, p); f.Class != grant.Ambiguous || seen.Load() != 1 {
		t.Errorf("%v, seen %d times", f, seen.Load())
	}
}

func TestTimeoutAfterSendingIsAmbiguous(t *testing.T) {
	release := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		<-release
	}))
	defer s.Close()
	defer close(release)
	if f := fault(t, open(t, s.URL, func(c *idp.Config) {
		c.Timeout = 50 * time.Millisecond
	})); f.Class != grant.Ambiguous || !errors.Is(f, context.DeadlineExceeded) {
		t.Errorf("%v", f)
	}
}
