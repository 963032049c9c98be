package idp

import "testing"

func FuzzParseTokens(f *testing.F) {
	for _, seed := range []string{
		`{"access_token":"a","refresh_token":"r","expires_in":1800}`, `{"access_token":{"access_token":"a","expires_at_seconds":1}}`, `{"ok":false,"error":"x"}`,
		`{"error":{"code":"x"}}`, `[]`, `null`, `{"expires_in":1e400}`, `{"access_token":"h.e30.s"}`, "",
	} {
		f.Add([]byte(seed), "application/json")
	}
	f.Add([]byte("access_token=a&expires_in=5&error=%zz"), "application/x-www-form-urlencoded")
	f.Fuzz(func(t *testing.T, body []byte, contentType string) {
		tokens, errorCode := parseTokens(body, contentType)
		if tokens.ExpiresIn < 0 {
			t.Errorf("lifetime %v", tokens.ExpiresIn)
		}
		for _, r := range code(errorCode) {
			if r < 0x21 || r > 0x7e {
				t.Errorf("code %q would reach a log", code(errorCode))
			}
		}
	})
}

func FuzzParseProfile(f *testing.F) {
	for _, seed := range []string{
		`{"user_id":"u","org_id_to_org_info":{"o":{"user_role":"r"}}}`, `{"sub":"u","email":7}`, `{"org_id_to_org_info":[1]}`, `[]`, `{}`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		p, ids, err := parseProfile(body)
		if err == nil && (len(p.Raw) == 0 || len(ids) > 2) {
			t.Errorf("%+v %v", p, ids)
		}
	})
}
