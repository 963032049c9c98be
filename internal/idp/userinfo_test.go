package idp_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

const propelUser = `{
  "user_id": "5c0b7c1e", "email": "ines.moreau@example.org", "email_confirmed": true,
  "has_password": false, "username": "ines.m",
  "first_name": " Ines", "last_name": "Moreau ", "picture_url": "https://img.example.org/u.png",
  "properties": { "tos": true, "team_size": 12.5 }, "metadata": null,
  "locked": false, "enabled": true, "mfa_enabled": true,
  "last_active_at": 1763875210, "legacy_user_id": "crm-88121",
  "org_id_to_org_info": {
    "o2": { "org_id": "o2", "org_name": "Zwei", "user_role": "Member",
      "inherited_user_roles_plus_current_role": ["Member"] },
    "o1": { "org_id": "o1", "org_name": "Atelier Nord", "user_role": "Admin",
      "inherited_user_roles_plus_current_role": ["Member", "Admin"],
      "additional_roles": ["Billing"],
      "user_permissions": ["z::view", "propelauth::can_invite"] } } }`

func TestPropelAuthProfile(t *testing.T) {
	yes, no := true, false
	p, err := open(t, answering(t, 200, nil, propelUser).URL, nil).UserInfo(t.Context(),
		secret.New(canary), "5c0b7c1e")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(p.Raw), `"legacy_user_id": "crm-88121"`) {
		t.Errorf("raw %s", p.Raw)
	}
	p.Raw = nil
	want := schema.Profile{
		ID:            "5c0b7c1e",
		Email:         "ines.moreau@example.org",
		EmailVerified: &yes,
		Name:          "Ines Moreau",
		FirstName:     "Ines",
		LastName:      "Moreau",
		Username:      "ines.m",
		Picture:       "https://img.example.org/u.png",
		Enabled:       &yes,
		Locked:        &no,
		MFAEnabled:    &yes,
		HasPassword:   &no,
		Organisations: []schema.Organisation{
			{
				ID:          "o1",
				Name:        "Atelier Nord",
				Role:        "Admin",
				Roles:       []string{"Admin", "Billing", "Member"},
				Permissions: []string{"propelauth::can_invite", "z::view"},
			},
			{ID: "o2", Name: "Zwei", Role: "Member", Roles: []string{"Member"}},
		},
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("\n%+v\n%+v", p, want)
	}
}

func TestProfiles(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		body   string
		check  func(schema.Profile, error) bool
	}{
		"OpenID Connect": {
			200,
			`{"sub":"u","name":"Jane Roe","email":"j@x","email_verified":false,` +
				`"preferred_username":"jane","picture":"https://p"}`,
			func(p schema.Profile, err error) bool {
				return err == nil && p.ID == "u" && p.Name == "Jane Roe" && p.Username == "jane" &&
					p.Picture == "https://p" && !*p.EmailVerified && p.Enabled == nil
			},
		},
		"odd types cost only themselves": {
			200,
			`{"user_id":"u","email":["x"],"locked":"yes","org_id_to_org_info":{"o":` +
				`{"user_role":7,"additional_roles":[null,"a",{}],"user_permissions":"p"},"q":[]},` +
				`"first_name":null,"username":"ok"}`,
			func(p schema.Profile, err error) bool {
				return err == nil && p.Email == "" && p.Locked == nil && p.Username == "ok" &&
					reflect.DeepEqual(p.Organisations,
						[]schema.Organisation{{ID: "o", Roles: []string{"a"}}, {ID: "q"}})
			},
		},
		"either id matches": {
			200, `{"user_id":"u","sub":"other"}`,
			func(p schema.Profile, err error) bool { return err == nil && p.ID == "u" },
		},
		"somebody else": {
			200, `{"user_id":"v","email":"canary"}`,
			func(_ schema.Profile, err error) bool {
				return errors.Is(err, grant.ErrSubjectMismatch)
			},
		},
		"nobody": {200, `{"email":"canary"}`, isFault(grant.Unknown)},
		"refused": {
			401, `canary`,
			func(_ schema.Profile, err error) bool {
				return errors.Is(err, grant.ErrAccessRefused)
			},
		},
		"html":   {200, `<html>canary`, isFault(grant.Ambiguous)},
		"a list": {200, `["canary"]`, isFault(grant.Ambiguous)},
		"too large": {
			200, `{"sub":"u","x":"` + strings.Repeat("y", 2<<20) + `"}`, isFault(grant.Unknown),
		},
		"throttled":            {429, ``, isFault(grant.Throttled)},
		"down":                 {500, ``, isFault(grant.Ambiguous)},
		"forbidden":            {403, ``, isFault(grant.Config)},
		"never a verdict":      {400, `{"error":"invalid_grant"}`, isFault(grant.Unknown)},
		"a redirect to nobody": {302, ``, isFault(grant.Config)},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := open(t, answering(t, tt.status, nil, tt.body).URL, nil).UserInfo(t.Context(),
				secret.New(canary), "u")
			if !tt.check(p, err) {
				t.Errorf("%+v, %v", p, err)
			}
			if err != nil && strings.Contains(fmt.Sprintf("%v %#v", err, err), "canary") {
				t.Errorf("the error quotes the answer: %v", err)
			}
		})
	}
}

// A user who can name a claim does not become another user by it, and does not get another user's
// address: only exact names count, and no name may be there twice.
func TestProfileHasExactNames(t *testing.T) {
	const body = `{"user_id":"u","email":"u@example.org",
		"USER_ID":"victim","Email":"ceo@example.com","EMAIL_CONFIRMED":true,
		"org_id_to_org_info":{"o":{"org_name":"mine","ORG_NAME":"theirs","User_Role":"Owner"}}}`
	p, err := open(t, answering(t, 200, nil, body).URL, nil).UserInfo(t.Context(),
		secret.New(canary), "u")
	want := []schema.Organisation{{ID: "o", Name: "mine"}}
	if err != nil || p.Email != "u@example.org" || p.EmailVerified != nil ||
		!reflect.DeepEqual(p.Organisations, want) {
		t.Errorf("%+v, %v", p, err)
	}
	for _, body := range []string{
		`{"user_id":"u","user_id":"u"}`, `{"user_id":"v","user_id":"u"}`,
		`{"user_id":"u","email":"a@x","\u0065mail":"b@x"}`,
		`{"user_id":"u","org_id_to_org_info":{"o":{},"o":{}}}`,
		`{"user_id":"u","org_id_to_org_info":{"o":{"user_role":"a","user_role":"b"}}}`,
	} {
		_, err := open(t, answering(t, 200, nil, body).URL, nil).UserInfo(t.Context(),
			secret.New(canary), "u")
		if !isFault(grant.Unknown)(schema.Profile{}, err) ||
			!strings.Contains(err.Error(), "twice") {
			t.Errorf("%s: %v", body, err)
		}
	}
	p, err = open(t, answering(t, 200, nil, `{"user_id":"u","tag":"a","tag":"b"}`).URL,
		nil).UserInfo(t.Context(), secret.New(canary), "u")
	if err != nil {
		t.Errorf("what nobody looks at may be there twice: %v", err)
	}
}

// What no store and no subscriber takes does not get as far as them: it would be refused forever.
func TestProfileIsWellFormed(t *testing.T) {
	for raw, want := range map[string]string{
		"Jos\xe9":            "Jos\ufffd",
		`a\u0000b`:           `a\ufffdb`,
		`a\\u0000b`:          `a\\u0000b`,
		`\\\u0000`:           `\\\ufffd`,
		`\ud83d\ude00`:       `\ud83d\ude00`,
		`\ud83d`:             `\ufffd`,
		`\ud83d\u0041`:       `\ufffd\u0041`,
		`\ude00\ud83d\ude00`: `\ufffd\ud83d\ude00`,
		`\"\u00e9`:           `\"\u00e9`,
		"\xff\xfe":           "\ufffd",
	} {
		body := fmt.Sprintf(`{"user_id":"u","name":"%s"}`, raw)
		p, err := open(t, answering(t, 200, nil, body).URL, nil).UserInfo(t.Context(),
			secret.New(canary), "u")
		if err != nil || string(p.Raw) != fmt.Sprintf(`{"user_id":"u","name":"%s"}`, want) {
			t.Errorf("%q: raw %s, want %s, %v", raw, p.Raw, want, err)
		}
		var name struct{ Name string }
		if err := json.Unmarshal(p.Raw, &name); err != nil ||
			p.Name != strings.TrimSpace(name.Name) || strings.Contains(p.Name, "\x00") {
			t.Errorf("%q: name %q of %q, %v", raw, p.Name, name.Name, err)
		}
	}
}

func isFault(class grant.Class) func(schema.Profile, error) bool {
	return func(_ schema.Profile, err error) bool {
		f, ok := errors.AsType[*grant.Fault](err)
		return ok && f.Class == class && f.Op == "userinfo"
	}
}

// Which member says whom the profile is about is the preset's or the settings' word, and it alone
// decides.
func TestSubject(t *testing.T) {
	const mismatch = "mismatch"
	for _, tt := range []struct{ preset, subject, body, want string }{
		{"propelauth", "", `{"user_id":"u","sub":"other"}`, ""},
		{"propelauth", "", `{"user_id":"other","sub":"u"}`, mismatch},
		{"propelauth", "", `{"sub":"u"}`, ""},
		{"oidc", "", `{"sub":"u","user_id":"17"}`, ""},
		{"oidc", "", `{"sub":"other","user_id":"u"}`, mismatch},
		{"oidc", "", `{"user_id":"u"}`, ""},
		{"oidc", "", `{"sub":"U"}`, mismatch},
		{"oidc", "", `{"sub":7}`, "fault"},
		{"oidc", "email", `{"sub":"x","email":"u"}`, ""},
		{"oidc", "email", `{"sub":"u"}`, "fault"},
		{"oidc", "email", `{"sub":"u","email":"other"}`, mismatch},
		{"slack", "", `{"ok":false,"error":"token_revoked"}`, "refused"},
		{"slack", "", `{"ok":false,"error":"canary"}`, "fault"},
	} {
		s := answering(t, 200, nil, tt.body)
		p, err := open(t, s.URL, func(c *idp.Config) {
			c.Preset, c.Subject, c.TokenURL, c.UserInfoURL = tt.preset, tt.subject, s.URL, s.URL
		}).
			UserInfo(t.Context(), secret.New(canary), "u")
		got := "fault"
		switch {
		case err == nil && p.ID == "u":
			got = ""
		case errors.Is(err, grant.ErrSubjectMismatch):
			got = mismatch
		case errors.Is(err, grant.ErrAccessRefused):
			got = "refused"
		}
		if got != tt.want || strings.Contains(fmt.Sprint(err), "canary") {
			t.Errorf("%s %s %s: %v, want %q", tt.preset, tt.subject, tt.body, err, tt.want)
		}
	}
	octo := answering(t, 200, nil, `{"id":583231,"login":"octocat","name":" The Octocat "}`)
	p, err := open(t, octo.URL, func(c *idp.Config) {
		c.Preset, c.UserInfoURL = "github", octo.URL
	}).UserInfo(t.Context(), secret.New(canary), "583231")
	if err != nil || p.ID != "583231" || p.Name != "The Octocat" {
		t.Errorf("GitHub's user: %+v %v", p, err)
	}
}

// A provider that is down does not keep renewd from starting, and is asked again when it is back.
func TestDiscovery(t *testing.T) {
	var up atomic.Bool
	var issuer, token string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !up.Load():
			http.Error(w, "canary", http.StatusBadGateway)
		case r.URL.Path == "/.well-known/openid-configuration":
			fmt.Fprintf(w,
				`{"issuer":%q,"token_endpoint":%q,"userinfo_endpoint":%q,`+
					`"jwks_uri":%[1]q,"authorization_endpoint":%[1]q}`,
				issuer, token, issuer+"/me")
		case r.URL.Path == "/token":
			_, _ = w.Write([]byte(`{"access_token":"a"}`))
		case r.URL.Path == "/me":
			_, _ = w.Write([]byte(`{"sub":"u"}`))
		}
	}))
	defer s.Close()
	p := open(t, s.URL, func(c *idp.Config) { c.Preset = "oidc" })
	if f := fault(t, p); f.Class != grant.Unsent || f.Op != "discovery" {
		t.Errorf("down: %v", f)
	}
	up.Store(true)
	issuer, token = s.URL+"/other", s.URL+"/token"
	if f := fault(t, p); f.Op != "discovery" {
		t.Errorf("another issuer: %v", f)
	}
	issuer, token = s.URL, "http://example.com/token"
	if f := fault(t, p); f.Class != grant.Config {
		t.Errorf("an endpoint in the clear: %v", f)
	}
	token = s.URL + "/token"
	if _, err := p.Refresh(t.Context(), secret.New("x")); err != nil {
		t.Errorf("back again: %v", err)
	}
	if _, err := p.UserInfo(t.Context(), secret.New("x"), "u"); err != nil {
		t.Errorf("back again: %v", err)
	}
}
