package realidp

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/publishers"
)

var update = flag.Bool("update", false,
	"write what the providers answer to internal/idp/testdata/answers")

// recorded is one exchange, as internal/idp/testdata/answers holds it and the tests of package idp
// read it. The tokens in it are made up.
type recorded struct {
	Name        string `json:"name"`
	Endpoint    string `json:"endpoint"`
	Status      int    `json:"status"`
	ContentType string `json:"content_type"`
	Body        string `json:"body"`
	Source      string `json:"source"`
	verdict
}

// verdict is what renewd must make of an answer.
type verdict struct {
	// Class is a grant.Class or "success". For userinfo it may be "refused": the access token is
	// not taken.
	Class  string `json:"class"`
	Reason string `json:"reason,omitempty"` // of user.reauth_required
	Note   string `json:"note"`
}

// ours begins the source of every exchange that these tests record. The others of a file come from
// documentation, and stay.
const ours = "recorded: "

// The providers answer as the files say. A new version of a provider that answers differently is
// found here, before it is met in production. With -update the test writes the new answers, for a
// person to judge.
func TestAnswers(t *testing.T) {
	for _, k := range []kind{dexKind, zitadelKind, glewlwydKind, hydraKind} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(root, "internal", "idp", "testdata", "answers", k.name+".json")
			got := record(t, k)
			kept := read(t, file)
			if *update {
				kept = slices.DeleteFunc(kept, func(r recorded) bool {
					return strings.HasPrefix(r.Source, ours) ||
						slices.ContainsFunc(got, func(g recorded) bool { return g.Name == r.Name })
				})
				write(t, file, append(got, kept...))
				return
			}
			for _, g := range got {
				if !slices.Contains(kept, g) {
					t.Errorf("%s does not have this exchange, see the flag -update:\n%s",
						file, encode(t, g))
				}
			}
		})
	}
}

// record asks a provider everything that can be asked.
func record(t *testing.T, k kind) (all []recorded) {
	t.Helper()
	d := &desk{front: startFront(t, k)}
	for _, q := range questions {
		v, ok := k.verdicts[q.name]
		if !ok {
			continue // this provider cannot be asked this question
		}
		endpoint := "token"
		if strings.HasPrefix(q.name, "userinfo") {
			endpoint = "userinfo"
		}
		res, body := d.send(t, q.ask(t, d))
		if said := res.Header.Get("WWW-Authenticate"); said != "" {
			v.Note = strings.TrimPrefix(v.Note+"; WWW-Authenticate: "+said, "; ")
		}
		all = append(all, recorded{
			Name:        q.name,
			Endpoint:    endpoint,
			Status:      res.StatusCode,
			ContentType: res.Header.Get("Content-Type"),
			Body:        d.anonymous(body),
			Source:      ours + fmt.Sprintf(k.title, versionOf(t, k)),
			verdict:     v,
		})
	}
	return all
}

// questions are what a provider is asked, by the name of the exchange.
var questions = []struct {
	name string
	ask  func(*testing.T, *desk) *http.Request
}{
	{"refreshed, rotated", func(t *testing.T, d *desk) *http.Request {
		token := d.signedIn(t, "ada").RefreshToken
		d.wait(dexReuse + 10*time.Second) // Dex does not rotate a token that it has just made
		return d.refresh(t, token)
	}},
	{"revoked", func(t *testing.T, d *desk) *http.Request {
		token := d.signedIn(t, "bob").RefreshToken
		if err := d.revoke(t.Context(), "bob"); err != nil {
			t.Fatal(err)
		}
		return d.refresh(t, token)
	}},
	{"spent", func(t *testing.T, d *desk) *http.Request {
		token := d.signedIn(t, "cyd").RefreshToken
		for range 2 {
			d.wait(dexReuse + 10*time.Second)
			d.send(t, d.refresh(t, token))
		}
		return d.refresh(t, token)
	}},
	{"expired", func(t *testing.T, d *desk) *http.Request {
		token := d.signedIn(t, "dan").RefreshToken
		d.wait(2 * dexAbsolute)
		return d.refresh(t, token)
	}},
	{
		"unknown",
		func(t *testing.T, d *desk) *http.Request { return d.refresh(t, "a-made-up-token") },
	},
	{"no token", func(t *testing.T, d *desk) *http.Request {
		return d.token(t, url.Values{"grant_type": {"refresh_token"}}, clientSecret)
	}},
	{"user deleted", func(t *testing.T, d *desk) *http.Request { return d.deleted(t, "eve") }},
	{"user deleted, again", func(t *testing.T, d *desk) *http.Request {
		again := d.deleted(t, "hal")
		d.send(t, again)
		again.Body = must(again.GetBody())(t)
		return again
	}},
	{"wrong secret or client", func(t *testing.T, d *desk) *http.Request {
		return d.token(t, refreshForm(d.signedIn(t, "fay").RefreshToken), "a-wrong-secret")
	}},
	{"wrong secret, put right", func(t *testing.T, d *desk) *http.Request {
		form := refreshForm(d.signedIn(t, "ivy").RefreshToken)
		d.send(t, d.token(t, form, "a-wrong-secret"))
		return d.token(t, form, clientSecret)
	}},
	{"wrong way", func(t *testing.T, d *desk) *http.Request {
		form := refreshForm(d.signedIn(t, "fay").RefreshToken)
		form.Set("client_id", clientID)
		form.Set("client_secret", clientSecret)
		return d.token(t, form, "")
	}},
	{"no secret", func(t *testing.T, d *desk) *http.Request {
		form := refreshForm(d.signedIn(t, "fay").RefreshToken)
		form.Set("client_id", clientID)
		return d.token(t, form, "")
	}},
	{"unsupported grant", func(t *testing.T, d *desk) *http.Request {
		return d.token(t, url.Values{"grant_type": {"urn:example:made-up"}}, clientSecret)
	}},
	{
		"userinfo",
		func(t *testing.T, d *desk) *http.Request {
			return d.userinfo(t, d.signedIn(t, "ada").AccessToken)
		},
	},
	{
		"userinfo, bad token",
		func(t *testing.T, d *desk) *http.Request { return d.userinfo(t, "a-made-up-token") },
	},
	{"userinfo, no token", func(t *testing.T, d *desk) *http.Request { return d.userinfo(t, "") }},
	{"userinfo, session revoked", func(t *testing.T, d *desk) *http.Request {
		token := d.signedIn(t, "gus").AccessToken
		if err := d.revoke(t.Context(), "gus"); err != nil {
			t.Fatal(err)
		}
		return d.userinfo(t, token)
	}},
}

// desk asks a provider as the provider's only client.
type desk struct{ *front }

func (d *desk) signedIn(t *testing.T, name string) publishers.Tokens {
	t.Helper()
	if err := d.enroll(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	_, tokens, err := d.signIn(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// deleted asks for the refresh of an account that has just been deleted.
func (d *desk) deleted(t *testing.T, name string) *http.Request {
	t.Helper()
	token := d.signedIn(t, name).RefreshToken
	d.wait(dexReuse + 10*time.Second)
	if err := d.remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return d.refresh(t, token)
}

// wait lets time pass for a provider that looks at our clock.
func (d *desk) wait(by time.Duration) {
	if c, ok := d.provider.(interface{ later(time.Duration) }); ok {
		c.later(by)
	}
}

func refreshForm(token string) url.Values {
	return url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}
}

func (d *desk) refresh(t *testing.T, token string) *http.Request {
	return d.token(t, refreshForm(token), clientSecret)
}

func (d *desk) token(t *testing.T, form url.Values, secret string) *http.Request {
	t.Helper()
	req := must(http.NewRequestWithContext(t.Context(), http.MethodPost, d.url("token"),
		strings.NewReader(form.Encode())))(t)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if secret != "" {
		req.SetBasicAuth(clientID, secret)
	}
	return req
}

func (d *desk) userinfo(t *testing.T, token string) *http.Request {
	t.Helper()
	req := must(http.NewRequestWithContext(t.Context(), http.MethodGet, d.url("userinfo"), nil))(t)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return req
}

func (d *desk) url(endpoint string) string {
	for path, e := range d.endpoints {
		if e == endpoint {
			return "http://" + d.addr + path
		}
	}
	return ""
}

func (d *desk) send(t *testing.T, req *http.Request) (*http.Response, string) {
	t.Helper()
	res := must(http.DefaultClient.Do(req))(t)
	defer res.Body.Close()
	var body bytes.Buffer
	must(body.ReadFrom(res.Body))(t)
	return res, body.String()
}

// made are the members of an answer that differ each time, with what stands for them.
var made = []struct {
	member *regexp.Regexp
	by     string
}{
	{regexp.MustCompile(`("(access|refresh|id)_token"\s*:\s*)"[^"]*"`), `$1"a-made-up-$2-token"`},
	{regexp.MustCompile(`("(jti|at_hash)"\s*:\s*)"[^"]*"`), `$1"made-up"`},
	{regexp.MustCompile(`("sub"\s*:\s*)"[A-Za-z0-9]{32}"`), `$1"made-up"`}, // Glewlwyd's is random
	{regexp.MustCompile(`("(iat|exp|auth_time|rat)"\s*:\s*)[0-9]+`), `${1}1764064800`},
	{regexp.MustCompile(`("expires_in"\s*:\s*)[0-9]+`), fmt.Sprintf("${1}%d", lifetime-1)},
}

// anonymous replaces values that differ each time with fixed values.
func (d *desk) anonymous(body string) string {
	body = strings.ReplaceAll(body, d.issuer(), "https://"+d.name+".example.com")
	for _, m := range made {
		body = m.member.ReplaceAllString(body, m.by)
	}
	return body
}

// versionOf is the version of a provider, by default the version that go.mod pins.
func versionOf(t *testing.T, k kind) string {
	t.Helper()
	if k.version != nil {
		return k.version(t)
	}
	for line := range strings.Lines(string(must(os.ReadFile("go.mod"))(t))) {
		if version, ok := strings.CutPrefix(strings.TrimSpace(line), k.module+" "); ok {
			return version
		}
	}
	t.Fatalf("go.mod does not require %s", k.module)
	return ""
}

func read(t *testing.T, file string) (all []recorded) {
	t.Helper()
	text, err := os.ReadFile(file)
	if os.IsNotExist(err) && *update {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return all
}

func write(t *testing.T, file string, all []recorded) {
	t.Helper()
	if err := os.WriteFile(file, encode(t, all), 0o644); err != nil {
		t.Fatal(err)
	}
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	var text bytes.Buffer
	to := json.NewEncoder(&text)
	to.SetIndent("", "  ")
	to.SetEscapeHTML(false)
	if err := to.Encode(v); err != nil {
		t.Fatal(err)
	}
	return text.Bytes()
}
