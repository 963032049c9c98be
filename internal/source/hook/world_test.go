package hook

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/testkit/hooktest"
	"github.com/renewd/renewd/internal/testkit/streams"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

var sign = hooktest.Sign

var (
	oldSecret = "whsec_" + strings.Repeat("b2xk", 8) // 24 bytes
	newSecret = "whsec_" + strings.Repeat("bmV3", 10)
)

// world is a door on a real NATS server, with a store and an issuer that the test fills.
type world struct {
	t      *testing.T
	js     jetstream.JetStream
	door   *Door
	issuer *issuerServer
	log    testkit.Logs

	mu     sync.Mutex
	now    time.Time
	grants map[grant.Key]grant.Grant
	broken error // of the store
	erase  func(k grant.Key) error
	erased []string // users
}

// newWorld has all sources of a test, all of provider acme. Known users are jane and kim.
func newWorld(t *testing.T, all ...Config) *world {
	t.Helper()
	w := &world{
		t: t, js: streams.Start(t, natsd.Config{}), issuer: newIssuerServer(t),
		now: time.Now(), grants: map[grant.Key]grant.Grant{},
	}
	for _, user := range []string{"jane", "kim"} {
		w.user(user, w.now.Add(-time.Hour))
	}
	subjects, err := schema.NewSubjects("")
	w.must(err)
	streams.Ensure(t, w.js, topology.Topology{Subjects: subjects, Sources: true})
	for i := range all {
		all[i].Provider = "acme"
		if all[i].Kind == Logout || all[i].Kind == SET {
			all[i].Issuer, all[i].AllowHTTP = w.issuer.URL, true
			all[i].Audience = []string{"renewd-client"}
		}
	}
	w.door, err = New(all, Deps{
		JetStream: w.js, Subjects: subjects, Load: w.load, Now: w.clock, Logger: w.log.Logger(),
		Publisher: func(source string) (*publishers.Publisher, error) {
			return publishers.New(w.js.Conn(), publishers.WithSource(source))
		},
		Calls: func(string, ...string) (http.RoundTripper, error) {
			return http.DefaultTransport, nil
		},
		Forget: func(_ context.Context, k grant.Key, _ string) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.erase != nil {
				if err := w.erase(k); err != nil {
					return err
				}
			}
			w.erased = append(w.erased, k.User)
			return nil
		},
	})
	w.must(err)
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func (w *world) user(name string, loginAt time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := grant.Key{Provider: "acme", User: name}
	w.grants[k] = grant.Grant{Key: k, Status: grant.Live, LoginAt: loginAt}
}

func (w *world) load(_ context.Context, k grant.Key) (grant.Grant, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	g, ok := w.grants[k]
	if w.broken != nil {
		return g, w.broken
	}
	if !ok {
		return g, grant.ErrNotFound
	}
	return g, nil
}

// take posts a message.
func (w *world) take(source string, header http.Header, body string) Answer {
	w.t.Helper()
	a, known := w.door.Take(w.t.Context(), source, Post{Header: header.Get, Body: []byte(body)})
	if !known {
		w.t.Fatalf("source %s is not known", source)
	}
	return a
}

// webhook posts a signed webhook.
func (w *world) webhook(source, id, body string) Answer {
	w.t.Helper()
	return w.take(source, sign(w.t, newSecret, "webhook-", id, w.clock(), body), body)
}

// commands are all that were published.
func (w *world) commands() (all []schema.Event) {
	w.t.Helper()
	subjects, err := schema.NewSubjects("")
	w.must(err)
	for _, name := range []string{topology.Requests, topology.Logins} {
		s, err := w.js.Stream(w.t.Context(), name)
		w.must(err)
		info, err := s.Info(w.t.Context())
		w.must(err)
		for n := info.State.FirstSeq; n <= info.State.LastSeq && info.State.Msgs > 0; n++ {
			m, err := s.GetMsg(w.t.Context(), n)
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				continue
			}
			w.must(err)
			e, err := subjects.Decode(schema.Header(m.Header), m.Data, schema.Arrival{
				Subject: m.Subject, Stream: name, Sequence: m.Sequence, Time: m.Time,
			})
			w.must(err)
			all = append(all, e)
		}
	}
	return all
}

// did says of the commands what tests compare: type, user, id and data.
func (w *world) did() (all []string) {
	w.t.Helper()
	for _, e := range w.commands() {
		all = append(all, strings.Join([]string{
			string(e.Type), e.User, e.ID, e.Source, e.Sender, string(e.Data),
		}, " "))
	}
	return all
}

func (w *world) wants(want ...string) {
	w.t.Helper()
	if got := w.did(); !slices.Equal(got, want) {
		w.t.Errorf("commands:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// issuerServer is an OpenID provider's discovery document and keys.
type issuerServer struct {
	*httptest.Server
	mu    sync.Mutex
	key   *rsa.PrivateKey
	id    string
	calls int // for keys
	down  bool
}

var testKey = sync.OnceValues(func() (*rsa.PrivateKey, error) {
	return rsa.GenerateKey(rand.Reader, 2048)
})

func newIssuerServer(t *testing.T) *issuerServer {
	t.Helper()
	key, err := testKey()
	if err != nil {
		t.Fatal(err)
	}
	i := &issuerServer{key: key, id: "k1"}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration",
		func(w http.ResponseWriter, _ *http.Request) {
			i.answer(w, map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys"})
		})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		i.mu.Lock()
		i.calls++
		key := jose.JSONWebKey{Key: i.key.Public(), KeyID: i.id, Use: "sig", Algorithm: "RS256"}
		i.mu.Unlock()
		i.answer(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key}})
	})
	i.Server = httptest.NewServer(mux)
	t.Cleanup(i.Close)
	return i
}

func (i *issuerServer) answer(w http.ResponseWriter, v any) {
	i.mu.Lock()
	down := i.down
	i.mu.Unlock()
	if down {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func (i *issuerServer) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

// token signs claims with the issuer's key, or another, under the id kid.
func (i *issuerServer) token(t testing.TB, key *rsa.PrivateKey, kid, typ string,
	claims map[string]any) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithHeader("kid", kid)
	if typ != "" {
		options = options.WithType(jose.ContentType(typ))
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	var payload bytes.Buffer
	if err := json.NewEncoder(&payload).Encode(claims); err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign(payload.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}
