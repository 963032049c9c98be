package hook

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/senders"
)

func propel() Config {
	return Config{
		Name: "propel", Kind: PropelAuth,
		Secrets: []secret.Value{secret.New(newSecret), secret.New(oldSecret)},
	}
}

const updated = `{"event_type":"user.updated","user_id":"jane"}`

// Each webhook is believed, or not, as the reference library believes it.
func TestAsTheReferenceLibraryVerifies(t *testing.T) {
	reference, err := standardwebhooks.NewWebhook(newSecret)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	good := func() http.Header { return sign(t, newSecret, "webhook-", "msg_1", at, updated) }
	with := func(name, value string) http.Header {
		h := good()
		h.Set(name, value)
		return h
	}
	signature := good().Get("webhook-signature")
	for name, tt := range map[string]struct {
		header http.Header
		body   string
		want   Result
	}{
		"good":         {good(), updated, Accepted},
		"another body": {good(), updated + " ", Forged},
		"no body":      {good(), "", Forged},
		"another id":   {with("webhook-id", "msg_2"), updated, Forged},
		"another time": {
			with("webhook-timestamp", fmt.Sprint(at.Unix()+1)), updated, Forged,
		},
		"no time":            {with("webhook-timestamp", "soon"), updated, Malformed},
		"no id":              {with("webhook-id", ""), updated, Malformed},
		"no signature":       {with("webhook-signature", ""), updated, Malformed},
		"nonsense as one":    {with("webhook-signature", "v1"), updated, Forged},
		"an empty one":       {with("webhook-signature", "v1,"), updated, Forged},
		"of another version": {with("webhook-signature", "v1a"+signature[2:]), updated, Forged},
		"the second of two": {
			with("webhook-signature", "v1,AAAA "+signature), updated, Accepted,
		},
		"half of one": {with("webhook-signature", signature[:20]), updated, Forged},
		"of a foreign secret": {
			sign(t, "whsec_"+strings.Repeat("Zm9v", 8), "webhook-", "m", at, updated), updated,
			Forged,
		},
		"six minutes ago": {
			sign(t, newSecret, "webhook-", "m", at.Add(-6*time.Minute), updated), updated, Stale,
		},
		"six minutes ahead": {
			sign(t, newSecret, "webhook-", "m", at.Add(6*time.Minute), updated), updated, Stale,
		},
		"four minutes ago": {
			sign(t, newSecret, "webhook-", "m4", at.Add(-4*time.Minute), updated), updated,
			Accepted,
		},
		"in the year 300 bn": {
			sign(t, newSecret, "webhook-", "m", time.Unix(1<<62, 0), updated), updated, Stale,
		},
		"long before any time": {
			sign(t, newSecret, "webhook-", "m", time.Unix(-1<<62, 0), updated), updated, Stale,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := newStandard([]secret.Value{secret.New(newSecret)}, propel().propelAuth)
			if err != nil {
				t.Fatal(err)
			}
			got := Accepted
			post := Post{Header: tt.header.Get, Body: []byte(tt.body)}
			_, err = s.read(t.Context(), post, at)
			if why, ok := errors.AsType[*refusal](err); ok {
				got = why.result
			}
			theirs := reference.Verify([]byte(tt.body), tt.header)
			if got != tt.want || (theirs == nil) != (tt.want == Accepted) {
				t.Errorf("%s, and the reference library says %v; want %s", got, theirs, tt.want)
			}
		})
	}
}

// While a secret is changed both are good, and both ways to name the headers are.
func TestBothSecretsAndBothNames(t *testing.T) {
	w := newWorld(t, propel())
	for i, with := range []string{oldSecret, newSecret} {
		for _, front := range []string{"webhook-", "svix-"} {
			id := fmt.Sprintf("%s%d", front, i)
			a := w.take("propel", sign(t, with, front, id, w.now, updated), updated)
			if a.Result != Accepted {
				t.Errorf("%s: %+v", id, a)
			}
		}
	}
}

// What each of PropelAuth's types asks for.
func TestPropelAuth(t *testing.T) {
	w := newWorld(t, propel())
	const from = " /sources/propel http "
	profile := func(of string) string { return `{"reason":"propelauth user.` + of + `"}` }
	tokens := func(of string) string {
		return `{"reason":"propelauth user.` + of + `","want":"tokens"}`
	}
	var want []string
	for i, tt := range []struct {
		body   string
		result Result
		data   string // of the command
	}{
		{`{"event_type":"user.updated","user_id":"jane"}`, Accepted, profile("updated")},
		{`{"event_type":"user.enabled","user_id":"jane"}`, Accepted, profile("enabled")},
		{`{"event_type":"user.added_to_org","user_id":"jane","org_id":"o","role":"Admin"}`,
			Accepted, profile("added_to_org")},
		{`{"event_type":"user.removed_from_org","removed_user_id":"jane","org_id":"o"}`,
			Accepted, profile("removed_from_org")},
		{`{"event_type":"user.role_changed_within_org","user_id":"jane","org_id":"o"}`,
			Accepted, profile("role_changed_within_org")},
		{`{"event_type":"user.disabled","user_id":"jane"}`, Accepted, tokens("disabled")},
		{`{"event_type":"user.locked","user_id":"jane"}`, Accepted, tokens("locked")},
		{`{"event_type":"user.deleted","user_id":"jane"}`, Accepted, tokens("deleted")},
		{`{"event_type":"user.updated","user_id":"somebody"}`, UnknownUser, ""},
		{
			`{"event_type":"user.updated","user_id":"` + strings.Repeat("u", 300) + `"}`,
			UnknownUser, "",
		},
		{`{"event_type":"user.login","user_id":"jane"}`, Ignored, ""},
		{
			`{"event_type":"user.send_mfa_phone_code","user_id":"jane","phone_number":"1"}`,
			Ignored, "",
		},
		{`{"event_type":"org.updated","org_id":"o"}`, Ignored, ""},
		{`{"event_type":"what.is.new"}`, Ignored, ""},
		{`{"event_type":"user.updated"}`, Malformed, ""},
		{`{"event_type":"user.updated","user_id":{"id":"jane"}}`, Malformed, ""},
		{`{"type":"user.updated","user_id":"jane"}`, Malformed, ""},
		{`{"event_type":7}{}`, Malformed, ""},
		{`[]`, Malformed, ""},
		{``, Malformed, ""},
	} {
		id := fmt.Sprintf("msg_%02d", i)
		if a := w.webhook("propel", id, tt.body); a.Result != tt.result || a.Again {
			t.Errorf("%s: %+v, want %s", tt.body, a, tt.result)
		}
		if tt.result == Accepted {
			want = append(want, "user.refresh_due jane "+id+from+tt.data)
		}
	}
	w.wants(want...)
}

// A message that comes again, at once or hours later, is no second command.
func TestAMessageIsTakenOnce(t *testing.T) {
	w := newWorld(t, propel())
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			body := []byte(updated)
			h := sign(t, newSecret, "svix-", "msg_1", w.clock(), updated)
			a, _ := w.door.Take(t.Context(), "propel", Post{Header: h.Get, Body: body})
			if a.Result != Accepted && a.Result != Replayed {
				t.Errorf("%+v", a)
			}
		})
	}
	both.Wait()
	w.pass(10 * time.Hour)
	if a := w.webhook("propel", "msg_1", updated); a.Result != Replayed || a.Again {
		t.Errorf("%+v", a)
	}
	if n := len(w.commands()); n != 1 {
		t.Errorf("%d commands", n)
	}
	// An id that a command cannot have is replaced by a digest.
	long := strings.Repeat("i", 300)
	if a := w.webhook("propel", long, updated); a.Result != Accepted {
		t.Errorf("%+v", a)
	}
	if all := w.commands(); len(all) != 2 || !strings.HasPrefix(all[1].ID, "id_") {
		t.Errorf("%v", w.did())
	}
}

// A store or a stream that is down loses no message: its sender is told to send it again.
func TestWhileTheStoreIsDown(t *testing.T) {
	w := newWorld(t, propel())
	w.broken = errors.New("connection refused")
	if a := w.webhook("propel", "msg_1", updated); a.Result != Failed || !a.Again {
		t.Errorf("%+v", a)
	}
	w.broken = nil
	if a := w.webhook("propel", "msg_1", updated); a.Result != Accepted {
		t.Errorf("%+v", a)
	}
	if w.log.Has("jane") || !w.log.Has("connection refused") {
		t.Error("the log names the user, or not the fault")
	}
}

// A generic webhook is read by the settings' pointers, and asks for what its type is mapped to.
func TestMappedWebhooks(t *testing.T) {
	c := Config{
		Name: "crm", Kind: Webhooks, Secrets: []secret.Value{secret.New(newSecret)},
		Type: "/event/name", User: "/event/people/0/id",
		Actions: map[string]string{
			"renamed": "sync", "moved": "ask", "left": "sign_out", "noise": "ignore", "*": "sync",
		},
	}
	w := newWorld(t, c)
	body := func(of, user, more string) string {
		return `{"event":{"name":"` + of + `","people":[{"id":` + user + `}]}` + more + `}`
	}
	w.user("17", w.now.Add(-time.Hour))
	for i, tt := range []struct {
		body string
		want Result
	}{
		{body("renamed", `"jane"`, ""), Accepted},
		{body("moved", `17`, ""), Accepted},
		{body("left", `"jane"`, `,"timestamp":"`+w.now.Format(time.RFC3339)+`"`), Accepted},
		// before her login
		{
			body("left", `"kim"`, `,"timestamp":"2020-01-01T00:00:00Z"`), Accepted,
		},
		{body("noise", `"jane"`, ""), Ignored},
		// sent again, or not: it does not tell
		{body("left", `17`, ""), Accepted},
		{body("secret-word", `"jane"`, ""), Accepted},
		{body("renamed", `null`, ""), Malformed},
		{`{"event":{"name":"renamed","people":{}}}`, Malformed},
		{`{"event":[]}`, Malformed},
	} {
		if a := w.webhook("crm", fmt.Sprint(i), tt.body); a.Result != tt.want {
			t.Errorf("%s: %+v, want %s", tt.body, a, tt.want)
		}
	}
	const from = " /sources/crm http "
	w.wants(
		`user.refresh_due jane 0`+from+`{"reason":"standard-webhooks renamed"}`,
		`user.refresh_due 17 1`+from+`{"reason":"standard-webhooks moved","want":"tokens"}`,
		`user.refresh_due kim 3`+from+`{"reason":"standard-webhooks left","want":"tokens"}`,
		`user.refresh_due 17 5`+from+`{"reason":"standard-webhooks left","want":"tokens"}`,
		`user.refresh_due jane 6`+from+`{"reason":"standard-webhooks *"}`,
		`user.logout jane 2`+from+`{"reason":"standard-webhooks left"}`,
	)
}

// A user who was deleted there is erased here where the settings say so: once, also where it fails
// at first, without keeping others back, and never for a message that is older than a new login.
func TestOwedErasures(t *testing.T) {
	c := propel()
	c.Forget = true
	w := newWorld(t, c)
	w.user("late", w.now.Add(time.Hour)) // signed in again after the message
	w.erase = func(k grant.Key) error {
		switch k.User {
		case "kim":
			return errors.New("the provider is down")
		case "gone":
			return fmt.Errorf("%w: nothing is known", grant.ErrNotFound)
		}
		return nil
	}
	w.user("gone", w.now.Add(-time.Hour))
	deleted := func(user string) string {
		return `{"event_type":"user.deleted","user_id":"` + user + `"}`
	}
	for _, user := range []string{"jane", "kim", "gone"} {
		if a := w.webhook("propel", "d-"+user, deleted(user)); a.Result != Accepted {
			t.Errorf("%s: %+v", user, a)
		}
	}
	if a := w.webhook("propel", "d-late", deleted("late")); a.Result != Accepted {
		t.Errorf("late: %+v", a)
	}
	w.wants(`user.refresh_due late d-late /sources/propel http ` +
		`{"reason":"propelauth user.deleted","want":"tokens"}`)
	s := w.door.sources["propel"]
	owed := func() (users []string) {
		all, err := LookOwed(t.Context(), w.js, w.door.Subjects, "propel")
		w.must(err)
		for _, o := range all {
			users = append(users, o.User)
		}
		return users
	}
	w.pass(time.Minute) // kim signs in and is deleted once more: the second time counts
	if a := w.webhook("propel", "d-kim-2", deleted("kim")); a.Result != Accepted {
		t.Errorf("kim: %+v", a)
	}
	if all, err := LookOwed(t.Context(), w.js, w.door.Subjects, "propel"); err != nil ||
		len(all) != 3 || !slices.ContainsFunc(all, func(o Owed) bool {
		return o.User == "kim" && o.ID == "d-kim-2" && o.At.Equal(w.now.UTC().Truncate(time.Second))
	}) {
		t.Fatalf("owed are %+v, %v", all, err)
	}
	w.door.eraseOwed(t.Context(), s)
	left := owed()
	if !slices.Equal(left, []string{"kim"}) || !slices.Equal(w.erased, []string{"jane"}) {
		t.Fatalf("erased %v, owed %v", w.erased, left)
	}
	w.door.eraseOwed(t.Context(), s) // not due yet
	w.erase = nil
	w.door.eraseOwed(t.Context(), s)
	if len(w.erased) != 1 {
		t.Errorf("tried again at once: %v", w.erased)
	}
	w.user("kim", w.now.Add(5*time.Minute)) // signs in again before the next try
	w.pass(10 * time.Minute)
	w.door.eraseOwed(t.Context(), s)
	if left := owed(); len(left) > 0 || len(w.erased) != 1 {
		t.Errorf("erased %v, owed %v", w.erased, left)
	}
}

// Figures of all processes add up, and the last refusal is kept without a word of the message.
func TestFigures(t *testing.T) {
	w := newWorld(t, propel())
	w.webhook("propel", "1", updated)
	w.webhook("propel", "2", `{"event_type":"canary"}`)
	w.take("propel", sign(t, newSecret, "webhook-", "canary", w.now, "canary"), "other")
	other := &source{Config: propel()}
	other.figures.count(w.now.Add(time.Minute), Stale, "of another process")
	w.door.save(t.Context())
	beside := &Door{Deps: w.door.Deps, ledger: w.door.ledger}
	beside.sources = map[string]*source{"propel": other}
	beside.save(t.Context())
	w.door.save(t.Context()) // nothing new
	f, err := Look(t.Context(), w.js, w.door.Subjects, "propel")
	w.must(err)
	want := map[Result]uint64{Accepted: 1, Ignored: 1, Forged: 1, Stale: 1}
	if !maps.Equal(f.Counts, want) || f.Refused == nil || f.Refused.Why != "of another process" ||
		!f.LastAt.Equal(w.now.Add(time.Minute)) {
		t.Errorf("%+v", f)
	}
	if strings.Contains(fmt.Sprintf("%+v", f), "canary") || w.log.Has("canary") {
		t.Error("the message is quoted")
	}
}

func TestSettingsThatDoNotFit(t *testing.T) {
	whsec := []secret.Value{secret.New(newSecret)}
	with := func(c Config, change func(*Config)) Config { change(&c); return c }
	const plain = "http://127.0.0.1/keys"
	one := func(text string) []secret.Value { return []secret.Value{secret.New(text)} }
	asks, sing := map[string]string{"a": "ask"}, map[string]string{"a": "sing"}
	of := func(k Kind) Config {
		return Config{Kind: k, Issuer: "https://id.example", Audience: []string{"c"}}
	}
	for want, c := range map[string]Config{
		"secret: missing": {Kind: PropelAuth},
		"secret: want whsec_": {
			Kind: PropelAuth, Secrets: []secret.Value{secret.New("hunter2hunter2")},
		},
		"sign_out: is for":    {Kind: PropelAuth, Secrets: whsec, SignOut: true},
		"actions: missing":    {Kind: Webhooks, Secrets: whsec},
		"actions.a: \"sing\"": {Kind: Webhooks, Secrets: whsec, Actions: sing},
		"actions: are for": {
			Kind: PropelAuth, Secrets: whsec, Actions: asks,
		},
		"user_at: want a JSON": {
			Kind: Webhooks, Secrets: whsec, User: "data.id", Actions: asks,
		},
		"forget: is for": {
			Kind: Webhooks, Secrets: whsec, Forget: true, Actions: asks,
		},
		"issuer: is for":        {Kind: PropelAuth, Secrets: whsec, Issuer: "https://id.example"},
		"secret: a logout":      with(of(Logout), func(c *Config) { c.Secrets = whsec }),
		"secret: 5 bytes":       with(of(SET), func(c *Config) { c.Secrets = one("short") }),
		"issuer: missing":       {Kind: SET, Audience: []string{"c"}},
		"audience: missing":     {Kind: Logout, Issuer: "https://id.example"},
		"issuer: want https":    with(of(SET), func(c *Config) { c.Issuer = "http://id.example" }),
		"jwks_url: want https:": with(of(SET), func(c *Config) { c.JWKS = plain }),
		"kind: \"sms\"":         {Kind: "sms"},
	} {
		c.Name = "a"
		_, err := New([]Config{c}, Deps{})
		if err == nil || !strings.HasPrefix(err.Error(), "sources.a."+want) ||
			strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v, want sources.a.%s…", err, want)
		}
	}
	if senders.CheckName("A b") == nil || senders.CheckName("propel-1") != nil {
		t.Error("names")
	}
}
