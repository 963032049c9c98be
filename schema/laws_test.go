package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// The laws of the formats. Each is a fuzz target, so its seeds run with every test.

// Escaping is undone by unescaping, gives one token that NATS takes in a subject and in a KV key,
// and only one token stands for each user.
func FuzzUser(f *testing.F) {
	for _, seed := range []string{
		"u17", "31c41c16-c281-44ae-9602-8a047e3bf33d", "auth0|abc", "auth0=7Cabc",
		"jane@example.com", "=", "==", "=4", "=41", "=7c", "=7C", "=c3=a9", "=C3=A9",
		"zoë", "😀", "a b", "a.b", "a>b*", "a\x00b", "a\x7fb", "a\u0085b", "\xff", "a=\xff", "_-",
		"", strings.Repeat("=41", 86), strings.Repeat("é", 128), strings.Repeat("x", 257),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		token := EscapeUser(s)
		back, err := UnescapeUser(token)
		if valid := CheckUser(s) == nil; valid != (err == nil) || valid && back != s {
			t.Fatalf("%q gives %q gives %q %v", s, token, back, err)
		}
		if strings.ContainsFunc(token, func(r rune) bool {
			return r != '=' && (r > 0x7e || !plain(byte(r)))
		}) {
			t.Fatalf("%q gives %q, which is no token", s, token)
		}
		id, err := UnescapeUser(s)
		switch {
		case err == nil && (EscapeUser(id) != s || CheckUser(id) != nil):
			t.Fatalf("%q gives %q, whose token is %q", s, id, EscapeUser(id))
		case err != nil && !errors.Is(err, ErrSubject):
			t.Fatalf("%q: %v", s, err)
		}
	})
}

var prefixes = []string{"", "acme", "acme.eu-1_x", "user", "user.synced"}

func subjectsUnder(t testing.TB, prefix string) Subjects {
	t.Helper()
	s, err := NewSubjects(prefix)
	if err != nil || s.Prefix() != prefix {
		t.Fatal(prefix, s.Prefix(), err)
	}
	return s
}

// Of is undone by Parse under every prefix, and only what Of writes is parsed.
func FuzzSubjects(f *testing.F) {
	for _, typ := range append(Commands(), Outcomes()...) {
		f.Add(string(typ), "propelauth", "jane@example.com", "",
			"acme."+string(typ)+".propelauth.jane=40example=2Ecom")
		f.Add(string(typ), "propelauth", "jane@example.com", "shop",
			"acme.from.shop."+string(typ)+".propelauth.u")
	}
	f.Add("renewal.due", "PropelAuth", "", "", "user.synced.propelauth")
	f.Add("user.login", "a.b", "u", "from", "user.synced.propelauth.u.v")
	f.Add("user.login", "-", "u", "*", "provider.degraded.propelauth.u")
	f.Add("user.login", "p", "u", "a.b", "from.from.shop.user.login.p.u")
	f.Add("provider.degraded", "p", "\xff", "", "user.synced.propelauth.=ff")
	f.Add("user", "p", "u", "", "user.synced.user.synced.p.u")
	f.Add("user.login", "p", "u", "Shop", "from.shop")
	f.Add("operator.acted", "", "", "", "operator.acted.propelauth")
	f.Add("operator.acted", "", "", "", "operator.acted")
	f.Fuzz(func(t *testing.T, typ, provider, user, sender, subject string) {
		a := Address{Type: Type(typ), Provider: provider, User: user, Sender: sender}
		if a.Type.perProvider() {
			a.User = ""
		}
		if a.Type.overall() {
			a.Provider, a.User = "", ""
		}
		for _, prefix := range prefixes {
			s := subjectsUnder(t, prefix)
			if a.check() == nil {
				of := s.Of(a)
				if back, err := s.Parse(of); err != nil || back != a {
					t.Fatalf("%+v gives %q gives %+v %v", a, of, back, err)
				}
				if a.Sender == "" &&
					(!matches(s.Filter(a.Type, "", ""), of) ||
						s.Filter(a.Type, a.Provider, a.User) != of) {
					t.Fatalf("filters %q and %q do not match %q", s.Filter(a.Type, "", ""),
						s.Filter(a.Type, a.Provider, a.User), of)
				}
				if a.Type.IsCommand() {
					commandFilters(t, s, a, of)
				}
			}
			parsed, err := s.Parse(subject)
			switch {
			case err == nil && s.Of(parsed) != subject:
				t.Fatalf("%q gives %+v gives %q", subject, parsed, s.Of(parsed))
			case err != nil && (!errors.Is(err, ErrSubject) || len(err.Error()) > 300):
				t.Fatalf("%q: %v", subject, err)
			}
		}
	})
}

// commandFilters holds the filters of commands against one subject: one of a pair takes it, and the
// two never both.
func commandFilters(t *testing.T, s Subjects, a Address, subject string) {
	t.Helper()
	plain, from := s.Commands(a.Type, ""), s.Commands(a.Type, AnySender)
	user := s.CommandsOf(a.Type, a.Provider, a.User)
	sent := a.Sender != ""
	if matches(plain, subject) == sent || matches(from, subject) != sent ||
		!matches(s.Commands(a.Type, a.Sender), subject) {
		t.Fatalf("of %q and %q the wrong ones match %q", plain, from, subject)
	}
	if matches(user[0], subject) == sent || matches(user[1], subject) != sent {
		t.Fatalf("of %q the wrong ones match %q", user, subject)
	}
}

// matches is how NATS matches a subject against a filter.
func matches(filter, subject string) bool {
	want, have := strings.Split(filter, "."), strings.Split(subject, ".")
	for i, w := range want {
		if w == ">" {
			return len(have) > i
		}
		if i >= len(have) || have[i] == "" || w != "*" && w != have[i] {
			return false
		}
	}
	return len(want) == len(have)
}

// Percent-encoding is undone by one round of decoding and gives what a header may hold.
func FuzzPercent(f *testing.F) {
	for _, seed := range []string{
		"", "plain", "Euro € 😀", "Euro%20%E2%82%AC%20%F0%9F%98%80", "%", "%2", "%25", "%2541",
		"%C0%A0", `"`, `"a b"`, `"a\"`, `"\\"`, "a\r\nb", "\xff", "~!",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e := percentEncode(s)
		if strings.ContainsFunc(e, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' }) {
			t.Fatalf("%q gives %q", s, e)
		}
		d, err := percentDecode(e)
		if (err == nil) != utf8.ValidString(s) || err == nil && d != s {
			t.Fatalf("%q gives %q gives %q %v", s, e, d, err)
		}
		if d, err := percentDecode(s); err == nil && !utf8.ValidString(d) {
			t.Fatalf("%q gives %q", s, d)
		}
	})
}

// What is encoded decodes to the same event, whatever stands in it, as long as it is an event.
func FuzzEnvelope(f *testing.F) {
	f.Add("42", "/billing", "jane@example.com", int64(1762072201_250_000_000), `{"reason":"r"}`)
	f.Add("Euro € 😀", `"quoted"`, "auth0|x", int64(0), "")
	f.Add("%41", "a b", "100 %", int64(-1), "{ }")
	f.Add("\n", "", "\xff", int64(1)<<62, "[]")
	f.Fuzz(func(t *testing.T, id, source, user string, nanos int64, data string) {
		e := Event{
			ID:       id,
			Source:   source,
			Type:     UserRefreshDue,
			Provider: "propelauth",
			User:     user,
			Time:     time.Unix(0, nanos).UTC(),
			Data:     json.RawMessage(data),
		}
		if CheckUser(user) != nil {
			t.Skip()
		}
		h, body := Encode(e)
		for name, values := range h {
			if len(values) != 1 ||
				strings.ContainsFunc(values[0], func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Fatalf("header %s: %q", name, values)
			}
		}
		at := Arrival{Subject: Subjects{}.Of(e.Address()), Stream: "REQUESTS", Sequence: 1}
		got, err := Subjects{}.Decode(h, body, at)
		ok := id != "" && len(id) <= MaxID && source != "" && len(source) <= MaxID &&
			!hasControl(id+source) && utf8.ValidString(id) && utf8.ValidString(source)
		object := strings.TrimSpace(data) == "" ||
			json.Valid(e.Data) && utf8.ValidString(data) &&
				bytes.HasPrefix(bytes.TrimSpace(e.Data), []byte("{"))
		if (err == nil) != (ok && object) {
			t.Fatalf("%+v: %v", e, err)
		}
		if err != nil {
			return
		}
		e.DataSchema = DataSchema(e.Type)
		if e.Data = bytes.TrimSpace(e.Data); len(e.Data) == 0 {
			e.Data = json.RawMessage("{}")
		}
		if !reflect.DeepEqual(got, e) {
			t.Fatalf("got %+v\nwant %+v", got, e)
		}
	})
}

// Whatever arrives, Decode says what it is or why it is nothing, in few words; and what it took can
// be sent on and comes out the same.
func FuzzDecode(f *testing.F) {
	f.Add("user.refresh_due.propelauth.u17", "ce-id", "42", "Ce-Id", "43", []byte(`{"reason":"r"}`))
	f.Add("user.refresh_due.propelauth.u17", "Content-Type", "application/cloudevents+json", "", "",
		[]byte(`{"specversion":"1.0","id":"1","source":"/a","data":{"want":"tokens"}}`))
	f.Add("user.refresh_due.propelauth.u17", "content-type", "application/cloudevents", "ce-id",
		"1", []byte(`{"id":"1","id":"2"}`))
	f.Add("user.synced.propelauth.=7C", "ce-time", "9999-12-31T23:59:59-23:59", "ce-id", "%C0%A0",
		[]byte(`[]`))
	f.Add("provider.degraded.p", "ce-source", `"quoted \"x"`, "ce-subject", "u", []byte("\xff"))
	f.Add("", "", "", "", "", []byte(strings.Repeat("[", 1<<16)))
	f.Add("user.login.propelauth.u17", "CE-TYPE", "user.login", "ce-type", "user.login",
		bytes.Repeat([]byte(" "), 1<<20))
	f.Fuzz(func(t *testing.T, subject, name1, value1, name2, value2 string, body []byte) {
		h := Header{}
		h[name1] = append(h[name1], value1)
		h[name2] = append(h[name2], value2)
		at := Arrival{Subject: subject, Stream: "S", Sequence: 1, Time: time.Unix(1762072201, 0)}
		e, err := Subjects{}.Decode(h, body, at)
		if err != nil {
			bad, ok := errors.AsType[*Malformed](err)
			if !ok || bad.Field == "" || bad.Message == "" || len(err.Error()) > 400 ||
				hasControl(err.Error()) || !utf8.ValidString(err.Error()) {
				t.Fatalf("%q", err)
			}
			return
		}
		if e.ID == "" || hasControl(e.ID) || e.Source == "" || len(e.Data) == 0 ||
			e.Data[0] != '{' {
			t.Fatalf("%+v", e)
		}
		if _, err := json.Marshal(Cause{
			ID:     e.ID,
			Type:   e.Type,
			Source: e.Source,
			Time:   e.Time,
		}); err != nil {
			t.Fatal(err)
		}
		h, body = Encode(e)
		again, err := Subjects{}.Decode(h, body, at)
		if e.DataSchema == "" {
			e.DataSchema = DataSchema(e.Type)
		}
		if err != nil || !reflect.DeepEqual(again, e) {
			t.Fatalf("%+v\nagain %+v %v", e, again, err)
		}
		e.Type = UserRefreshDue
		_, err = Data[RefreshDue](e)
		if _, ok := errors.AsType[*Malformed](err); err != nil && !ok {
			t.Fatal(err)
		}
	})
}

func TestNewSubjects(t *testing.T) {
	for _, bad := range []string{
		".", "a.", ".a", "a..b", "a b", "a*", "a.>", "é", "ǿ", "a\n", "$JS",
		strings.Repeat("a", MaxPrefix+1),
	} {
		if _, err := NewSubjects(bad); !errors.Is(err, ErrSubject) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for prefix, want := range map[string]string{
		"":          "LOGINS",
		"acme":      "acme_LOGINS",
		"acme.eu-1": "acme_eu-1_LOGINS",
	} {
		if got := subjectsUnder(t, prefix).Name("LOGINS"); got != want {
			t.Errorf("%q: %q", prefix, got)
		}
	}
	_, err := subjectsUnder(t, "acme").Parse("user.login.propelauth.u")
	if !errors.Is(err, ErrSubject) {
		t.Errorf("without its prefix: %v", err)
	}
}

func TestFilter(t *testing.T) {
	s := subjectsUnder(t, "acme")
	for _, c := range []struct {
		typ            Type
		provider, user string
		want           string
	}{
		{UserReauthRequired, "", "", "acme.user.reauth_required.*.*"},
		{UserReauthRequired, "propelauth", "", "acme.user.reauth_required.propelauth.*"},
		{UserReauthRequired, "", "a.b", "acme.user.reauth_required.*.a=2Eb"},
		{UserReauthRequired, "propelauth", "a.b", "acme.user.reauth_required.propelauth.a=2Eb"},
		{ProviderDegraded, "", "u", "acme.provider.degraded.*"},
		{ProviderDegraded, "propelauth", "", "acme.provider.degraded.propelauth"},
		{OperatorActed, "", "", "acme.operator.acted"},
		{OperatorActed, "propelauth", "u", "acme.operator.acted"},
		{MessageRejected, "", "", "acme.message.rejected.>"},
		{MessageRejected, "propelauth", "", "acme.message.rejected.propelauth.*"},
	} {
		if got := s.Filter(c.typ, c.provider, c.user); got != c.want {
			t.Errorf("%v: %q", c, got)
		}
	}
}

func TestOfPanics(t *testing.T) {
	for _, a := range []Address{
		{},
		{Type: UserLogin},
		{Type: UserLogin, Provider: "P", User: "u"},
		{Type: UserLogin, Provider: "p", User: "\n"},
		{Type: "user.x", Provider: "p", User: "u"},
		{Type: ProviderDegraded},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%+v is no address", a)
				}
			}()
			Subjects{}.Of(a)
		}()
	}
}

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{
		"":                                    `""`,
		"short":                               `"short"`,
		"a\x1b[2J":                            `"a\x1b[2J"`,
		strings.Repeat("a", 24):               `"` + strings.Repeat("a", 24) + `"`,
		strings.Repeat("a", 25):               `"` + strings.Repeat("a", 24) + `"…`,
		strings.Repeat("a", 23) + "é":         `"` + strings.Repeat("a", 23) + `"…`,
		"abcdefgh\u202e" + "abcdefghijklmnop": `"abcdefgh\u202eabcdefghijklm"…`,
	} {
		if got := quote(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
