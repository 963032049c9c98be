package idp_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// What a provider wants beside the standard: Auth0 an audience, others resources (RFC 8707), a
// gateway in front its own header.
func TestExtraParametersAndHeaders(t *testing.T) {
	seen := map[string]*http.Request{}
	var s *httptest.Server
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		seen[r.URL.Path] = r
		body := `{"access_token":"a","sub":"u"}`
		if strings.HasPrefix(r.URL.Path, "/.well-known") {
			body = oidcAt(s.URL, s.URL, `,"revocation_endpoint":"`+s.URL+`/revoke"`)
		}
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(s.Close)
	client := open(t, s.URL, func(c *idp.Config) {
		c.Preset = "oidc"
		c.Params = url.Values{"audience": {"https://api"}, "resource": {"https://a", "https://b"}}
		c.Headers = map[string]secret.Value{
			"x-gateway":  secret.New("g"),
			"User-Agent": secret.New("acme"),
		}
	})
	_, refreshed := client.Refresh(t.Context(), secret.New(canary))
	_, synced := client.UserInfo(t.Context(), secret.New("a"), "u")
	if err := errors.Join(refreshed, synced, client.Revoke(
		t.Context(), secret.New(canary),
	)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/.well-known/openid-configuration", "/token", "/me", "/revoke"} {
		if r := seen[path]; r == nil || r.Header.Get("X-Gateway") != "g" ||
			r.UserAgent() != "acme" {
			t.Errorf("%s: %+v", path, r)
		}
	}
	form := seen["/token"].PostForm
	if form.Get("audience") != "https://api" ||
		!slices.Equal(form["resource"], []string{"https://a", "https://b"}) ||
		form.Get("refresh_token") != canary {
		t.Errorf("%v", form)
	}
	if form := seen["/revoke"].PostForm; form.Has("audience") {
		t.Errorf("a revocation has parameters of a refresh: %v", form)
	}
}

// A secret is replaced without a pause: both are in the settings while the provider changes over.
func TestNextSecretTakesOver(t *testing.T) {
	both := func(c *idp.Config) { c.ClientAuth, c.NextSecret = idp.AuthBasic, secret.New("next") }
	p := newPicky(t, "basic:s")
	client := p.client(t, both)
	for _, step := range []struct{ takes, want []string }{
		{[]string{"basic:s"}, []string{"basic:s"}},
		{[]string{"basic:s", "basic:next"}, []string{"basic:s"}},
		{[]string{"basic:next"}, []string{"basic:s", "basic:next"}},
		{[]string{"basic:next"}, []string{"basic:next"}},
		{[]string{"basic:s"}, []string{"basic:next", "basic:s"}}, // back again
	} {
		p.now(step.takes...)
		if err := p.renew(t, client, step.want...); err != nil {
			t.Error(err)
		}
	}
	// Neither the way nor the secret is known after a restart.
	p.now("post:next")
	client = p.client(t, func(c *idp.Config) { c.NextSecret = secret.New("next") })
	if err := p.renew(t, client, "basic:s", "post:s", "basic:next", "post:next"); err != nil {
		t.Error(err)
	}
	p.now("post:s")
	if err := p.renew(t, client, "post:next", "post:s"); err != nil {
		t.Error(err)
	}
}

func TestRuleForAnAnswerWithoutABody(t *testing.T) {
	rule := func(r idp.Rule) func(*idp.Config) {
		return func(c *idp.Config) {
			c.Rules = []idp.Rule{
				r,
			}
		}
	}
	empty := idp.Rule{Status: 400, Empty: true, Class: grant.Config}
	for name, tt := range map[string]struct {
		status int
		body   string
		class  grant.Class
	}{
		"Glewlwyd's":      {400, "", grant.Config},
		"white space":     {400, " \r\n", grant.Config},
		"another status":  {422, "", grant.Unknown},
		"a body":          {400, "{}", grant.Unknown},
		"too long a body": {400, strings.Repeat("x", 300<<10), grant.Unknown},
	} {
		if f := fault(t, open(
			t, answering(t, tt.status, nil, tt.body).URL, rule(empty),
		)); f.Class != tt.class {
			t.Errorf("%s: %v", name, f)
		}
	}
}

// A provider that is out of order has no say about a user, even if a rule says so.
func TestNoRuleMakesAVerdictOfA5xx(t *testing.T) {
	s := answering(t, 500, nil, `{"error":"invalid_request"}`)
	f := fault(t, open(t, s.URL, func(c *idp.Config) {
		c.Rules = []idp.Rule{
			{Code: "invalid_request", Class: grant.Permanent, Reason: schema.ReasonRevoked},
		}
	}))
	if f.Class != grant.Ambiguous {
		t.Error(f)
	}
}

func TestExtraSettingsNameTheField(t *testing.T) {
	none := map[string]secret.Value{"": {}}
	header := func(name, value string) func(*idp.Config) {
		return func(c *idp.Config) { c.Headers = map[string]secret.Value{name: secret.New(value)} }
	}
	param := func(name, value string) func(*idp.Config) {
		return func(c *idp.Config) { c.Params = url.Values{name: {value}} }
	}
	rule := func(r idp.Rule) func(*idp.Config) {
		return func(c *idp.Config) {
			c.Rules = []idp.Rule{
				r,
			}
		}
	}
	for field, changes := range map[string][]func(*idp.Config){
		"params.grant_type":       {param("grant_type", "x")},
		"params.refresh_token":    {param("refresh_token", "x")},
		"params.client_id":        {param("client_id", "x")},
		"params.client_secret":    {param("client_secret", "x")},
		"params.client_assertion": {param("client_assertion", "x")},
		"params.scope":            {param("scope", "x")},
		"params":                  {param("", "x")},
		"headers.Authorization":   {header("Authorization", "x")},
		"headers.host":            {header("host", "x")},
		"headers.Content-Type":    {header("Content-Type", "x")},
		"headers.Idempotency-Key": {header("Idempotency-Key", "x")},
		"headers: \"a b\"":        {header("a b", "x")},
		"headers.X":               {header("X", "canary\r\nY: z"), header("X", "")},
		"headers":                 {func(c *idp.Config) { c.Headers = none }},
		"client_secret_next": {
			func(c *idp.Config) { c.NextSecret = secret.New("canary") },
			func(c *idp.Config) {
				c.ClientSecret, c.NextSecret = secret.New("canary"), secret.New("canary")
			},
		},
		"rules[0]: empty": {
			rule(idp.Rule{Empty: true, Code: "x", Class: grant.Config}),
			rule(idp.Rule{Empty: true, Body: "x", Class: grant.Config}),
		},
		"rules[0]: code": {
			rule(idp.Rule{Empty: true, Class: grant.Permanent, Reason: "revoked"}),
		},
		"rules[0]: status": {
			rule(idp.Rule{Status: 500, Code: "x", Class: grant.Permanent, Reason: "revoked"}),
			rule(idp.Rule{Status: 99, Class: grant.Config}),
		},
		"rules[0]: class": {rule(idp.Rule{Code: "x", Class: grant.Unsent})},
		"rules[0]: reason": {
			rule(idp.Rule{Code: "x", Class: grant.Permanent, Reason: "So it is."}),
		},
	} {
		for _, change := range changes {
			c := idp.Config{ID: "p", BaseURL: "https://auth.example.com", ClientID: "x"}
			change(&c)
			if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), field+":") ||
				strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: %v", field, err)
			}
		}
	}
}

// What may be the cause of a refusal is a part of what it is judged under.
func TestExtraSettingsAreInTheFingerprint(t *testing.T) {
	seen := map[string]bool{}
	for _, change := range []func(*idp.Config){
		nil, func(c *idp.Config) { c.Scope = "a" },
		func(c *idp.Config) { c.Params = url.Values{"a": {"b"}} },
		func(c *idp.Config) { c.Params = url.Values{"a": {"c"}} },
		func(c *idp.Config) { c.Headers = map[string]secret.Value{"A": secret.New("b")} },
		func(c *idp.Config) { c.ClientSecret = secret.New("s") },
		func(c *idp.Config) { c.ClientSecret, c.NextSecret = secret.New("s"), secret.New("n") },
	} {
		f := open(t, "https://x", change).Settings()
		if seen[f] {
			t.Error("other settings, same fingerprint")
		}
		seen[f] = true
	}
}
