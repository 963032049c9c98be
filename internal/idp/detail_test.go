package idp_test

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/secret"
)

// What a provider says of a refusal helps the operator who sets it up. It is cleaned before it gets
// anywhere.
func TestDetailIsWhatTheProviderSays(t *testing.T) {
	const password = "client-secret+/ü"
	basic := base64.StdEncoding.EncodeToString([]byte("client:" + url.QueryEscape(password)))
	for name, tt := range map[string]struct{ contentType, body, want string }{
		"Hydra": {
			"",
			`{"error":"invalid_client","error_uri":"https://h/x",` +
				`"error_description":"The client supports 'client_secret_basic'."}`,
			"The client supports 'client_secret_basic'. (https://h/x)",
		},
		"GitHub's form": {
			"application/x-www-form-urlencoded",
			"error=x&error_description=Bad+code&error_uri=https%3A%2F%2Fg", "Bad code (https://g)",
		},
		"a URI alone": {"", `{"error":"x","error_uri":"https://h"}`, "(https://h)"},
		"nothing":     {"", `{"error":"x"}`, ""},
		"no text":     {"", `{"error":"x","error_description":{"a":1}}`, ""},
		"no JSON":     {"", `error_description`, ""},
		"broken off":  {"", `{"error":"x","error_description":"half","y":"`, ""},
		"lines": {
			"", `{"error_description":"one\n two\r\n\t\u001b[31mthree\u0000\u202e\u2028four"}`,
			"one two [31mthree four",
		},
		"the token": {
			"", `{"error_description":"token ` + canary + ` is dead"}`, "token [redacted] is dead",
		},
		"among others": {
			"", `{"error_description":"token='x` + canary + `y', client c"}`,
			"token='[redacted]', client c",
		},
		"a part of it": {
			"", `{"error_description":"token ` + canary[:9] + `... is dead"}`,
			"token [redacted]... is dead",
		},
		"the secret": {
			"",
			`{"error_description":"client-secret+/ü and client-secret%2B%2F%C3%BC and ` + basic +
				`"}`, "[redacted] and [redacted] and [redacted]",
		},
		"in the URI": {
			"", `{"error_uri":"https://h/?token=` + canary + `"}`, "(https://h/?token=[redacted])",
		},
		"another token": {
			"",
			`{"error_description":"session ` + strings.Repeat("aZ9-", 10) +
				` at https://login.example.com/oauth2/errors/d41d8cd98f00b204e9800998ecf8427e/x"}`,
			"session [redacted] at " +
				"https://login.example.com/oauth2/errors/d41d8cd98f00b204e9800998ecf8427e/x",
		},
		"hidden": {"", `{"error_description":"canary-\u0000refresh-\u200btoken"}`, "[redacted]"},
	} {
		t.Run(name, func(t *testing.T) {
			s := answering(t, 400, map[string]string{"Content-Type": tt.contentType}, tt.body)
			client := open(t, s.URL, func(c *idp.Config) {
				c.ClientSecret, c.ClientAuth = secret.New(password), idp.AuthBasic
			})
			if f := fault(t, client); f.Detail != tt.want {
				t.Errorf("%q, want %q", f.Detail, tt.want)
			}
		})
	}
}

func TestDetailIsCapped(t *testing.T) {
	s := answering(t, 400, nil, fmt.Sprintf(`{"error":"x","error_description":%q}`,
		strings.Repeat("é ", 300)+canary))
	f := fault(t, open(t, s.URL, nil))
	if n := len(f.Detail); n > 200 || n < 190 || !utf8.ValidString(f.Detail) {
		t.Errorf("%d bytes: %q", n, f.Detail)
	}
}

func TestDetailOfRevocationAndUserinfo(t *testing.T) {
	s := answering(t, 403, nil,
		`{"error":"access_denied","error_description":"Invalid `+canary+`."}`)
	client := open(t, s.URL, func(c *idp.Config) { c.RevokeURL = s.URL })
	_, err := client.UserInfo(t.Context(), secret.New(canary), "u")
	for name, err := range map[string]error{
		"userinfo": err,
		"revoke":   client.Revoke(t.Context(), secret.New(canary)),
	} {
		f, ok := err.(*grant.Fault)
		if !ok || f.Detail != "Invalid [redacted]." || strings.Contains(f.Error(), "Invalid") {
			t.Errorf("%s: %v, %q", name, err, f.Detail)
		}
	}
}
