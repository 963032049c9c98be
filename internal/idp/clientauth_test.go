package idp_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/secret"
)

// picky is a provider that takes only the clients in takes, each written as way:secret. It refuses
// all others with refusal, and keeps what it saw.
type picky struct {
	*httptest.Server
	mu      sync.Mutex
	takes   []string
	status  int
	refusal string
	saw     []string
	hold    func(shown string) // called before the answer
	holding map[string]int     // tokens under way
}

func newPicky(t *testing.T, takes ...string) *picky {
	t.Helper()
	p := &picky{
		takes:   takes,
		status:  401,
		refusal: `{"error":"invalid_client"}`,
		holding: map[string]int{},
	}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		token := r.PostForm.Get("refresh_token") + r.PostForm.Get("token")
		p.mu.Lock()
		shown := shownBy(r)
		p.saw = append(p.saw, shown)
		if p.holding[token]++; p.holding[token] > 1 {
			t.Errorf("%s is under way twice", token)
		}
		hold, status, body := p.hold, p.status, p.refusal
		if slices.Contains(p.takes, shown) {
			status, body = 200, `{"access_token":"a"}`
		}
		p.mu.Unlock()
		if hold != nil {
			hold(shown)
		}
		p.mu.Lock()
		p.holding[token]--
		p.mu.Unlock()
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(p.Close)
	return p
}

func shownBy(r *http.Request) string {
	_, secret, basic := r.BasicAuth()
	switch {
	case basic && !r.PostForm.Has("client_secret"):
		return "basic:" + secret
	case r.PostForm.Has("client_secret") && !basic:
		return "post:" + r.PostForm.Get("client_secret")
	}
	return fmt.Sprintf("basic %v, form %v", basic, r.PostForm)
}

// seen is what came since the last call.
func (p *picky) seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.saw
	p.saw = nil
	return out
}

func (p *picky) now(takes ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.takes = takes
}

// client is one of preset oidc with the secret "s", that asks no discovery.
func (p *picky) client(t *testing.T, change func(*idp.Config)) *idp.Provider {
	t.Helper()
	return open(t, p.URL, func(c *idp.Config) {
		c.Preset, c.TokenURL, c.UserInfoURL, c.RevokeURL = "oidc", p.URL, p.URL, p.URL
		c.ClientSecret = secret.New("s")
		if change != nil {
			change(c)
		}
	})
}

// renew refreshes, and holds what the provider saw against want.
func (p *picky) renew(t *testing.T, client *idp.Provider, want ...string) error {
	t.Helper()
	_, err := client.Refresh(t.Context(), secret.New(canary))
	if got := p.seen(); !slices.Equal(got, want) {
		t.Errorf("saw %q, want %q (%v)", got, want, err)
	}
	return err
}

func class(err error) grant.Class {
	f, _ := errors.AsType[*grant.Fault](err)
	if f == nil {
		return ""
	}
	return f.Class
}

// RFC 6749 section 2.3.1: basic is the way that every server supports. Hydra refuses the other one.
func TestTheOtherWayIsTriedOnceAndRemembered(t *testing.T) {
	for _, status := range []int{400, 401} {
		p := newPicky(t, "post:s")
		p.status = status
		client := p.client(t, nil)
		if err := p.renew(t, client, "basic:s", "post:s"); err != nil {
			t.Error(err)
		}
		if err := p.renew(t, client, "post:s"); err != nil {
			t.Error(err)
		}
	}
}

func TestPresetNamesTheFirstWay(t *testing.T) {
	for _, preset := range []string{"propelauth", "auth0", "github"} {
		p := newPicky(t, "basic:s")
		client := p.client(t, func(c *idp.Config) { c.Preset = preset })
		if err := p.renew(t, client, "post:s", "basic:s"); err != nil {
			t.Error(err)
		}
	}
}

// A server that does not read the header may take the form without a client_id for malformed. If a
// server also calls every dead token malformed, the first good token shows which way is right.
func TestAMalformedRequestIsTriedTheOtherWayUntilOneIsProven(t *testing.T) {
	var seen []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		way := "basic"
		if r.PostFormValue("client_secret") != "" {
			way = "post"
		}
		seen = append(seen, way)
		w.Header().Set("Content-Type", "application/json")
		if way == "basic" || r.PostFormValue("refresh_token") == "dead" {
			w.WriteHeader(400)
			fmt.Fprint(w, `{"error":"invalid_request"}`)
			return
		}
		fmt.Fprint(w, `{"access_token":"a"}`)
	}))
	t.Cleanup(s.Close)
	p := open(t, s.URL, func(c *idp.Config) {
		c.Preset, c.TokenURL, c.UserInfoURL, c.ClientSecret = "oidc", s.URL, s.URL, secret.New("s")
	})
	for _, tt := range []struct{ token, want string }{
		{"dead", "[basic post]"}, {"good", "[basic post]"}, {"dead", "[post]"}, {"good", "[post]"},
	} {
		seen = nil
		_, err := p.Refresh(t.Context(), secret.New(tt.token))
		if fmt.Sprint(seen) != tt.want || (err == nil) != (tt.token == "good") {
			t.Errorf("%s: %v, want %s; %v", tt.token, seen, tt.want, err)
		}
	}
}

// What does not say that the client was refused, and nothing but that, may have spent the token.
func TestOnlyInvalidClientIsTriedAgain(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		body   string
	}{
		"Glewlwyd's empty 400": {400, ""},
		"a bare 401":           {401, ""},
		"a broken gateway":     {500, `{"error":"invalid_client"}`},
		"a 503":                {503, `{"error":"invalid_client"}`},
		"another code":         {400, `{"error":"invalid_grant"}`},
		"unauthorized":         {400, `{"error":"unauthorized_client"}`},
		"a 200":                {200, `{"error":"invalid_client"}`},
		"tokens beside it":     {401, `{"error":"invalid_client","refresh_token":"new"}`},
		"broken off":           {401, `{"error":"invalid_client","x":"`},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPicky(t)
			p.status, p.refusal = tt.status, tt.body
			if err := p.renew(t, p.client(t, nil), "basic:s"); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestAWayThatIsSetIsTheOnlyOne(t *testing.T) {
	p := newPicky(t, "post:s")
	client := p.client(t, func(c *idp.Config) { c.ClientAuth = idp.AuthBasic })
	if err := p.renew(t, client, "basic:s"); class(err) != grant.Config {
		t.Error(err)
	}
}

// A secret that is wrong in every way is shown in one way a call from then on, so that a provider
// that spends tokens even so gets few. Each call shows the secret in the next way: any correction
// at the provider is found.
func TestRefusedInEveryWay(t *testing.T) {
	p := newPicky(t)
	client := p.client(t, nil)
	for _, want := range [][]string{{"basic:s", "post:s"}, {"basic:s"}, {"post:s"}, {"basic:s"}} {
		if err := p.renew(t, client, want...); class(err) != grant.Config {
			t.Error(err)
		}
	}
	p.now("post:s")
	for range 2 {
		if err := p.renew(t, client, "post:s"); err != nil {
			t.Error(err)
		}
	}
}

// What brought tokens once is the right way: a refusal has another cause.
func TestAProvenWayStays(t *testing.T) {
	p := newPicky(t, "basic:s")
	client := p.client(t, nil)
	if err := p.renew(t, client, "basic:s"); err != nil {
		t.Fatal(err)
	}
	p.now("post:s")
	for range 3 {
		if err := p.renew(t, client, "basic:s"); class(err) != grant.Config {
			t.Error(err)
		}
	}
}

// A dead token shown in the right way tells the way too.
func TestARefusedTokenTellsTheWay(t *testing.T) {
	p := newPicky(t)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		p.mu.Lock()
		p.saw = append(p.saw, shownBy(r))
		p.mu.Unlock()
		code := "invalid_grant"
		if _, _, basic := r.BasicAuth(); basic {
			code = "invalid_client"
		}
		w.WriteHeader(400)
		_, _ = fmt.Fprintf(w, `{"error":%q}`, code)
	}))
	t.Cleanup(s.Close)
	client := p.client(t, func(c *idp.Config) { c.TokenURL = s.URL })
	for _, want := range [][]string{{"basic:s", "post:s"}, {"post:s"}} {
		if err := p.renew(t, client, want...); class(err) != grant.Permanent {
			t.Error(err)
		}
	}
}

// All calls that were refused at the same time wait for one of them to try the other way.
func TestAHerdTriesTheOtherWayOnce(t *testing.T) {
	const herd = 20
	for name, taken := range map[string]bool{"refused": false, "taken": true} {
		t.Run(name, func(t *testing.T) {
			p := newPicky(t)
			if taken {
				p.now("post:s")
			}
			var all sync.WaitGroup
			all.Add(herd)
			p.hold = func(shown string) {
				if shown == "basic:s" { // no call is answered before all are there
					all.Done()
					all.Wait()
				}
			}
			client := p.client(t, nil)
			var wg sync.WaitGroup
			for i := range herd {
				wg.Go(func() {
					_, err := client.Refresh(t.Context(), secret.New(fmt.Sprint(canary, i)))
					if (err == nil) != taken {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			post := 0
			for _, shown := range p.seen() {
				if shown == "post:s" {
					post++
				}
			}
			if want := map[bool]int{false: 1, true: herd}[taken]; post != want {
				t.Errorf("the other way was taken %d times, want %d", post, want)
			}
		})
	}
}

func TestRevokeTriesTheOtherWay(t *testing.T) {
	p := newPicky(t, "post:s")
	client := p.client(t, nil)
	for _, want := range [][]string{{"basic:s", "post:s"}, {"post:s"}} {
		err := client.Revoke(t.Context(), secret.New(canary))
		if got := p.seen(); err != nil || !slices.Equal(got, want) {
			t.Errorf("saw %q, want %q (%v)", got, want, err)
		}
	}
	// An endpoint that takes any client for a revocation proves nothing for the other one.
	p.now("basic:s", "post:s")
	client = p.client(t, nil)
	if err := client.Revoke(t.Context(), secret.New(canary)); err != nil {
		t.Error(err)
	}
	p.seen()
	p.now("post:s")
	if err := p.renew(t, client, "basic:s", "post:s"); err != nil {
		t.Error(err)
	}
}

// A fingerprint written by an earlier version is that of the same settings.
func TestSettingsKeepTheirFingerprint(t *testing.T) {
	for want, c := range map[string]idp.Config{
		"iNciE40Dfdby8nRRMjQtfw": {BaseURL: "https://id.example", ClientID: "c"},
		"ktrZNfi9nSLRijwQRFGVQQ": {
			BaseURL:      "https://id.example",
			ClientID:     "c",
			ClientSecret: secret.New("s"),
			TokenURL:     "https://id.example/t",
		},
		"iYMEEnkJf2_TN3Y_Dg0N3w": {
			BaseURL:      "https://id.example",
			ClientID:     "c",
			ClientSecret: secret.New("s"),
			ClientAuth:   idp.AuthBasic,
		},
	} {
		p := open(t, "", func(to *idp.Config) { *to = c })
		if got := p.Settings(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
