package idp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

func FuzzParseTokens(f *testing.F) {
	for _, seed := range []string{
		`{"access_token":"a","refresh_token":"r","expires_in":1800}`,
		`{"access_token":{"access_token":"a","expires_at_seconds":1}}`, `{"ok":false,"error":"x"}`,
		`{"error":{"code":"x"}}`, `[]`, `null`, `{"expires_in":1e400}`, `{"expires_in":1e10}`,
		`{"expires_in":"NaN"}`, `{"access_token":"h.e30.s"}`, "", "\xef\xbb\xbf{}",
		`{"access_token":"a","scope":["x"],"refresh_token":7}`,
		`{"access_token":"h.eyJpYXQiOiJ4IiwiZXhwIjoyfQ.s"}`, `{"error":"invalid_grant"}`,
	} {
		f.Add([]byte(seed), "application/json")
	}
	f.Add([]byte("access_token=a&expires_in=5&error=%zz"), "application/x-www-form-urlencoded")
	f.Fuzz(func(t *testing.T, body []byte, contentType string) {
		tokens, errorCode := parseTokens(body, true, contentType, time.Unix(1763875210, 0))
		if tokens.ExpiresIn < 0 || tokens.ExpiresIn > maxLifetime {
			t.Errorf("lifetime %v", tokens.ExpiresIn)
		}
		if len(code(errorCode)) > 64 {
			t.Errorf("code %q", code(errorCode))
		}
		for _, r := range code(errorCode) {
			if r < 0x21 || r > 0x7e {
				t.Errorf("code %q would reach a log", code(errorCode))
			}
		}
		// Whatever a body says, only codes of the table sign a user out.
		class, _ := Classify(Answer{Status: 400, Code: errorCode}, nil)
		if _, known := permanent[errorCode]; class == grant.Permanent && !known || class == "" {
			t.Errorf("%q: %s", errorCode, class)
		}
	})
}

func FuzzParseProfile(f *testing.F) {
	for _, seed := range []string{
		`{"user_id":"u","org_id_to_org_info":{"o":{"user_role":"r"}}}`, `{"sub":"u","email":7}`,
		`{"org_id_to_org_info":[1]}`, `[]`, `{}`, ``,
		`{"id":583231,"login":"octo"}`, `{"ok":false,"error":"token_expired"}`,
		`{"org_id_to_org_member_info":{"b":{},"a":null}}`,
		`{"sub":"u","name":"Jos\xe9"}`,
		`{"sub":"u","name":"a\u0000b\\u0000\ud800\ud83d\ude00\udead\udead"}`,
		`{"sub":"u","SUB":"v","sub":"w"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, claim := range []string{"user_id", "sub", "id"} {
			u, err := parseProfile(bytes.Clone(body), claim, map[string]string{
				"roles": "/org_id_to_org_info/o",
				"email": "/x/0/y",
			})
			if err != nil {
				return
			}
			if !json.Valid(body) || bytes.TrimSpace(body)[0] != '{' {
				t.Errorf("body %q", body)
			}
			p := u.profile(u.subject(claim))
			if !json.Valid(p.Raw) || !utf8.Valid(p.Raw) ||
				bytes.Contains(bytes.ReplaceAll(p.Raw, []byte(`\\`), nil), []byte(`\u0000`)) {
				t.Errorf("raw %q", p.Raw)
			}
			encoded, err := grant.NewProfile(p)
			if err != nil {
				t.Error(err)
			}
			var compact bytes.Buffer
			if err := json.Compact(&compact, []byte(encoded)); err != nil ||
				compact.String() != string(encoded) {
				t.Errorf("profile %q is not compact JSON: %v", encoded, err)
			}
			if !slices.IsSortedFunc(p.Organisations, func(a, b schema.Organisation) int {
				return strings.Compare(a.ID, b.ID)
			}) {
				t.Errorf("organisations %v", p.Organisations)
			}
		}
	})
}

// FuzzMembers holds the way to take an object and its lists apart against the decoder's.
func FuzzMembers(f *testing.F) {
	for _, seed := range []string{
		`{}`, ` { "a" : 1 ,"b":{"c":[{"d":":"}]},"e":"\\","f":"\":{"} `, `{"a":1,"a":2}`,
		`{"a":1,"\u0061":2}`, `{"a":{"b":1,"b":2}}`, `null`, `[1]`,
		`{"a":null}`, `{"a":1`, `{"a":1}{}`, `{"a":1,}`, "{\"\xff\":1,\"\xfe\":2}", `{"":1}`,
		"\u00a0{}", `{"a":[-1.5e3 , true],"b":false}`,
		`{"a":[ ],"b":[ [1,"]"] ,{"c":[","]}, null ]}`, `{"a":1,"b":`,
		large(few), large(few + 1), large(3 * few),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		all, twice, err := members(body)
		var want map[string]json.RawMessage
		if invalid := json.Unmarshal(body, &want); (invalid != nil || want == nil) != (err != nil) {
			t.Errorf("%q: %v, the decoder says %v", body, err, invalid)
		}
		if err != nil {
			want = byName(membersBefore(body))
		}
		if got := byName(all); len(got) != len(all) ||
			!maps.EqualFunc(got, want, func(a, b json.RawMessage) bool {
				return bytes.Equal(a, b)
			}) {
			t.Errorf("%q: %s; want %s", body, got, want)
		}
		for _, m := range all {
			value := m.value
			var want []json.RawMessage
			_ = json.Unmarshal(value, &want) // no list: it has no items
			if got := list(value); !slices.EqualFunc(got, want, func(a, b json.RawMessage) bool {
				return bytes.Equal(a, b)
			}) {
				t.Errorf("%q: the items %s; want %s", value, got, want)
			}
		}
		var names []string
		dec := json.NewDecoder(bytes.NewReader(body))
		for _, _ = dec.Token(); err == nil && dec.More(); {
			name, _ := dec.Token()
			names = append(names, name.(string))
			_ = dec.Decode(new(json.RawMessage))
		}
		if len(names) != len(all)+len(twice) && err == nil {
			t.Errorf("%q: twice %q of %q", body, twice, names)
		}
	})
}

// large is an object with this many members, and one of them again.
func large(n int) string {
	out := "{"
	for i := range n {
		out += fmt.Sprintf(`"m%d":%d,`, i, i)
	}
	return out + `"m1":"again"}`
}

func byName(all memberSet) map[string]json.RawMessage {
	named := map[string]json.RawMessage{}
	for _, m := range all {
		named[m.name] = m.value
	}
	return named
}

func BenchmarkMembers(b *testing.B) {
	profile := []byte(`{"user_id":"31c41c16-c281-44ae-9602-8a047e3bf33d",` +
		`"email":"test@example.com","first_name":"Ada",` +
		`"org_id_to_org_info":{"1189c444-8a2d-4c41-8b4b-ae43ce79a492":{"org_name":"Acme",` +
		`"user_role":"Owner","inherited_user_roles_plus_current_role":["Owner","Admin"]}},` +
		`"enabled":true,"created_at":1614618000}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := members(profile); err != nil {
			b.Fatal(err)
		}
	}
}
