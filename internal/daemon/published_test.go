package daemon

import (
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/stream"
)

// Another one's public key in NATS is noticed, told and replaced; an older one of the same keyring
// is right.
func TestAForeignPublicKeyIsPutRight(t *testing.T) {
	t.Parallel()
	js := streams(t)
	p := &Resources{log: slog.New(slog.DiscardHandler)}
	var err error
	if p.Engine, err = stream.NewEngine(js, stream.Config{}); err != nil {
		t.Fatal(err)
	}
	if p.published.found, err = noop.NewMeterProvider().Meter("").Int64Counter("c"); err != nil {
		t.Fatal(err)
	}
	ring := func(ring *seal.Keyring, err error) *seal.Keyring { return mustRing(t, ring, err) }
	old := ring(seal.NewKeyring(time.Now()))
	own, other := ring(ring(old.Rotate(time.Now())).Promote()), ring(seal.NewKeyring(time.Now()))
	p.Keys = NewLiveKeys(nil, own, nil)
	id := regexp.MustCompile(`"kid":"[^"]+"`)
	disguised := id.ReplaceAll(other.JWKS(), id.Find(own.JWKS()))
	beside := []byte(strings.Replace(string(own.JWKS()), `{"keys":[`,
		strings.TrimSuffix(string(other.JWKS()), "]}")+",", 1))
	for _, c := range []struct {
		name       string
		put, after []byte
		foreign    bool
	}{
		{"its own", own.JWKS(), own.JWKS(), false},
		{"the one of before the promotion", old.JWKS(), old.JWKS(), false},
		{"another one's", other.JWKS(), own.JWKS(), true},
		{"once it is right", own.JWKS(), own.JWKS(), false},
		{"another one's under the id of its own", disguised, own.JWKS(), true},
		{"another one's beside its own", beside, own.JWKS(), true},
	} {
		if err := p.Engine.PublishKeys(t.Context(), c.put); err != nil {
			t.Fatal(err)
		}
		p.lookAtPublished(t.Context())
		there, err := p.Engine.Keys(t.Context())
		if err != nil || string(there) != string(c.after) {
			t.Errorf("%s: %s is there, %v", c.name, there, err)
		}
		if foreign := p.askPublished(t.Context()) != nil; foreign != c.foreign {
			t.Errorf("%s: unready %t", c.name, foreign)
		}
	}
}
