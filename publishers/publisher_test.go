package publishers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// world is a NATS server with renewd's streams and public key.
type world struct {
	nc   *nats.Conn
	js   jetstream.JetStream
	keys *seal.Keyring
}

func newWorld(t *testing.T, prefix string, publishKey bool) world {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s, err := natsd.Start(t.Context(), natsd.Config{StoreDir: t.TempDir()})
	must(err)
	t.Cleanup(s.Shutdown)
	w := world{}
	w.nc, err = s.Connect()
	must(err)
	t.Cleanup(w.nc.Close)
	w.js, err = jetstream.New(w.nc)
	must(err)
	subjects, err := schema.NewSubjects(prefix)
	must(err)
	_, err = topology.Ensure(t.Context(), w.js,
		topology.Topology{Subjects: subjects}.WithDefaults())
	must(err)
	w.keys, err = seal.NewKeyring(time.Now())
	must(err)
	if publishKey {
		e, err := stream.NewEngine(w.js, stream.Config{Subjects: subjects})
		must(err)
		must(e.PublishKeys(t.Context(), w.keys.JWKS()))
	}
	return w
}

func (w world) publisher(t *testing.T, opts ...publishers.Option) *publishers.Publisher {
	t.Helper()
	p, err := publishers.New(w.nc, append([]publishers.Option{publishers.WithSource("/shop")},
		opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (w world) stored(t *testing.T, r publishers.Receipt) *jetstream.RawStreamMsg {
	t.Helper()
	s, err := w.js.Stream(t.Context(), r.Stream)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.GetMsg(t.Context(), r.Sequence)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestLoginIsSealed(t *testing.T) {
	for _, prefix := range []string{"", "acme.eu"} {
		w := newWorld(t, prefix, true)
		spans := tracetest.NewInMemoryExporter()
		tracer := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)).Tracer("test")
		p := w.publisher(t, publishers.WithPrefix(prefix), publishers.WithTracer(tracer))
		r, err := p.Login(t.Context(), "propelauth", "auth0|jane", publishers.Tokens{
			AccessToken:  "canary-a",
			RefreshToken: "canary-r",
			ExpiresIn:    time.Hour,
		})
		if err != nil {
			t.Fatal(err)
		}
		m := w.stored(t, r)
		if want := strings.TrimPrefix(
			prefix+".user.login.propelauth.auth0=7Cjane", ".",
		); m.Subject != want || strings.Contains(string(m.Data), "canary") {
			t.Errorf("stored on %s: %s", m.Subject, m.Data)
		}
		span := spans.GetSpans()[0]
		if tp := m.Header["traceparent"]; len(tp) != 1 ||
			!strings.Contains(tp[0], span.SpanContext.SpanID().String()) ||
			span.Name != "publish user.login" {
			t.Errorf("traceparent %v of span %s", tp, span.Name)
		}
		if m.Header["ce-id"][0] != r.ID || m.Header["ce-source"][0] != "/shop" {
			t.Errorf("header %v", m.Header)
		}
		var data schema.Login
		if err := json.Unmarshal(m.Data, &data); err != nil {
			t.Fatal(err)
		}
		l, err := w.keys.OpenLogin(data.Tokens)
		if err != nil || l.Provider != "propelauth" || l.User != "auth0|jane" ||
			l.Refresh.Reveal() != "canary-r" || time.Since(l.SealedAt) > time.Minute {
			t.Errorf("opened %+v, %v", l, err)
		}
	}
}

// A machine whose clock is wrong seals by the clock that it is given.
func TestAnotherClockDatesTheSeal(t *testing.T) {
	w := newWorld(t, "", true)
	wrong := time.Now().Add(-2 * time.Hour).UTC()
	p := w.publisher(t, publishers.WithClock(func() time.Time { return wrong }))
	r, err := p.Login(t.Context(), "propelauth", "u", publishers.Tokens{AccessToken: "a"})
	if err != nil {
		t.Fatal(err)
	}
	m := w.stored(t, r)
	var data schema.Login
	if err := json.Unmarshal(m.Data, &data); err != nil {
		t.Fatal(err)
	}
	l, err := w.keys.OpenLogin(data.Tokens)
	if err != nil || wrong.Sub(l.SealedAt).Abs() > time.Second ||
		m.Header["ce-time"][0] != wrong.Format(time.RFC3339Nano) {
		t.Errorf("sealed at %v, %v, dated %s", l.SealedAt, err, m.Header["ce-time"])
	}
}

func TestPublishedTwiceIsStoredOnce(t *testing.T) {
	w := newWorld(t, "", true)
	p := w.publisher(t)
	first, err := p.RefreshDue(t.Context(), "propelauth", "u", schema.RefreshDue{Reason: "webhook"},
		publishers.WithID("w1"))
	if err != nil || first.ID != "w1" || first.Duplicate {
		t.Fatal(first, err)
	}
	again, err := p.RefreshDue(t.Context(), "propelauth", "u", schema.RefreshDue{Reason: "webhook"},
		publishers.WithID("w1"))
	if err != nil || !again.Duplicate || again.Sequence != first.Sequence {
		t.Errorf("%+v, %v", again, err)
	}
}

// Source and id together are unique, and only for one user: the same id for another user, or of
// another source, is another event.
func TestOneIDForManyUsersIsManyEvents(t *testing.T) {
	w := newWorld(t, "", true)
	for _, source := range []string{"/shop", "/billing"} {
		p := w.publisher(t, publishers.WithSource(source))
		for _, user := range []string{"u1", "u2", "u3"} {
			for _, send := range []func() (publishers.Receipt, error){
				func() (publishers.Receipt, error) {
					return p.RefreshDue(t.Context(), "propelauth", user, schema.RefreshDue{},
						publishers.WithID("nightly"))
				},
				func() (publishers.Receipt, error) {
					return p.Login(t.Context(), "propelauth", user,
						publishers.Tokens{AccessToken: "a"}, publishers.WithID("nightly"))
				},
			} {
				if r, err := send(); err != nil || r.Duplicate || r.Source != source {
					t.Errorf("%s %s: %+v, %v", source, user, r, err)
				}
			}
		}
	}
}

func TestMistakesNameTheArgument(t *testing.T) {
	w := newWorld(t, "", true)
	p := w.publisher(t)
	ctx := t.Context()
	tokens := publishers.Tokens{AccessToken: "canary"}
	for field, call := range map[string]func() (publishers.Receipt, error){
		"provider": func() (publishers.Receipt, error) {
			return p.Login(ctx, "Propel", "u", tokens)
		},
		"user": func() (publishers.Receipt, error) {
			return p.Login(ctx, "propelauth", "a\nb", tokens)
		},
		"AccessToken": func() (publishers.Receipt, error) {
			return p.Login(ctx, "propelauth", "u", publishers.Tokens{})
		},
		"want": func() (publishers.Receipt, error) {
			return p.RefreshDue(ctx, "propelauth", "u", schema.RefreshDue{Want: "all"})
		},
		"min_valid_seconds": func() (publishers.Receipt, error) {
			return p.RefreshDue(ctx, "propelauth", "u", schema.RefreshDue{MinValidSeconds: -1})
		},
		"WithID": func() (publishers.Receipt, error) {
			return p.RefreshDue(ctx, "propelauth", "u", schema.RefreshDue{},
				publishers.WithID(strings.Repeat("x", 300)))
		},
		"WithID, a line break": func() (publishers.Receipt, error) {
			return p.RefreshDue(ctx, "propelauth", "u", schema.RefreshDue{},
				publishers.WithID("a\nb"))
		},
	} {
		field, _, _ := strings.Cut(field, ",")
		_, err := call()
		if m, ok := errors.AsType[*schema.Malformed](err); !ok || m.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	_, err := p.Login(ctx, "propelauth", "u", publishers.Tokens{
		AccessToken: strings.Repeat("canary", 20_000),
	})
	if err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("too large: %.200v", err)
	}
}

func TestMissingKeySaysWhatToDo(t *testing.T) {
	w := newWorld(t, "", false)
	_, err := w.publisher(t).Login(t.Context(), "propelauth", "u", publishers.Tokens{
		AccessToken: "a",
	})
	if err == nil || !strings.Contains(err.Error(), "WithJWKS") {
		t.Errorf("%v", err)
	}
	if _, err := w.publisher(t, publishers.WithJWKS(w.keys.JWKS())).Login(
		t.Context(), "propelauth", "u", publishers.Tokens{AccessToken: "a"},
	); err != nil {
		t.Error(err)
	}
}

// A publisher that pins renewd's keys seals to no other key, whatever stands in the bucket.
func TestAPinnedPublisherSealsToNoOtherKey(t *testing.T) {
	w := newWorld(t, "", true)
	other, err := seal.NewKeyring(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	login := func(p *publishers.Publisher) error {
		_, err := p.Login(t.Context(), "propelauth", "u", publishers.Tokens{AccessToken: "a"})
		return err
	}
	pinned := func() *publishers.Publisher {
		return w.publisher(t,
			publishers.WithKeyPin(pinOf(w.keys)))
	}
	if err := login(pinned()); err != nil {
		t.Error(err)
	}
	e, err := stream.NewEngine(w.js, stream.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.PublishKeys(t.Context(), other.JWKS()); err != nil {
		t.Fatal(err)
	}
	if err := login(pinned()); err == nil || !strings.Contains(err.Error(), "renewd keys list") ||
		!strings.Contains(err.Error(), pinOf(other)) {
		t.Errorf("another key in the bucket: %v", err)
	}
	if err := login(
		w.publisher(t, publishers.WithKeyPin(pinOf(w.keys), pinOf(other))),
	); err != nil {
		t.Errorf("both pinned: %v", err)
	}
	if err := login(w.publisher(
		t, publishers.WithKeyPin(pinOf(w.keys)), publishers.WithJWKS(other.JWKS()),
	)); err == nil {
		t.Error("a key set that is given is not held against the pins")
	}
}

// A publisher that trusts a root seals to the keys that the root has signed, whatever stands in the
// bucket.
func TestAPublisherWithARootSealsToNoOtherKey(t *testing.T) {
	w := newWorld(t, "", true)
	other, err := seal.NewKeyring(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	root, public, err := seal.NewRoot()
	if err != nil {
		t.Fatal(err)
	}
	foreign, _, err := seal.NewRoot()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(root []byte, ring *seal.Keyring, life time.Duration) []byte {
		signed, err := seal.SignKeys(root, ring.JWKS(), time.Now(), life)
		if err != nil {
			t.Fatal(err)
		}
		return []byte(signed)
	}
	e, err := stream.NewEngine(w.js, stream.Config{})
	if err != nil {
		t.Fatal(err)
	}
	login := func(opts ...publishers.Option) error {
		p := w.publisher(t, append(opts, publishers.WithKeyRoot(public))...)
		_, err := p.Login(t.Context(), "propelauth", "u", publishers.Tokens{AccessToken: "a"})
		return err
	}
	if err := login(); err == nil || !strings.Contains(err.Error(), "renewd keys sign") {
		t.Errorf("nothing is signed: %v", err)
	}
	for what, tt := range map[string]struct {
		signed []byte
		ok     bool
	}{
		"signed":       {sign(root, w.keys, time.Hour), true},
		"another root": {sign(foreign, other, time.Hour), false},
		"over":         {sign(root, w.keys, -time.Second), false},
		"not signed":   {other.JWKS(), false},
	} {
		if err := e.PublishSignedKeys(t.Context(), tt.signed); err != nil {
			t.Fatal(err)
		}
		err := login()
		const hint = "renewd keys publish --signed"
		if (err == nil) != tt.ok || err != nil && !strings.Contains(err.Error(), hint) {
			t.Errorf("%s: %v", what, err)
		}
		if err := login(publishers.WithJWKS(tt.signed)); (err == nil) != tt.ok {
			t.Errorf("%s, given: %v", what, err)
		}
	}
	// What others put into the bucket as the plain set is not looked at.
	if err := e.PublishSignedKeys(t.Context(), sign(root, w.keys, time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := e.PublishKeys(t.Context(), other.JWKS()); err != nil {
		t.Fatal(err)
	}
	if err := login(publishers.WithKeyPin(pinOf(w.keys))); err != nil {
		t.Errorf("the plain set is another one's: %v", err)
	}
	if err := login(publishers.WithKeyPin(pinOf(other))); err == nil {
		t.Error("the signed set is not held against the pins")
	}
	_, err = publishers.New(w.nc, publishers.WithKeyRoot("x"))
	if err == nil || !strings.Contains(err.Error(), "WithKeyRoot") {
		t.Errorf("a root that is none: %v", err)
	}
}

func pinOf(k *seal.Keyring) (pin string) {
	for _, key := range k.Keys() {
		if key.Use == "login" {
			pin = key.Thumbprint
		}
	}
	return pin
}

func TestTokensCannotBePrinted(t *testing.T) {
	tokens := publishers.Tokens{AccessToken: "canary", RefreshToken: "canary", IDToken: "canary"}
	js, err := json.Marshal(struct{ T publishers.Tokens }{tokens})
	if text := fmt.Sprintf("%v %+v %#v %s %s", tokens, tokens, tokens, &tokens, js); err != nil ||
		strings.Contains(text, "canary") {
		t.Errorf("%s, %v", text, err)
	}
}

// A service tells renewd that a user signed in, right after its own OAuth callback.
func ExamplePublisher_Login() {
	signedIn := func(
		ctx context.Context, nc *nats.Conn, userID, access, refresh string, expiresIn time.Duration,
	) error {
		p, err := publishers.New(nc, publishers.WithSource("/shop"))
		if err != nil {
			return err
		}
		_, err = p.Login(ctx, "propelauth", userID, publishers.Tokens{
			AccessToken:  access,
			RefreshToken: refresh,
			ExpiresIn:    expiresIn,
		})
		return err
	}
	_ = signedIn
}

// A webhook says that a profile changed: the service asks for it to be fresh now.
func ExamplePublisher_RefreshDue() {
	profileChanged := func(
		ctx context.Context, p *publishers.Publisher, userID, webhookID string,
	) error {
		_, err := p.RefreshDue(ctx, "propelauth", userID,
			schema.RefreshDue{Reason: "user.updated webhook"}, publishers.WithID(webhookID))
		return err
	}
	_ = profileChanged
}
