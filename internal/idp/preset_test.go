package idp_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

func TestRulesComeFirst(t *testing.T) {
	s := answering(t, 400, nil, `{"error":"gone_fishing","message":"User canary is Not Here"}`)
	rule := func(r idp.Rule) func(*idp.Config) {
		return func(c *idp.Config) {
			c.Rules = []idp.Rule{
				r,
			}
		}
	}
	for name, tt := range map[string]struct {
		rule  idp.Rule
		class grant.Class
	}{
		"status and code": {
			idp.Rule{
				Status: 400,
				Code:   "gone_fishing",
				Class:  grant.Permanent,
				Reason: schema.ReasonExpired,
			}, grant.Permanent,
		},
		"any status": {idp.Rule{Code: "gone_fishing", Class: grant.Throttled}, grant.Throttled},
		"body": {
			idp.Rule{
				Code:   "gone_fishing",
				Body:   "is not here",
				Class:  grant.Permanent,
				Reason: schema.ReasonExpired,
			}, grant.Permanent,
		},
		"another status": {
			idp.Rule{Status: 401, Code: "gone_fishing", Class: grant.Config}, grant.Unknown,
		},
		"another code": {idp.Rule{Status: 400, Code: "gone", Class: grant.Config}, grant.Unknown},
		"no code":      {idp.Rule{Status: 400, Class: grant.Config}, grant.Unknown},
		"another body": {
			idp.Rule{Code: "gone_fishing", Body: "is here", Class: grant.Config}, grant.Unknown,
		},
	} {
		if f := fault(t, open(t, s.URL, rule(tt.rule))); f.Class != tt.class ||
			f.Reason != tt.rule.Reason && tt.class == tt.rule.Class {
			t.Errorf("%s: %v", name, f)
		}
	}
	good := answering(t, 200, nil, `{"access_token":"a"}`)
	if _, err := open(t, good.URL, rule(idp.Rule{Status: 200, Class: grant.Config})).Refresh(
		t.Context(), secret.New(canary),
	); err != nil {
		t.Errorf("a rule spoils a success: %v", err)
	}
}

// The oddities that made presets necessary.
func TestPresetRules(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		body   string
		class  grant.Class
	}{
		"twitch":     {400, `{"status":400,"message":"Invalid refresh token"}`, grant.Permanent},
		"twitch ":    {400, `{"status":400,"message":"missing client id"}`, grant.Unknown},
		"slack":      {200, `{"ok":false,"error":"internal_error"}`, grant.Ambiguous},
		"slack ":     {200, `{"ok":false,"error":"invalid_refresh_token"}`, grant.Permanent},
		"github":     {200, `{"error":"bad_verification_code"}`, grant.Config},
		"github ":    {200, `{"error":"bad_refresh_token"}`, grant.Permanent},
		"propelauth": {400, `{"status":400,"message":"Invalid refresh token"}`, grant.Unknown},
		"oidc":       {400, `{"error":"invalid_client"}`, grant.Config},
		"oidc ": {
			400, `{"error":"interaction_required","error_codes":[50076],"suberror":"basic_action"}`,
			grant.Permanent,
		},
		"auth0": {
			403,
			`{"error":"invalid_grant","error_description":"Unknown or invalid refresh token."}`,
			grant.Permanent,
		},
		"keycloak": {
			400, `{"error":"invalid_grant","error_description":"Session not active"}`,
			grant.Permanent,
		},
		"keycloak ":    {503, `{"error":"invalid_grant"}`, grant.Throttled},
		"propelauth  ": {401, `{"error_code":"canary"}`, grant.Config},
	} {
		s := answering(t, tt.status, nil, tt.body)
		f := fault(t, open(t, s.URL, func(c *idp.Config) {
			c.Preset, c.TokenURL, c.UserInfoURL = strings.TrimSpace(name), s.URL, s.URL
		}))
		if f.Class != tt.class || (f.Reason != "") != (tt.class == grant.Permanent) {
			t.Errorf("%s: %v", name, f)
		}
	}
}

func TestPresets(t *testing.T) {
	for _, name := range []string{"okta", "entra"} { // which need none
		if err := (idp.Config{
			ID:       "p",
			Preset:   name,
			BaseURL:  "https://x",
			ClientID: "x",
		}).Validate(); err == nil || !strings.Contains(err.Error(), "say oidc") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(idp.Presets())) {
		preset := idp.Presets()[name]
		c := idp.Config{
			ID:       "p",
			Preset:   name,
			BaseURL:  preset.BaseURL,
			ClientID: "x",
			Rules:    preset.Rules,
			Profile:  preset.Profile,
		}
		if err := c.Validate(); (err == nil) != (preset.BaseURL != "") {
			t.Errorf("%s at %q: %v", name, preset.BaseURL, err)
		}
		c.BaseURL = "https://auth.example.com"
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if (preset.Token == "") != (preset.UserInfo == "") {
			t.Errorf("%s: %+v", name, preset)
		}
	}
}

// Two calls at once do not share what they read the rules from.
func TestRulesAreNotShared(t *testing.T) {
	rules := append(make([]idp.Rule, 0, 10), idp.Rule{Code: "z", Class: grant.Config})
	p := open(t, answering(t, 400, nil, `{"error":"bad_verification_code"}`).URL,
		func(c *idp.Config) { c.Preset, c.Rules = "github", rules })
	fault(t, p)
	if rules[:2][1] != (idp.Rule{}) {
		t.Error("the settings' rules were written to")
	}
}

func TestConfigNamesTheField(t *testing.T) {
	for field, change := range map[string]func(*idp.Config){
		"preset":        func(c *idp.Config) { c.Preset = "myspace" },
		"auth_url":      func(c *idp.Config) { c.BaseURL = "http://example.com" },
		"token_url":     func(c *idp.Config) { c.TokenURL = "ftp://x/y" },
		"userinfo_url":  func(c *idp.Config) { c.UserInfoURL = "https://user:pass@x/y" },
		"client_id":     func(c *idp.Config) { c.ClientID = "" },
		"client_secret": func(c *idp.Config) { c.ClientAuth = idp.AuthBasic },
		"client_auth":   func(c *idp.Config) { c.ClientAuth = "jwt" },
		"timeout":       func(c *idp.Config) { c.Timeout = time.Hour },
		"concurrency":   func(c *idp.Config) { c.MaxConns = -1 },
		"proxy_url":     func(c *idp.Config) { c.ProxyURL = secret.New("socks5://user:canary@x") },
		"rules[1]": func(c *idp.Config) {
			c.Rules = []idp.Rule{{Class: grant.Config}, {Class: "fatal"}}
		},
		"rules[0]": func(c *idp.Config) {
			c.Rules = []idp.Rule{{Code: "x", Class: grant.Permanent}}
		},
	} {
		c := idp.Config{ID: "p", BaseURL: "https://auth.example.com", ClientID: "x"}
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), field+":") ||
			strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", field, err)
		}
	}
	c := idp.Config{BaseURL: "http://127.0.0.1:1", ClientID: "x"}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "allow_http_loopback") {
		t.Errorf("plain http to loopback without leave: %v", err)
	}
	// One line that would sign out everybody.
	c = idp.Config{
		BaseURL:  "https://x",
		ClientID: "x",
		Rules:    []idp.Rule{{Status: 400, Class: grant.Permanent, Reason: schema.ReasonRevoked}},
	}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "signs the user out") {
		t.Errorf("a permanent answer without a code: %v", err)
	}
	// A refusal under other settings proves nothing of these.
	one := open(t, "https://x", nil).Settings()
	for _, change := range []func(*idp.Config){
		func(c *idp.Config) { c.ClientID = "other" },
		func(c *idp.Config) { c.ClientSecret = secret.New("s") },
		func(c *idp.Config) { c.BaseURL = "https://y" },
	} {
		if open(t, "https://x", change).Settings() == one {
			t.Error("other settings, same fingerprint")
		}
	}
}
