package idp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
)

// wanderer is a provider whose document says that its token endpoint is at another address of this
// machine, once at is set.
type wanderer struct {
	issuer   string
	at       atomic.Pointer[string] // where the token endpoint is; nil: at the issuer's
	readings atomic.Int32
	calls    atomic.Int32 // of the token endpoint at the issuer's address
}

func newWanderer(t *testing.T) *wanderer {
	t.Helper()
	w := new(wanderer)
	s := httptest.NewServer(http.HandlerFunc(w.serve))
	t.Cleanup(s.Close)
	w.issuer = s.URL
	return w
}

func (w *wanderer) serve(rw http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/.well-known/openid-configuration" {
		w.calls.Add(1)
		_, _ = rw.Write([]byte(`{"access_token":"a"}`))
		return
	}
	w.readings.Add(1)
	at := w.issuer
	if moved := w.at.Load(); moved != nil {
		at = *moved
	}
	fmt.Fprintf(rw, `{"issuer":%q,"token_endpoint":"%s/token","userinfo_endpoint":"%s/me"}`,
		w.issuer, at, w.issuer)
}

// elsewhere is the same server by another name.
func (w *wanderer) elsewhere() string {
	return strings.Replace(w.issuer, "127.0.0.1", "localhost", 1)
}

func (w *wanderer) provider(t *testing.T, log *slog.Logger, hosts ...string) *Provider {
	t.Helper()
	p, err := New(Config{
		ID:                "p",
		Preset:            "oidc",
		BaseURL:           w.issuer,
		ClientID:          "c",
		ClientAuth:        AuthNone,
		AllowHTTPLoopback: true,
		EndpointHosts:     hosts,
	}, Telemetry{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// A document that leads to other hosts than before is refused and told once. What was known holds,
// and the document counts again when it is as it was.
func TestADocumentThatLeadsElsewhereIsRefused(t *testing.T) {
	w, said := newWanderer(t), new(bytes.Buffer)
	p := w.provider(t, slog.New(slog.NewTextHandler(said, nil)))
	now := time.Now()
	p.now = func() time.Time { return now }
	later := func(wait time.Duration) {
		t.Helper()
		now = now.Add(wait)
		if _, err := p.Refresh(t.Context(), secret.New("r")); err != nil {
			t.Fatal(err)
		}
		p.asks.Wait()
	}
	later(0)
	moved := w.elsewhere()
	w.at.Store(&moved)
	for range 3 {
		later(documentAge)
	}
	if w.readings.Load() != 4 || p.endpoints.Token != w.issuer+"/token" {
		t.Errorf("after %d readings the token endpoint is %s", w.readings.Load(), p.endpoints.Token)
	}
	if n := strings.Count(said.String(), "leads elsewhere"); n != 1 {
		t.Errorf("told %d times:\n%s", n, said)
	}
	if !strings.Contains(said.String(), "localhost") ||
		!strings.Contains(said.String(), "endpoint_hosts") {
		t.Errorf("does not say where, and what to do: %s", said)
	}
	w.at.Store(nil)
	later(documentRetry)
	w.at.Store(&moved)
	later(documentAge)
	if n := strings.Count(said.String(), "leads elsewhere"); n != 2 {
		t.Errorf("told %d times, want again after it was in order", n)
	}
}

// kept are pins in memory, as if NATS kept them.
type kept struct {
	hosts []string
	err   error
}

func (k *kept) Pinned(context.Context) ([]string, error) { return k.hosts, k.err }

func (k *kept) Pin(_ context.Context, hosts []string) ([]string, error) {
	if k.hosts == nil {
		k.hosts = hosts
	}
	return k.hosts, k.err
}

// A process that starts believes no document that leads elsewhere than the one before its time, and
// sends no token. It says so once, and goes on as soon as the hosts are accepted.
func TestADocumentIsComparedWithTheOneBeforeARestart(t *testing.T) {
	w, said, pins := newWanderer(t), new(bytes.Buffer), new(kept)
	start := func() *Provider {
		t.Helper()
		p := w.provider(t, slog.New(slog.NewTextHandler(said, nil)))
		p.Remember(pins)
		return p
	}
	if _, err := start().Refresh(t.Context(), secret.New("r")); err != nil {
		t.Fatal(err)
	}
	if len(pins.hosts) != 1 || pins.hosts[0] != hostOf(w.issuer) {
		t.Fatalf("pinned %q", pins.hosts)
	}
	moved := w.elsewhere()
	w.at.Store(&moved)
	calls := w.calls.Load()
	p := start()
	for range 3 {
		_, err := p.Refresh(t.Context(), secret.New("r"))
		fault, ok := errors.AsType[*grant.Fault](err)
		if !ok || fault.Class != grant.Config ||
			!strings.Contains(err.Error(), "provider accept p") {
			t.Errorf("refused with %v", err)
		}
	}
	if n := w.calls.Load() - calls; n != 0 || strings.Count(said.String(), "leads elsewhere") != 1 {
		t.Errorf("%d tokens were sent there; said: %s", n, said)
	}
	pins.hosts = append(pins.hosts, hostOf(moved)) // by the operator
	if _, err := p.Refresh(t.Context(), secret.New("r")); err != nil ||
		p.endpoints.Token != moved+"/token" {
		t.Errorf("accepted, and the token endpoint is %s: %v", p.endpoints.Token, err)
	}
	pins.err = errors.New("no leader")
	_, err := start().Refresh(t.Context(), secret.New("r"))
	if fault, ok := errors.AsType[*grant.Fault](err); !ok || fault.Class != grant.Unsent {
		t.Errorf("believed without a comparison: %v", err)
	}
}

// Two processes that start together pin one document: the second is refused where it was given
// another.
func TestTheFirstToPinAHostIsBelieved(t *testing.T) {
	w := newWanderer(t)
	pins := &late{kept{hosts: []string{hostOf("https://elsewhere.example")}}}
	moved := w.elsewhere()
	w.at.Store(&moved)
	p := w.provider(t, nil)
	p.Remember(pins)
	if _, err := p.Refresh(t.Context(), secret.New("r")); err == nil ||
		!strings.Contains(err.Error(), "not where it was") {
		t.Errorf("got %v", err)
	}
}

// late are pins that another process keeps after this one has looked.
type late struct{ kept }

func (*late) Pinned(context.Context) ([]string, error) { return nil, nil }

// What the settings name is believed, and with them nothing else is.
func TestHostsOfTheSettings(t *testing.T) {
	w := newWanderer(t)
	moved := w.elsewhere()
	w.at.Store(&moved)
	host := strings.TrimPrefix(moved, "http://")
	for _, tt := range []struct {
		hosts   []string
		refused bool
	}{{nil, false}, {[]string{host}, false}, {[]string{"other.example.com"}, true}} {
		_, err := w.provider(t, nil, tt.hosts...).Refresh(t.Context(), secret.New("r"))
		f, refused := errors.AsType[*grant.Fault](err)
		if refused != tt.refused {
			t.Errorf("%q: %v", tt.hosts, err)
		}
		if refused &&
			(f.Class != grant.Config || !strings.Contains(err.Error(), host) ||
				!strings.Contains(err.Error(), "endpoint_hosts")) {
			t.Errorf("%q: %s: %v", tt.hosts, f.Class, err)
		}
	}
}

func TestEndpointHostsAreHosts(t *testing.T) {
	for host, ok := range map[string]bool{
		"login.example.com":         true,
		"login.example.com:8443":    true,
		"[2001:db8::1]":             true,
		"10.0.0.1":                  true,
		"":                          false,
		"https://login.example.com": false,
		"login.example.com/token":   false,
		"a b":                       false,
		"u@host":                    false,
		":443":                      false,
	} {
		c := Config{
			Preset:        "oidc",
			BaseURL:       "https://login.example.com",
			ClientID:      "c",
			EndpointHosts: []string{host},
		}
		if err := c.Validate(); (err == nil) != ok {
			t.Errorf("%q: %v", host, err)
		}
	}
}

// Google's document names three hosts that are not the issuer's (read from it).
func TestGooglesHostsAreKnown(t *testing.T) {
	p, err := New(Config{ID: "g", Preset: "google", ClientID: "c", ClientAuth: AuthNone},
		Telemetry{})
	if err != nil {
		t.Fatal(err)
	}
	for url, known := range map[string]bool{
		"https://oauth2.googleapis.com/token":              true,
		"https://openidconnect.googleapis.com/v1/userinfo": true,
		"https://oauth2.googleapis.com/revoke":             true,
		"https://www.googleapis.com/oauth2/v3/certs":       true,
		"https://accounts.google.com:443/x":                true,
		"https://OAuth2.GoogleAPIs.com/token":              true,
		"https://evil.example.com/token":                   false,
		"https://oauth2.googleapis.com:8443/token":         false,
		"http://oauth2.googleapis.com/token":               false,
		"https://oauth2.googleapis.com.example/token":      false,
	} {
		if err := p.admit(url, nil); (err == nil) != known {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// A document does not make renewd call what is behind the firewall, unless the issuer is there or
// the settings name it.
func TestInternalHostsAreNotReachedThroughDiscovery(t *testing.T) {
	w := newWanderer(t)
	moved := w.elsewhere()
	w.at.Store(&moved)
	host := strings.TrimPrefix(moved, "http://")
	refresh := func(issuerInside bool, hosts ...string) error {
		p := w.provider(t, nil, hosts...)
		dialed := 0
		p.internal = func(at netip.Addr) bool {
			dialed++
			return issuerInside || dialed > 1 // the issuer's is the first
		}
		_, err := p.Refresh(t.Context(), secret.New("r"))
		return err
	}
	before := w.calls.Load()
	err := refresh(false)
	if f, ok := errors.AsType[*grant.Fault](err); !ok || f.Class != grant.Unsent {
		t.Errorf("%v", err)
	}
	if w.calls.Load() != before {
		t.Error("the token arrived")
	}
	if err := refresh(true); err != nil {
		t.Errorf("the issuer is inside: %v", err)
	}
	if err := refresh(false, host); err != nil {
		t.Errorf("named: %v", err)
	}
}

func TestInternalAddresses(t *testing.T) {
	for text, want := range map[string]bool{
		"127.0.0.1":            true,
		"::1":                  true,
		"10.1.2.3":             true,
		"172.16.0.1":           true,
		"192.168.1.1":          true,
		"169.254.169.254":      true,
		"fe80::1":              true,
		"fd00::1":              true,
		"0.0.0.0":              true,
		"::":                   true,
		"100.64.0.1":           true,
		"::ffff:10.0.0.1":      true,
		"224.0.0.1":            true,
		"255.255.255.255":      true,
		"8.8.8.8":              false,
		"172.32.0.1":           false,
		"2001:4860:4860::8888": false,
		"::ffff:8.8.8.8":       false,
	} {
		if got := internal(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
}
