package idp_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

const keycloakUser = `{"sub":"u","groups":["/staff","/admins","/staff"],"locale":"de",
	"zoneinfo":"Europe/Berlin","email":"u@x","given_name":"U",
	"realm_access":{"roles":["b","a"]},"resource_access":{"a/b~c":{"roles":["x"]}},
	"mail":["m@x","n@x"],"on":true,"urn:roles":{"viewer":{"1":"x"},"editor":{}}}`

func mapped(t *testing.T, body string, mapping map[string]string) (schema.Profile, error) {
	t.Helper()
	p, err := open(t, answering(t, 200, nil, body).URL, func(c *idp.Config) {
		c.Profile = mapping
	}).UserInfo(t.Context(), secret.New(canary), "u")
	p.Raw = nil
	return p, err
}

// Dex, Hydra, Okta and Keycloak say groups; a locale is a standard claim (OpenID Connect Core
// section 5.1).
func TestGroupsRolesAndLocale(t *testing.T) {
	p, err := mapped(t, keycloakUser, nil)
	want := schema.Profile{
		ID:        "u",
		Email:     "u@x",
		FirstName: "U",
		Name:      "U",
		Groups:    []string{"/admins", "/staff"},
		Locale:    "de",
		Zoneinfo:  "Europe/Berlin",
	}
	if err != nil || !reflect.DeepEqual(p, want) {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err = mapped(
		t, `{"sub":"u","roles":["a"],"groups":[7,null,"g"],"locale":{}}`, nil,
	); err != nil ||
		!reflect.DeepEqual(p, schema.Profile{
			ID:     "u",
			Roles:  []string{"a"},
			Groups: []string{"g"},
		}) {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestProfileMapping(t *testing.T) {
	on := true
	for name, tt := range map[string]struct {
		mapping map[string]string
		want    schema.Profile
	}{
		"nested": {
			map[string]string{"roles": "/realm_access/roles"},
			schema.Profile{Roles: []string{"a", "b"}},
		},
		"escaped": {
			map[string]string{"roles": "/resource_access/a~1b~0c/roles"},
			schema.Profile{Roles: []string{"x"}},
		},
		"of a list": {map[string]string{"email": "/mail/1"}, schema.Profile{Email: "n@x"}},
		"names (zitadel)": {
			map[string]string{"roles": "/urn:roles"},
			schema.Profile{Roles: []string{"editor", "viewer"}},
		},
		"one alone": {map[string]string{"roles": "/locale"}, schema.Profile{Roles: []string{"de"}}},
		"a flag":    {map[string]string{"enabled": "/on"}, schema.Profile{Enabled: &on}},
		"not there": {
			map[string]string{"email": "/no/where", "roles": "/mail/7/x"},
			schema.Profile{},
		},
		"no text": {
			map[string]string{"email": "/realm_access", "enabled": "/locale", "roles": "/on"},
			schema.Profile{},
		},
		"a part of a name": {map[string]string{"first_name": "/locale", "last_name": "/zoneinfo"},
			schema.Profile{FirstName: "de", LastName: "Europe/Berlin", Name: "de Europe/Berlin"}},
	} {
		t.Run(name, func(t *testing.T) {
			want := schema.Profile{
				ID:        "u",
				Email:     "u@x",
				FirstName: "U",
				Name:      "U",
				Groups:    []string{"/admins", "/staff"},
				Locale:    "de",
				Zoneinfo:  "Europe/Berlin",
			}
			for target := range tt.mapping {
				switch target {
				case "email":
					want.Email = tt.want.Email
				case "roles":
					want.Roles = tt.want.Roles
				case "enabled":
					want.Enabled = tt.want.Enabled
				case "last_name":
					want.FirstName, want.LastName, want.Name = tt.want.FirstName, tt.want.LastName,
						tt.want.Name
				}
			}
			if p, err := mapped(t, keycloakUser, tt.mapping); err != nil ||
				!reflect.DeepEqual(p, want) {
				t.Errorf("%+v, want %+v (%v)", p, want, err)
			}
		})
	}
}

// If a mapped member is there twice, it cannot be told which one counts.
func TestMappedMembersAreThereOnce(t *testing.T) {
	mapping := map[string]string{"roles": "/realm_access/roles"}
	for _, body := range []string{
		`{"sub":"u","realm_access":{"roles":["a"]},"realm_access":{}}`,
		`{"sub":"u","realm_access":{"roles":["a"],"roles":["b"]}}`,
		`{"sub":"u","groups":["a"],"groups":["b"]}`,
	} {
		if _, err := mapped(t, body, mapping); !isFault(grant.Unknown)(schema.Profile{}, err) ||
			!strings.Contains(err.Error(), "twice") {
			t.Errorf("%s: %v", body, err)
		}
	}
}

func TestMappingNamesTheField(t *testing.T) {
	for field, mapping := range map[string]map[string]string{
		"profile.roles":  {"roles": "realm_access.roles"},
		"profile.email":  {"email": ""},
		"profile.locale": {"locale": "/a~2"},
		"profile.id":     {"id": "/x"},
		"profile.raw":    {"raw": "/x"},
		"profile.group":  {"group": "/x"},
	} {
		c := idp.Config{
			ID:       "p",
			BaseURL:  "https://auth.example.com",
			ClientID: "x",
			Profile:  mapping,
		}
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), field+":") {
			t.Errorf("%s: %v", field, err)
		}
	}
}
