package hook

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/renewd/renewd/internal/secret"
)

// Whatever a signed body says, it asks for an action that there is, of users who can be, and a
// refusal quotes nothing of it.
func FuzzBodies(f *testing.F) {
	for _, seed := range []string{
		updated, `{"event_type":"user.removed_from_org","removed_user_id":"jane"}`, `{}`, `[]`, ``,
		`{"event_type":"user.deleted","user_id":1e999}`, `{"type":"left","data":{"user_id":17}}`,
		`{"type":"x","data":[{"user_id":"jane"}],"timestamp":"9999-12-31T23:59:59Z"}`, "null null",
		`{"event_type":{"a":[[[[[[[[]]]]]]]]}}`, `{"type":"left","type":"stays"}`, "\xff{}",
	} {
		f.Add([]byte(seed))
	}
	c := Config{
		Kind: Webhooks, Actions: map[string]string{"left": "sign_out", "*": "sync"},
		Secrets: []secret.Value{secret.New(newSecret)}, Forget: true,
	}.withDefaults()
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, read := range []func([]byte) (message, error){c.mapped, c.propelAuth} {
			m, err := read(body)
			if _, ok := errors.AsType[*refusal](err); err != nil && !ok {
				t.Errorf("%v", err)
			}
			if err == nil && !slices.Contains(Actions(), m.do) {
				t.Errorf("%q", m.do)
			}
			if err == nil && m.do != Ignore && (len(m.users) != 1 || m.users[0] == "") {
				t.Errorf("%s of %q", m.do, m.users)
			}
		}
	})
}

// Whatever the payload of an issuer's token says, few users are looked up for it.
func FuzzSubjects(f *testing.F) {
	for _, seed := range []string{
		`{"format":"iss_sub","iss":"https://id.example","sub":"jane"}`, `{"user":{"user":{}}}`,
		`{"format":"aliases","identifiers":[{"format":"aliases","identifiers":[{}]}]}`, `7`,
		`{"subject_type":"iss-sub","iss":"https://id.example/","sub":"jane"}`, `{"sub":[]}`, ``,
	} {
		f.Add([]byte(seed))
	}
	s := set{&issuer{Config: Config{Issuer: "https://id.example"}}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if ids := s.identifiers(raw, 2); len(ids) > mostAliases || slices.Contains(ids, "") {
			t.Errorf("%q", ids)
		}
		var c claims
		_ = json.Unmarshal(raw, &c) // never panics, whatever an issuer signs
		s.subjects(c, raw)
	})
}
