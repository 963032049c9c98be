package hook

import (
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/renewd/renewd/internal/secret"
)

var (
	form = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	jwt  = http.Header{"Content-Type": {"application/secevent+jwt"}}
)

func logoutForm(token string) string { return url.Values{"logout_token": {token}}.Encode() }

// logoutClaims are those of a good logout token, changed: a nil value takes a claim away.
func (w *world) logoutClaims(change map[string]any) map[string]any {
	now := w.clock()
	c := map[string]any{
		"iss": w.issuer.URL, "aud": "renewd-client", "jti": "j1", "iat": now.Unix(),
		"exp": now.Add(2 * time.Minute).Unix(), "sub": "jane",
		"events": map[string]any{eventLogout: map[string]any{}},
	}
	return changed(c, change)
}

func changed(c, change map[string]any) map[string]any {
	maps.Copy(c, change)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

type claimed = map[string]any

// A logout token is held against section 2.6 of Back-Channel Logout 1.0, as go-oidc holds it.
func TestLogoutTokens(t *testing.T) {
	w := newWorld(t, Config{Name: "out", Kind: Logout})
	provider, err := oidc.NewProvider(t.Context(), w.issuer.URL)
	w.must(err)
	reference := provider.Verifier(&oidc.Config{ClientID: "renewd-client", Now: w.clock})
	now := w.now.Unix()
	events := func(of string, v any) claimed { return claimed{"events": claimed{of: v}} }
	for name, tt := range map[string]struct {
		typ    string
		change claimed
		want   Result
		unlike bool // the reference takes what is refused here, or the other way round
	}{
		"good":       {"logout+jwt", nil, Accepted, false},
		"with a sid": {"logout+jwt", claimed{"jti": "j2", "sid": "s"}, Accepted, false},
		"of several": {
			"", claimed{"jti": "j3", "aud": []string{"a", "renewd-client"}}, Accepted, false,
		},
		"typed as a JWT":   {"JWT", claimed{"jti": "j4"}, Accepted, false},
		"typed as another": {"at+jwt", nil, Malformed, true},
		"another issuer":   {"", claimed{"iss": "https://id.example"}, Foreign, false},
		"no issuer":        {"", claimed{"iss": nil}, Foreign, false},
		"another audience": {"", claimed{"aud": "crm"}, Foreign, false},
		"no audience":      {"", claimed{"aud": nil}, Foreign, false},
		"no iat":           {"", claimed{"iat": nil}, Malformed, true},
		"an iat of text":   {"", claimed{"iat": "now"}, Malformed, false},
		"of tomorrow":      {"", claimed{"iat": now + 86400, "exp": now + 2*86400}, Stale, true},
		"of two days ago":  {"", claimed{"iat": now - 2*86400, "exp": now + 86400}, Stale, true},
		"expired":          {"", claimed{"exp": now - 300}, Stale, false},
		"expired a moment": {"", claimed{"exp": now - 30, "jti": "j5"}, Accepted, true},
		"no exp":           {"", claimed{"exp": nil}, Malformed, false},
		"no jti":           {"", claimed{"jti": nil}, Malformed, false},
		"no events":        {"", claimed{"events": nil}, Malformed, false},
		"another event": {
			"", events("https://schemas.example/login", claimed{}), Malformed, false,
		},
		"an event of text":    {"", events(eventLogout, "yes"), Malformed, true},
		"an event of nothing": {"", events(eventLogout, nil), Malformed, true},
		"a nonce":             {"", claimed{"nonce": "n"}, Malformed, false},
		"an empty nonce":      {"", claimed{"nonce": ""}, Malformed, false},
		"no sub and no sid":   {"", claimed{"sub": nil}, Malformed, false},
		"a sid alone":         {"", claimed{"sub": nil, "sid": "s"}, Malformed, true},
		"a user of another":   {"", claimed{"sub": "somebody"}, UnknownUser, false},
	} {
		t.Run(name, func(t *testing.T) {
			token := w.issuer.token(t, w.issuer.key, "k1", tt.typ, w.logoutClaims(tt.change))
			a := w.take("out", form, logoutForm(token))
			status := http.StatusOK
			if tt.want.Refused() {
				status = http.StatusBadRequest
			}
			if a.Result != tt.want || a.Status != status || a.Again ||
				tt.want.Refused() != (a.Body["error"] == "invalid_request") {
				t.Errorf("%+v, want %s and %d", a, tt.want, status)
			}
			_, err := reference.VerifyLogout(t.Context(), token)
			if (err == nil) == tt.want.Refused() != tt.unlike {
				t.Errorf("%s, and go-oidc says %v", a.Result, err)
			}
		})
	}
	all := w.commands()
	if len(all) != 5 || string(all[0].Type)+string(all[0].Data) !=
		`user.refresh_due{"reason":"backchannel-logout logout","want":"tokens"}` {
		t.Errorf("%v", w.did())
	}
}

// What is not signed by the issuer, or is no form, does nothing.
func TestForgedLogoutTokens(t *testing.T) {
	w := newWorld(t, Config{Name: "out", Kind: Logout})
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	w.must(err)
	good := w.issuer.token(t, w.issuer.key, "k1", "logout+jwt", w.logoutClaims(nil))
	head, rest, _ := strings.Cut(good, ".")
	payload, signature, _ := strings.Cut(rest, ".")
	if a := w.take("out", form, logoutForm(good)); a.Result != Accepted {
		t.Fatalf("%+v", a)
	}
	w.pass(time.Minute)
	const none = "eyJhbGciOiJub25lIn0" // {"alg":"none"}
	const hs256 = "eyJhbGciOiJIUzI1NiJ9"
	for name, tt := range map[string]struct {
		header http.Header
		body   string
		want   Result
	}{
		"by another key": {
			form, logoutForm(w.issuer.token(t, other, "k1", "", w.logoutClaims(nil))), Forged,
		},
		"with no algorithm": {form, logoutForm(none + "." + payload + "."), Malformed},
		"with a shared key": {
			form, logoutForm(hs256 + "." + payload + "." + signature), Malformed,
		},
		"another payload": {
			form, logoutForm(head + "." + payload[:len(payload)-4] + "AAAA." + signature), Forged,
		},
		"no signature":        {form, logoutForm(head + "." + payload + "."), Forged},
		"no token":            {form, "logout_token=", Malformed},
		"no form":             {jwt, good, Malformed},
		"a form that is none": {form, "logout_token=%zz", Malformed},
		"nothing":             {http.Header{}, "", Malformed},
	} {
		w.pass(time.Minute)
		if a := w.take("out", tt.header, tt.body); a.Result != tt.want || a.Status != 400 {
			t.Errorf("%s: %+v, want %s", name, a, tt.want)
		}
	}
	if n := len(w.commands()); n != 1 {
		t.Errorf("%d commands", n)
	}
}

// Forgers cannot have the issuer called as often as they post. A key that the issuer has since then
// is taken once it may be asked for.
func TestForgersDoNotHaveTheIssuerCalled(t *testing.T) {
	w := newWorld(t, Config{Name: "out", Kind: Logout})
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	w.must(err)
	take := func(key *rsa.PrivateKey, kid, id string) Answer {
		token := w.issuer.token(t, key, kid, "", w.logoutClaims(claimed{"jti": id}))
		return w.take("out", form, logoutForm(token))
	}
	for i := range 50 {
		if a := take(other, fmt.Sprint("x", i), "x"); a.Result != Forged {
			t.Fatalf("%+v", a)
		}
	}
	if w.issuer.calls != 1 {
		t.Errorf("the issuer was called %d times", w.issuer.calls)
	}
	w.issuer.set(func() { w.issuer.key, w.issuer.id = other, "k2" })
	if a := take(other, "k2", "1"); a.Result != Forged || !a.Again {
		t.Errorf("%+v", a)
	}
	w.pass(time.Minute)
	var a Answer
	for range 100 { // go-oidc may give a caller that comes at once the failure of the fetch before
		if a = take(other, "k2", "1"); a.Result != Forged {
			break
		}
	}
	if a.Result != Accepted {
		t.Errorf("%+v", a)
	}
}

// While the issuer is down a message is not refused: its sender is told to send it again.
func TestWhileTheIssuerIsDown(t *testing.T) {
	w := newWorld(t, Config{Name: "out", Kind: Logout})
	w.issuer.set(func() { w.issuer.down = true })
	token := logoutForm(w.issuer.token(t, w.issuer.key, "k1", "", w.logoutClaims(nil)))
	for range 2 {
		if a := w.take("out", form, token); a.Result != Failed || !a.Again {
			t.Errorf("%+v", a)
		}
	}
	w.issuer.set(func() { w.issuer.down = false })
	w.pass(30 * time.Second)
	if a := w.take("out", form, token); a.Result != Accepted {
		t.Errorf("%+v", a)
	}
}

// A logout signs out where the settings say so, but no newer login: then the provider is asked.
func TestLogoutThatSignsOut(t *testing.T) {
	w := newWorld(t, Config{Name: "out", Kind: Logout, SignOut: true})
	for _, user := range []string{"jane", "kim"} {
		if user == "kim" {
			w.user("kim", w.now.Add(2*time.Minute))
		}
		token := w.issuer.token(t, w.issuer.key, "k1", "",
			w.logoutClaims(claimed{"sub": user, "jti": user}))
		for _, want := range []Result{Accepted, Replayed} {
			if a := w.take("out", form, logoutForm(token)); a.Result != want || a.Status != 200 {
				t.Errorf("%+v", a)
			}
		}
	}
	w.wants(
		`user.refresh_due kim kim /sources/out http `+
			`{"reason":"backchannel-logout logout","want":"tokens"}`,
		`user.logout jane jane /sources/out http {"reason":"backchannel-logout logout"}`,
	)
}

// setClaims are those of a good SET, changed.
func (w *world) setClaims(event string, change map[string]any) map[string]any {
	return changed(map[string]any{
		"iss": w.issuer.URL, "aud": []string{"renewd-client"}, "jti": "s" + event,
		"iat": w.clock().Unix(), "events": claimed{event: claimed{}},
		"sub_id": claimed{"format": "iss_sub", "iss": w.issuer.URL + "/", "sub": "jane"},
	}, change)
}

// What each type of event asks for, without and with the settings' word.
func TestSETs(t *testing.T) {
	w := newWorld(t, Config{Name: "asks", Kind: SET},
		Config{Name: "acts", Kind: SET, SignOut: true, Forget: true})
	const ask = `{"reason":"set %s","want":"tokens"}`
	for event, tt := range map[string][2]string{ // the commands' types
		caep + "session-revoked": {
			"user.refresh_due", "user.logout",
		},
		caep + "token-claims-change": {
			"user.refresh_due", "user.refresh_due",
		},
		caep + "credential-change": {
			"user.refresh_due", "user.refresh_due",
		},
		risc + "account-disabled": {
			"user.refresh_due", "user.logout",
		},
		risc + "sessions-revoked": {
			"user.refresh_due", "user.logout",
		},
		risc + "account-purged": {"user.refresh_due", ""},
		risc + "account-credential-change-required": {
			"user.refresh_due", "user.refresh_due",
		},
		caep + "device-compliance-change":                                 {"", ""},
		"https://schemas.openid.net/secevent/ssf/event-type/verification": {"", ""},
	} {
		for i, source := range []string{"asks", "acts"} {
			before := len(w.commands())
			token := w.issuer.token(t, w.issuer.key, "k1", "secevent+jwt", w.setClaims(event, nil))
			a := w.take(source, jwt, token)
			all := w.commands()
			short := event[strings.LastIndexByte(event, '/')+1:]
			asked := "user.refresh_due jane s" + event + " /sources/" + source + " http " +
				fmt.Sprintf(ask, short)
			switch {
			case a.Result.Refused() || a.Status != 0 || a.Again:
				t.Errorf("%s: %+v", event, a)
			case tt[i] == "" && len(all) != before:
				t.Errorf("%s: %v", event, w.did())
			case tt[i] == "user.refresh_due" && !slices.Contains(w.did(), asked):
				t.Errorf("%s: %v", event, w.did())
			case tt[i] == "user.logout" && len(all) == 0:
				t.Errorf("%s: no command", event)
			}
		}
	}
	owed, err := LookOwed(t.Context(), w.js, w.door.Subjects, "acts")
	if err != nil || len(owed) != 1 {
		t.Errorf("%v %v", owed, err)
	}
}

// How a SET may name its user, and that another issuer's user is no user of the provider's.
func TestSubjectsOfSETs(t *testing.T) {
	w := newWorld(t, Config{Name: "set", Kind: SET})
	w.user("jane@example.com", w.now.Add(-time.Hour))
	iss := w.issuer.URL
	alias := claimed{"format": "email", "email": "a@b"}
	revoked := func(of any) claimed {
		return claimed{caep + "session-revoked": claimed{"subject": of}}
	}
	foreign := claimed{"format": "iss_sub", "iss": "https://id.example", "sub": "jane"}
	jane := claimed{"format": "iss_sub", "iss": iss, "sub": "jane"}
	old := claimed{"subject_type": "iss-sub", "iss": iss, "sub": "jane"}
	for name, tt := range map[string]struct {
		change claimed
		want   Result
	}{
		"iss_sub": {claimed{"sub_id": jane}, Accepted},
		"opaque":  {claimed{"sub_id": claimed{"format": "opaque", "id": "kim"}}, Accepted},
		"email": {
			claimed{"sub_id": claimed{"format": "email", "email": "jane@example.com"}}, Accepted,
		},
		"complex": {
			claimed{"sub_id": claimed{"format": "complex", "user": jane}}, Accepted,
		},
		"aliases": {
			claimed{"sub_id": claimed{"format": "aliases", "identifiers": []any{alias, jane}}},
			Accepted,
		},
		"the drafts'": {
			claimed{"sub_id": nil, "events": revoked(old)},
			Accepted,
		},
		"of nobody": {
			claimed{"sub_id": claimed{"format": "opaque", "id": "who"}}, UnknownUser,
		},
		"another issuer": {
			claimed{"sub_id": foreign},
			Malformed,
		},
		"no subject":      {claimed{"sub_id": nil}, Malformed},
		"nested too deep": {claimed{"sub_id": claimed{"user": claimed{"user": jane}}}, Malformed},
		"a list":          {claimed{"sub_id": []any{jane}}, Malformed},
		"a phone": {
			claimed{"sub_id": claimed{"format": "phone_number", "phone_number": "+1"}}, Malformed,
		},
	} {
		claims := w.setClaims(caep+"session-revoked", tt.change)
		claims["jti"] = name
		token := w.issuer.token(t, w.issuer.key, "k1", "secevent+jwt", claims)
		if a := w.take("set", jwt, token); a.Result != tt.want {
			t.Errorf("%s: %+v, want %s", name, a, tt.want)
		}
	}
}

// A refusal says why as section 2.4 of RFC 8935 has it.
func TestRefusedSETs(t *testing.T) {
	w := newWorld(t, Config{Name: "set", Kind: SET, Secrets: []secret.Value{
		secret.New("a-transmitter's-secret"), secret.New("the-secret-after-it"),
	}})
	event := caep + "session-revoked"
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	w.must(err)
	token := func(typ string, change claimed) string {
		return w.issuer.token(t, w.issuer.key, "k1", typ, w.setClaims(event, change))
	}
	shown := http.Header{
		"Content-Type": jwt["Content-Type"], "Authorization": {"Bearer the-secret-after-it"},
	}
	unknown := http.Header{
		"Content-Type": jwt["Content-Type"], "Authorization": {"Bearer the-secret"},
	}
	old := w.now.Add(-25 * time.Hour).Unix()
	for name, tt := range map[string]struct {
		header http.Header
		body   string
		want   Result
		err    string
	}{
		"good":      {shown, token("secevent+jwt", nil), Accepted, ""},
		"no secret": {jwt, token("secevent+jwt", nil), Forged, "authentication_failed"},
		"another secret": {
			unknown, token("secevent+jwt", nil), Forged, "authentication_failed",
		},
		"another key": {
			shown, w.issuer.token(t, other, "k1", "secevent+jwt", w.setClaims(event, nil)), Forged,
			"invalid_key",
		},
		"another issuer": {
			shown, token("secevent+jwt", claimed{"iss": "https://a.example"}), Foreign,
			"invalid_issuer",
		},
		"another audience": {
			shown, token("secevent+jwt", claimed{"aud": "crm"}), Foreign, "invalid_audience",
		},
		"an ID token's type": {shown, token("JWT", nil), Malformed, "invalid_request"},
		"no type":            {shown, token("", nil), Malformed, "invalid_request"},
		"older than a day": {
			shown, token("secevent+jwt", claimed{"iat": old}), Stale, "invalid_request",
		},
		"no events": {
			shown, token("secevent+jwt", claimed{"events": claimed{}}), Malformed,
			"invalid_request",
		},
		"in a far year": {
			shown, token("secevent+jwt", claimed{"iat": 1e300}), Malformed, "invalid_request",
		},
		"no token":          {shown, "", Malformed, "invalid_request"},
		"JSON in its place": {shown, "{}", Malformed, "invalid_request"},
		"two signatures": {
			shown, `{"payload":"e30","signatures":[]}`, Malformed, "invalid_request",
		},
		"a longer type": {
			shown, token("application/secevent+jwt", claimed{"jti": "2"}), Accepted, "",
		},
		"events of no object": {
			shown, token("secevent+jwt", claimed{"events": []string{event}}), Malformed,
			"invalid_request",
		},
	} {
		w.pass(20 * time.Second)
		a := w.take("set", tt.header, tt.body)
		if a.Result != tt.want || a.Body["err"] != tt.err || tt.err != "" && a.Status != 400 {
			t.Errorf("%s: %+v, want %s and %q", name, a, tt.want, tt.err)
		}
	}
}
