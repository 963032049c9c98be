package grant_test

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Dex's userinfo is the claims of the access token. A claim that differs from token to token is not
// a change of the user.
func TestClaimsOfATokenAreNoChange(t *testing.T) {
	of := func(raw string) grant.Profile {
		return profile(schema.Profile{ID: "u", Email: "a@x", Raw: json.RawMessage(raw)})
	}
	const before = `{"iss":"https://dex","sub":"u","aud":"c","exp":1,"iat":1,"nbf":1,"jti":"a",
		"at_hash":"a","c_hash":"a","s_hash":"a","auth_time":1,"nonce":"a","sid":"a","azp":"c",
		"rat":1,"groups":["a"],"updated_at":1,"login_count":1}`
	for name, tt := range map[string]struct {
		now  string
		more []string
		want []string
	}{
		"another token": {
			`{"iss":"https://dex","sub":"u","aud":["c","d"],"exp":2,"iat":2,"nbf":2,"jti":"b",
			"at_hash":"b","c_hash":"b","s_hash":"b","auth_time":2,"nonce":"b","sid":"b","azp":"d",
			"rat":2,"groups":["a"],"updated_at":1,"login_count":1}`,
			nil,
			nil,
		},
		"without them": {
			`{"iss":"https://dex","sub":"u","groups":["a"],"updated_at":1,"login_count":1}`,
			nil,
			nil,
		},
		"another group": {
			`{"iss":"https://dex","sub":"u","groups":["b"],"updated_at":1,"login_count":1}`,
			nil,
			[]string{"raw"},
		},
		"updated elsewhere": {
			`{"iss":"https://dex","sub":"u","groups":["a"],"updated_at":2,"login_count":1}`,
			nil,
			[]string{"raw"},
		},
		"by the settings": {
			`{"iss":"https://dex","sub":"u","groups":["a"],"updated_at":2,"login_count":2}`,
			[]string{"updated_at", "login_count"},
			nil,
		},
		"another issuer": {
			`{"iss":"https://dax","sub":"u","groups":["a"],"updated_at":1,"login_count":1}`,
			nil,
			[]string{"raw"},
		},
	} {
		got := grant.Changed(of(before), of(tt.now), tt.more...)
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: changed %v, want %v", name, got, tt.want)
		}
	}
}

// A later version, or new settings, make more of the same JSON. The new profile is stored, so that
// it is published, but nothing about the user changed at the provider.
func TestWhatIsMappedAnewIsStoredAndNoChange(t *testing.T) {
	raw := json.RawMessage(`{"sub":"u","groups":["a"],"exp":1}`)
	before := profile(schema.Profile{ID: "u", Raw: raw})
	now := profile(schema.Profile{
		ID:     "u",
		Groups: []string{"a"},
		Raw:    json.RawMessage(`{"sub":"u","groups":["a"],"exp":2}`),
	})
	if got := grant.Changed(before, now); got != nil {
		t.Errorf("changed %v", got)
	}
	stored := live(0)
	stored.NextDueAt = noon.Add(time.Hour)
	stored.Profile = before
	next, write := stored.WithProfile(turn(due, noon), now)
	if !write || next.Profile != now {
		t.Errorf("write %v: %s", write, next.Profile)
	}
	next, write = next.WithProfile(turn(due, noon),
		profile(schema.Profile{ID: "u", Groups: []string{"a"}, Raw: raw}))
	if write || next.Profile != now {
		t.Errorf("only the token changed: write %v: %s", write, next.Profile)
	}
}

// A member that the policy names moves by itself, and costs no write.
func TestVolatileMembersOfThePolicy(t *testing.T) {
	stored := live(0)
	stored.NextDueAt = noon.Add(time.Hour)
	stored.Profile = profile(schema.Profile{ID: "u", Raw: json.RawMessage(`{"sub":"u","seen":1}`)})
	now := profile(schema.Profile{ID: "u", Raw: json.RawMessage(`{"sub":"u","seen":2}`)})
	at := turn(due, noon)
	if _, write := stored.WithProfile(at, now); !write {
		t.Error("any other member is a change")
	}
	p := *at.Policy
	p.Volatile = []string{"seen"}
	at.Policy = &p
	if _, write := stored.WithProfile(at, now); write {
		t.Error("a volatile member is written")
	}
}

// What an event shows of a profile is the profile without its raw part, to the byte.
func FuzzShownProfile(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `"a,\"raw\":1"`, `[{"raw":1},"\\"]`, `{"x":{"raw":"}"},"omitted":["raw"]}`,
		`-1.5e3`,
	} {
		f.Add(seed, "Jane", true)
	}
	f.Add(`{}`, `,"raw":`, false)
	f.Fuzz(func(t *testing.T, raw, name string, omitted bool) {
		p := schema.Profile{
			ID:            "u",
			Name:          name,
			Organisations: []schema.Organisation{{ID: "o", Name: name}},
			Raw:           json.RawMessage(raw),
		}
		if omitted {
			p.Omitted = []string{"picture", name}
		}
		whole, err := grant.NewProfile(p)
		if err != nil {
			return
		}
		p.Raw = nil
		want, err := grant.NewProfile(p)
		if err != nil {
			t.Fatal(err)
		}
		if got := whole.Show(grant.ShowMapped); got != want {
			t.Errorf("%s becomes %s, want %s", whole, got, want)
		}
		if whole.Show(grant.ShowRaw) != whole || whole.Show(grant.ShowNone) != "" ||
			grant.Profile("").Show(grant.ShowMapped) != "" {
			t.Error("raw, none, or no profile at all")
		}
	})
}
