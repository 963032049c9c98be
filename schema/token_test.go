package schema_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/schema"
)

func TestTokenGetSubjects(t *testing.T) {
	acme, err := schema.NewSubjects("acme.eu")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		s       schema.Subjects
		subject string
		sender  string
	}{
		{schema.Subjects{}, "token.get.okta.jane=40example=2Ecom", ""},
		{schema.Subjects{}, "from.shop.token.get.okta.jane=40example=2Ecom", "shop"},
		{acme, "acme.eu.token.get.okta.jane=40example=2Ecom", ""},
		{acme, "acme.eu.from.shop.token.get.okta.jane=40example=2Ecom", "shop"},
	} {
		a, err := c.s.ParseTokenGet(c.subject)
		want := schema.Address{Provider: "okta", User: "jane@example.com", Sender: c.sender}
		if err != nil || a != want {
			t.Errorf("%s: %+v, %v", c.subject, a, err)
		}
		if c.sender == "" && c.s.TokenGet(a.Provider, a.User) != c.subject {
			t.Errorf("%s: %s", c.subject, c.s.TokenGet(a.Provider, a.User))
		}
		front, _ := strings.CutSuffix(c.s.TokenGets(c.sender), ">")
		if !strings.HasPrefix(c.subject, front) {
			t.Errorf("%s: filter %s", c.subject, front)
		}
	}
	for _, bad := range []string{
		"", "token.get", "token.get.", "token.get.okta", "token.get.okta.", "token.get.okta.a.b",
		"token.get.OKTA.u", "token.get.okta.=61", "token.put.okta.u", "user.refresh_due.okta.u",
		"from.token.get.okta.u", "from.Shop.token.get.okta.u", "acme.eu.token.get.okta.u",
		"from.shop.user.refresh_due.okta.u", "from.a.from.b.token.get.okta.u",
	} {
		if a, err := (schema.Subjects{}).ParseTokenGet(bad); !errors.Is(err, schema.ErrSubject) {
			t.Errorf("%q: %+v, %v", bad, a, err)
		}
	}
	if _, err := acme.ParseTokenGet("token.get.okta.u"); !errors.Is(err, schema.ErrSubject) {
		t.Error(err)
	}
}

// What callers have stored or programmed against stays as it is.
func TestTokenFormsStay(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	least := 0
	for want, form := range map[string]any{
		`{"key":{"kty":"EC"},"min_valid_seconds":0}`: schema.TokenGet{
			Key: json.RawMessage(`{"kty":"EC"}`), MinValidSeconds: &least,
		},
		`{"access_token":"a","token_type":"Bearer","version":7}`: schema.AccessToken{
			AccessToken: "a", TokenType: "Bearer", Version: 7,
		},
		`{"access_token":"a","token_type":"Bearer","scope":"s",` +
			`"expires_at":"2026-03-01T12:00:00Z","version":7,"short":"capped"}`: schema.AccessToken{
			AccessToken: "a", TokenType: "Bearer", Scope: "s", ExpiresAt: at, Version: 7,
			Short: schema.ShortCapped,
		},
		`{"code":"busy","message":"m","retry_after_seconds":1}`: schema.NoToken{
			Code: schema.TokenBusy, Message: "m", RetryAfterSeconds: 1,
		},
		`{"code":"sign_in_again","message":"m","reason":"revoked",` +
			`"login_at":"2026-03-01T12:00:00Z","since":"2026-03-01T12:00:00Z"}`: schema.NoToken{
			Code: schema.TokenSignIn, Message: "m", Reason: "revoked", LoginAt: at, Since: at,
		},
	} {
		if got, err := json.Marshal(form); err != nil || string(got) != want {
			t.Errorf("%s, %v\nwant %s", got, err, want)
		}
	}
}

func TestAccessTokenIsNotPrinted(t *testing.T) {
	token := schema.AccessToken{AccessToken: "canary"}
	var log strings.Builder
	for _, h := range []slog.Handler{
		slog.NewJSONHandler(&log, nil), slog.NewTextHandler(&log, nil),
	} {
		slog.New(h).Info("x", "token", token, "pointer", &token)
	}
	text := fmt.Sprintf("%v %+v %#v %s", token, token, token, token) + log.String()
	if strings.Contains(text, "canary") {
		t.Error(text)
	}
}
