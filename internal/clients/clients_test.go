package clients_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/clients"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/testkit/streams"
)

const bucket = "renewd_clients"

func open(t *testing.T) (jetstream.JetStream, jetstream.KeyValue) {
	t.Helper()
	js := streams.Start(t, natsd.Config{})
	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: bucket})
	if err != nil {
		t.Fatal(err)
	}
	return js, kv
}

func newClient(t *testing.T, name string) (clients.Client, string) {
	t.Helper()
	c, secret, err := clients.New(name, []clients.Right{clients.Read}, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return c, secret
}

func TestNewRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		name      string
		may       []clients.Right
		providers []string
		says      string
	}{
		"no name":        {"", []clients.Right{clients.Read}, nil, "name"},
		"a wrong name":   {"Shop!", []clients.Right{clients.Read}, nil, "name"},
		"no rights":      {"shop", nil, nil, "may"},
		"a wrong right":  {"shop", []clients.Right{"everything"}, nil, "everything"},
		"a bad provider": {"shop", []clients.Right{clients.Read}, []string{"Acme!"}, "provider"},
	} {
		if _, secret, err := clients.New(tt.name, tt.may, tt.providers, time.Now()); err == nil ||
			!strings.Contains(err.Error(), tt.says) ||
			secret != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMayDo(t *testing.T) {
	all, _, _ := clients.New("all", []clients.Right{clients.Read}, nil, time.Now())
	bound, _, _ := clients.New("bound", []clients.Right{clients.Read}, []string{"acme"}, time.Now())
	for _, c := range []struct {
		who      clients.Client
		right    clients.Right
		provider string
		want     bool
	}{
		{all, clients.Read, "acme", true},
		{all, clients.Read, "", true},
		{all, clients.Token, "acme", false},
		{bound, clients.Read, "acme", true},
		{bound, clients.Read, "globex", false},
		{bound, clients.Read, "", false},
		{clients.Client{}, clients.Read, "acme", false},
	} {
		if got := c.who.MayDo(c.right, c.provider); got != c.want {
			t.Errorf("%s may %s for %q: %t", c.who.Name, c.right, c.provider, got)
		}
	}
}

// A registry follows the bucket: who is added gets in, who is removed does not, and what was
// removed while nothing watched is gone too.
func TestARegistryFollowsTheBucket(t *testing.T) {
	js, kv := open(t)
	shop, shopSecret := newClient(t, "shop")
	if err := clients.Add(t.Context(), kv, shop); err != nil {
		t.Fatal(err)
	}
	if err := clients.Add(t.Context(), kv, shop); !errors.Is(err, clients.ErrExists) {
		t.Errorf("added twice: %v", err)
	}
	r := &clients.Registry{}
	if _, ok := r.Authenticate(shopSecret); ok {
		t.Error("a registry that knows nothing let a client in")
	}
	watch := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		ready := make(chan struct{})
		var done sync.WaitGroup
		done.Go(
			func() {
				r.Watch(ctx, js, bucket, func() { close(ready) }, slog.New(slog.DiscardHandler))
			},
		)
		<-ready
		return func() { cancel(); done.Wait() }
	}
	stop := watch()
	if c, ok := r.Authenticate(shopSecret); !ok || c.Name != "shop" ||
		!c.MayDo(clients.Read, "acme") {
		t.Errorf("%+v %t", c, ok)
	}
	for name, wrong := range map[string]string{
		"nothing":        "",
		"another secret": shopSecret[:len(shopSecret)-4] + "aaaa",
		"a longer one":   shopSecret + "a",
		"a name alone":   "renewd_shop.",
		"no prefix":      strings.TrimPrefix(shopSecret, "renewd_"),
		"another client": strings.Replace(shopSecret, "shop", "crm", 1),
	} {
		if _, ok := r.Authenticate(wrong); ok {
			t.Errorf("%s was let in", name)
		}
	}
	crm, crmSecret := newClient(t, "crm")
	if err := clients.Add(t.Context(), kv, crm); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "crm is known", func() bool {
		_, ok := r.Authenticate(crmSecret)
		return ok
	})
	if err := clients.Remove(t.Context(), kv, "shop"); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "shop is gone", func() bool {
		_, ok := r.Authenticate(shopSecret)
		return !ok
	})
	stop()

	if err := clients.Remove(t.Context(), kv, "crm"); err != nil {
		t.Fatal(err)
	}
	defer watch()()
	if _, ok := r.Authenticate(crmSecret); ok {
		t.Error("a client that was removed while nothing watched is let in")
	}
	if err := clients.Remove(t.Context(), kv, "crm"); !errors.Is(err, clients.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
}

func TestWhatCannotBeReadIsListedAsAnError(t *testing.T) {
	_, kv := open(t)
	if all, err := clients.List(t.Context(), kv); err != nil || all != nil {
		t.Errorf("%v %v", all, err)
	}
	for _, name := range []string{"shop", "crm"} {
		c, _ := newClient(t, name)
		if err := clients.Add(t.Context(), kv, c); err != nil {
			t.Fatal(err)
		}
	}
	for name, stored := range map[string]string{
		"later":  `{"v":2}`,
		"broken": `{`,
		"bare":   `{"v":1,"may":["read"]}`,
	} {
		if _, err := kv.Put(t.Context(), name, []byte(stored)); err != nil {
			t.Fatal(err)
		}
	}
	all, err := clients.List(t.Context(), kv)
	if len(all) != 2 || all[0].Name != "crm" || all[1].Name != "shop" {
		t.Errorf("%+v", all)
	}
	for _, name := range []string{"later", "broken", "bare"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not in %v", name, err)
		}
	}
}
