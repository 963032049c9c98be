package topology_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
)

func TestPlanIsIdempotent(t *testing.T) {
	js := start(t, natsd.Config{})
	for _, prefix := range []string{"", "acme.eu"} {
		want := wanted(t, prefix)
		c, err := topology.Ensure(t.Context(), js, want)
		must(t, err)
		if len(c.Items) != 13 || !c.Pending() {
			t.Errorf("the first plan has %d items, want 9 streams and 4 consumers to create:\n%s",
				len(c.Items), c)
		}
		for _, i := range c.Items {
			if i.Action != topology.Create {
				t.Errorf("%s %s: %s, want create", i.Kind, i.Name, i.Action)
			}
		}
		c, err = topology.Ensure(t.Context(), js, want)
		must(t, err)
		if c.Pending() {
			t.Errorf("the second plan changes something:\n%s", c)
		}
	}
}

// An installation from before there were logins put off, and commands with their own subjects, gets
// these subjects and durables without force, and keeps its timers.
func TestSubjectsAreAddedWithoutForce(t *testing.T) {
	js := start(t, natsd.Config{})
	want := wanted(t, "")
	ensure(t, js, want)
	must(t, engine(t, js, stream.Config{}).Arm(t.Context(), alice, time.Now().Add(time.Hour),
		work("x")))
	must(t, js.DeleteConsumer(t.Context(), topology.Renewals, topology.ConsumerDeferred))
	s, err := js.Stream(t.Context(), topology.Renewals)
	must(t, err)
	before := s.CachedInfo().Config
	before.Subjects = []string{"renewal.timer.*.*", "renewal.due.*.*"}
	_, err = js.UpdateStream(t.Context(), before)
	must(t, err)
	renew, err := s.Consumer(t.Context(), topology.ConsumerRenew(alice.Provider))
	must(t, err)
	durable := renew.CachedInfo().Config
	durable.FilterSubject = "renewal.due.propelauth.*"
	_, err = s.UpdateConsumer(t.Context(), durable)
	must(t, err)
	leave := readFrom(t, js.Conn(), topology.Renewals, durable.Durable)
	if c, err := topology.Ensure(t.Context(), js, want); !errors.Is(err, topology.ErrDestructive) {
		t.Errorf("changed under a worker of before: %v\n%s", err, c)
	}
	leave()
	c, err := topology.Ensure(t.Context(), js, want)
	if err != nil || !c.Pending() {
		t.Fatalf("%v\n%s", err, c)
	}
	if c, err := topology.Plan(t.Context(), js, want); err != nil || c.Pending() ||
		messages(t, js, topology.Renewals) != 1 {
		t.Errorf("%v, %d timers\n%s", err, messages(t, js, topology.Renewals), c)
	}
}

// readFrom asks for a durable's next message, as a worker does, until leave is called.
func readFrom(t *testing.T, nc *nats.Conn, on, durable string) (leave func()) {
	t.Helper()
	inbox, err := nc.SubscribeSync(nats.NewInbox())
	must(t, err)
	next := "$JS.API.CONSUMER.MSG.NEXT." + on + "." + durable
	must(t, nc.PublishRequest(next, inbox.Subject, []byte(`{"batch":1,"expires":60000000000}`)))
	must(t, nc.Flush())
	return func() {
		t.Helper()
		must(t, inbox.Unsubscribe())
		must(t, nc.Flush())
	}
}

func TestBucketsAnswerFromTheLeader(t *testing.T) {
	js, _ := fresh(t)
	for _, bucket := range []string{
		topology.BucketProviders, topology.BucketKeys, topology.BucketGrants,
	} {
		kv, err := js.KeyValue(t.Context(), bucket)
		must(t, err)
		revision, err := kv.Create(t.Context(), "k", []byte("1"))
		must(t, err)
		if _, err := kv.Update(t.Context(), "k", []byte("2"), revision+1); err == nil {
			t.Errorf("%s: an update of another revision went through", bucket)
		}
		_, err = kv.Update(t.Context(), "k", []byte("2"), revision)
		must(t, err)
		must(t, kv.Delete(t.Context(), "k"))
		s, err := js.Stream(t.Context(), "KV_"+bucket)
		must(t, err)
		if s.CachedInfo().Config.AllowDirect {
			t.Errorf("%s allows direct reads", bucket)
		}
	}
}

func TestPlanShowsAndMakesChanges(t *testing.T) {
	js := start(t, natsd.Config{})
	ctx := t.Context()
	want := wanted(t, "")
	want.Providers = append(want.Providers, topology.Provider{ID: "okta"})
	ensure(t, js, want)

	// What an operator set beside our settings stays.
	s, err := js.Stream(ctx, topology.Outcomes)
	must(t, err)
	config := s.CachedInfo().Config
	config.Metadata = map[string]string{"owner": "platform"}
	config.AllowDirect = false
	_, err = js.UpdateStream(ctx, config)
	must(t, err)
	until := time.Now().Add(time.Hour)
	_, err = js.PauseConsumer(ctx, topology.Renewals, topology.ConsumerRenew("propelauth"), until)
	must(t, err)

	want = wanted(t, "")
	want.Providers[0].Concurrency = 9
	c, err := topology.Plan(ctx, js, want)
	must(t, err)
	const text = `= unchanged stream LOGINS
= unchanged stream REQUESTS
= unchanged stream RENEWALS
~ update    stream OUTCOMES
    allow_direct: false -> true
= unchanged stream PARKED
= unchanged stream KV_renewd_providers
= unchanged stream KV_renewd_keys
= unchanged stream KV_renewd_clients
= unchanged stream KV_renewd_grants
= unchanged consumer LOGINS/login
= unchanged consumer REQUESTS/request
= unchanged consumer RENEWALS/login-deferred
~ update    consumer RENEWALS/renew-propelauth
    max_ack_pending: 4 -> 9
! left      consumer RENEWALS/renew-okta
    provider okta is not in the settings: its grants are not renewed. ` +
		`If that is for good: nats consumer rm RENEWALS renew-okta
`
	if got := c.String(); got != text {
		t.Errorf("plan:\n%s\nwant:\n%s", got, text)
	}
	doc, err := json.Marshal(c)
	must(t, err)
	item := `{"kind":"stream","name":"OUTCOMES","action":"update",` +
		`"differences":[{"field":"allow_direct","have":"false","want":"true"}]}`
	if !strings.Contains(string(doc), item) {
		t.Errorf("plan as JSON: %s", doc)
	}
	must(t, topology.Apply(ctx, js, c))

	s, err = js.Stream(ctx, topology.Outcomes)
	must(t, err)
	if got := s.CachedInfo().Config; got.Metadata["owner"] != "platform" || !got.AllowDirect {
		t.Errorf("after apply OUTCOMES has %+v", got)
	}
	consumer, err := js.Consumer(ctx, topology.Renewals, topology.ConsumerRenew("propelauth"))
	must(t, err)
	if info := consumer.CachedInfo(); !info.Paused || info.Config.MaxAckPending != 9 {
		t.Errorf("after apply the durable has paused %v and max_ack_pending %d, want true and 9",
			info.Paused, info.Config.MaxAckPending)
	}
	if _, err := js.Consumer(ctx, topology.Renewals, topology.ConsumerRenew("okta")); err != nil {
		t.Errorf("the durable of a provider that left the settings: %v, want it left alone", err)
	}
}

func TestPlanRefusesToDestroy(t *testing.T) {
	for name, c := range map[string]struct {
		have     func(*jetstream.StreamConfig)
		want     func(*topology.Topology)
		says     string
		forcible bool
	}{
		"shorter audit log": {
			func(*jetstream.StreamConfig) {},
			func(w *topology.Topology) { w.OutcomeMaxAge = time.Hour },
			"max_age is 9600h0m0s, the settings want 1h0m0s", true,
		},
		"subject removed": {
			func(s *jetstream.StreamConfig) { s.Subjects = append(s.Subjects, "mine.>") }, nil,
			"its publishers would find no stream", true,
		},
		"retention": {
			func(s *jetstream.StreamConfig) { s.Retention = jetstream.WorkQueuePolicy }, nil,
			"nats stream rm OUTCOMES", false,
		},
		"storage": {
			func(s *jetstream.StreamConfig) { s.Storage = jetstream.MemoryStorage }, nil,
			"storage is Memory, the settings want File", false,
		},
		"deny purge": {
			func(s *jetstream.StreamConfig) { s.DenyPurge = true }, nil, "deny_purge is true",
			false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			js := start(t, natsd.Config{})
			want := wanted(t, "")
			for _, s := range want.WithDefaults().Streams() {
				if s.Name == topology.Outcomes {
					c.have(&s)
				}
				_, err := js.CreateStream(t.Context(), s)
				must(t, err)
			}
			if c.want != nil {
				c.want(&want)
			}
			plan, err := topology.Plan(t.Context(), js, want)
			must(t, err)
			err = topology.Apply(t.Context(), js, plan)
			if !errors.Is(err, topology.ErrDestructive) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("Apply = %v, want it refused for %q", err, c.says)
			}
			if again, err := topology.Plan(t.Context(), js, want); err != nil ||
				again.String() != plan.String() {
				t.Errorf("a refused plan changed something: %v\n%s", err, again)
			}
			plan.Force = true
			switch err := topology.Apply(t.Context(), js, plan); {
			case c.forcible && err != nil:
				t.Errorf("with force: %v", err)
			case !c.forcible && !errors.Is(err, topology.ErrDestructive):
				t.Errorf("with force: %v, but a server cannot make this change", err)
			}
		})
	}
}

func TestRenewalsLosesStrangersLimits(t *testing.T) {
	js, _ := fresh(t)
	s, err := js.Stream(t.Context(), topology.Renewals)
	must(t, err)
	config := s.CachedInfo().Config
	config.MaxMsgs, config.MaxAge = 10, time.Hour
	_, err = js.UpdateStream(t.Context(), config)
	must(t, err)
	ensure(t, js, wanted(t, ""))
	s, err = js.Stream(t.Context(), topology.Renewals)
	must(t, err)
	if got := s.CachedInfo().Config; got.MaxMsgs != -1 || got.MaxAge != 0 {
		t.Errorf("limits that evict timers stay: max_msgs %d, max_age %v", got.MaxMsgs, got.MaxAge)
	}
}

func TestTopologyValidates(t *testing.T) {
	for want, change := range map[string]func(*topology.Topology){
		"replicas":        func(w *topology.Topology) { w.Replicas = 2 },
		"outcome_max_age": func(w *topology.Topology) { w.OutcomeMaxAge = time.Second },
		"duplicates":      func(w *topology.Topology) { w.Duplicates = time.Millisecond },
		"providers[1]": func(w *topology.Topology) {
			w.Providers = append(w.Providers, w.Providers[0])
		},
		"providers[0]":             func(w *topology.Topology) { w.Providers[0].ID = "A.b" },
		"providers[0].concurrency": func(w *topology.Topology) { w.Providers[0].Concurrency = -1 },
	} {
		w := wanted(t, "")
		change(&w)
		if _, err := topology.Plan(t.Context(), nil, w); err == nil ||
			!strings.Contains(err.Error(), want+":") {
			t.Errorf("Plan = %v, want an error that names %s", err, want)
		}
	}
}

func TestReplicasNeedACluster(t *testing.T) {
	js := start(t, natsd.Config{})
	want := wanted(t, "")
	want.Replicas = 3
	if _, err := topology.Ensure(t.Context(), js, want); err == nil ||
		!strings.Contains(err.Error(), "set replicas to 1") {
		t.Errorf("Ensure = %v", err)
	}
}

// TestCommandStreams holds what services rely on: a user's newest eight commands wait beside each
// other, and a malformed subject is kept. No sender's command replaces another's.
func TestCommandStreams(t *testing.T) {
	js, _ := fresh(t)
	for _, subject := range []string{
		"user.login.propelauth.u1", "user.login.propelauth.u1", "user.login.x",
		"from.shop.user.login.propelauth.u1", "from.shop.user.login.propelauth.u1",
		"from.crm.user.login.propelauth.u1", "from.crm.user.login.x",
		"user.refresh_due.propelauth.u1", "user.refresh_due.propelauth.u1",
		"user.refresh_due.propelauth.jane@example.com", "user.refresh_due.x",
		"from.shop.user.refresh_due.propelauth.u1",
		"from.shop.user.refresh_due.propelauth.jane@example.com",
	} {
		_, err := js.Publish(t.Context(), subject, nil)
		must(t, err)
	}
	if n := messages(t, js, topology.Logins); n != 7 {
		t.Errorf("%d logins, want 7", n)
	}
	for range 9 {
		_, err := js.Publish(t.Context(), "from.crm.user.login.propelauth.u1", nil)
		must(t, err)
	}
	if n := messages(t, js, topology.Logins); n != 7-1+8 {
		t.Errorf("%d logins after ten of one user and sender, want 14", n)
	}
	if n := messages(t, js, topology.Requests); n != 6 {
		t.Errorf("%d requests, want 6", n)
	}
	for stream, durable := range map[string]string{
		topology.Logins:   topology.ConsumerLogin,
		topology.Requests: topology.ConsumerRequest,
	} {
		c, err := js.Consumer(t.Context(), stream, durable)
		must(t, err)
		held, out := messages(t, js, stream), uint64(0)
		batch, err := c.Fetch(int(held)) // the server's count of what waits may lag behind
		must(t, err)
		for range batch.Messages() {
			out++
		}
		if out != held {
			t.Errorf("%s: %d of %d are handed out", stream, out, held)
		}
	}
	if _, err := js.Publish(
		t.Context(), "user.login.propelauth.u1", make([]byte, 65<<10),
	); err == nil {
		t.Error("a login of 65 KiB was taken")
	}
}

func TestCheckFolder(t *testing.T) {
	dir := t.TempDir()
	run := func(key string, use func(js jetstream.JetStream)) {
		t.Helper()
		s, err := natsd.Start(t.Context(), natsd.Config{StoreDir: dir, Key: secret.New(key)})
		must(t, err)
		defer s.Shutdown()
		nc, err := s.Connect()
		must(t, err)
		defer nc.Close()
		js, err := jetstream.New(nc)
		must(t, err)
		use(js)
	}
	run("right", func(js jetstream.JetStream) {
		must(t, topology.CheckFolder(t.Context(), js, dir))
		must(t, topology.CheckFolder(t.Context(), js, filepath.Join(dir, "elsewhere")))
		ensure(t, js, wanted(t, ""))
		must(t, topology.CheckFolder(t.Context(), js, dir))
	})
	run("wrong", func(js jetstream.JetStream) {
		err := topology.CheckFolder(t.Context(), js, dir)
		if !errors.Is(err, topology.ErrUnreadable) ||
			!strings.Contains(err.Error(), topology.Renewals) {
			t.Errorf("CheckFolder under a wrong key = %v", err)
		}
	})
	run("right", func(js jetstream.JetStream) {
		must(t, topology.CheckFolder(t.Context(), js, dir))
	})
	if _, err := os.Stat(filepath.Join(dir, "jetstream")); err != nil {
		t.Errorf("the folder CheckFolder looks into: %v", err)
	}
}

// before are the streams and durables as the version without senders made them.
func before(t *testing.T, js jetstream.JetStream, want topology.Topology) {
	t.Helper()
	for _, s := range want.WithDefaults().Streams() {
		if len(s.Subjects) == 2 && strings.HasPrefix(s.Subjects[1], "from.") {
			s.Subjects = s.Subjects[:1]
		}
		_, err := js.CreateStream(t.Context(), s)
		must(t, err)
	}
	for _, c := range want.WithDefaults().Consumers() {
		switch c.Stream {
		case topology.Logins:
			c.Config.FilterSubject = "user.login.>"
		case topology.Requests:
			c.Config.FilterSubject = "user.refresh_due.>"
		}
		_, err := js.CreateConsumer(t.Context(), c.Stream, c.Config)
		must(t, err)
	}
}

// The streams of the version without senders take commands with a sender once the changes are
// applied, and lose no command that waits. Until then commands without a sender go on.
func TestStreamsOfBeforeSendersGetTheirs(t *testing.T) {
	js := start(t, natsd.Config{})
	ctx := t.Context()
	want := wanted(t, "")
	before(t, js, want)
	for _, subject := range []string{"user.login.propelauth.u1", "user.refresh_due.propelauth.u1"} {
		_, err := js.Publish(ctx, subject, nil)
		must(t, err)
	}
	c, err := topology.Plan(ctx, js, want)
	must(t, err)
	if !c.Pending() || !c.OnlySenders() {
		t.Errorf("only the senders are missing:\n%s", c)
	}
	e := engine(t, js, stream.Config{})
	if waits, err := e.LoginWaits(ctx, grant.Key{
		Provider: "propelauth",
		User:     "u1",
	}); err != nil || !waits {
		t.Errorf("LoginWaits before = %v, %v", waits, err)
	}
	m := next(t, js, topology.Logins, topology.ConsumerLogin, time.Minute)
	if m == nil {
		t.Fatal("the login did not come before the streams were applied")
	}

	must(t, topology.Apply(ctx, js, c))
	ack(t, m)
	if c, err := topology.Plan(ctx, js, want); err != nil || c.Pending() {
		t.Errorf("after apply: %v\n%s", err, c)
	}
	for _, subject := range []string{
		"from.shop.user.login.propelauth.u1", "from.shop.user.refresh_due.propelauth.u2",
	} {
		_, err := js.Publish(ctx, subject, nil)
		must(t, err)
	}
	if m := next(t, js, topology.Logins, topology.ConsumerLogin, time.Minute); m == nil ||
		m.Subject() != "from.shop.user.login.propelauth.u1" {
		t.Errorf("the login with a sender did not come")
	}
	for _, subject := range []string{
		"user.refresh_due.propelauth.u1", "from.shop.user.refresh_due.propelauth.u2",
	} {
		if m := next(t, js, topology.Requests, topology.ConsumerRequest, time.Minute); m == nil ||
			m.Subject() != subject {
			t.Errorf("%s did not come", subject)
		}
	}
	if waits, err := e.LoginWaits(ctx, grant.Key{
		Provider: "propelauth",
		User:     "u1",
	}); err != nil || !waits {
		t.Errorf("LoginWaits of a login with a sender = %v, %v", waits, err)
	}
	if waits, err := e.LoginWaits(ctx, grant.Key{
		Provider: "propelauth",
		User:     "u2",
	}); err != nil || waits {
		t.Errorf("LoginWaits of nobody = %v, %v", waits, err)
	}
}

func TestOnlySendersMeansOnly(t *testing.T) {
	js := start(t, natsd.Config{})
	want := wanted(t, "")
	before(t, js, want)
	want.Providers[0].Concurrency = 9
	if c, err := topology.Plan(t.Context(), js, want); err != nil || c.OnlySenders() {
		t.Errorf("a durable differs too: %v\n%s", err, c)
	}
	want = wanted(t, "")
	want.Providers = append(want.Providers, topology.Provider{ID: "okta"})
	if c, err := topology.Plan(t.Context(), js, want); err != nil || c.OnlySenders() {
		t.Errorf("a durable is missing too: %v\n%s", err, c)
	}
	ensure(t, js, want)
	if c, err := topology.Plan(t.Context(), js, want); err != nil || c.OnlySenders() {
		t.Errorf("nothing is missing: %v\n%s", err, c)
	}
}
