package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// natsServer builds the NATS server that go.mod names, once, and returns where it is.
var natsServer = sync.OnceValues(func() (string, error) { return built("nats-server", "github.com/nats-io/nats-server/v2") })

// natsAccounts is a nats-server that runs deploy/nats/nats.conf, with everything but its address and
// folder as in the file.
type natsAccounts struct {
	*process
	url   string
	users map[string]nats.Option // how each connects; nil: with the password of its name
}

func passwordOf(user string) string { return "password-of-" + user }

func startNATSAccounts(t *testing.T) natsAccounts {
	t.Helper()
	return startNATSAccountsIn(t, t.TempDir())
}

func startNATSAccountsIn(t *testing.T, folder string) natsAccounts {
	t.Helper()
	shipped := readFile(t, "deploy/nats/nats.conf")
	const store = `store_dir: "/data"`
	if strings.Count(shipped, store) != 1 {
		t.Fatalf("deploy/nats/nats.conf: want %s once", store)
	}
	conf := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(conf, []byte(strings.Replace(shipped, store, fmt.Sprintf("store_dir: %q", folder), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(must(natsServer())(t), "--config", conf)
	cmd.Env = os.Environ()
	for _, user := range []string{"renewd", "operator", "signin", "shop"} {
		cmd.Env = append(cmd.Env, "RENEWD_NATS_"+strings.ToUpper(user)+"_PASSWORD="+passwordOf(user))
	}
	ports := t.TempDir()
	cmd.Args = append(cmd.Args, onFreePort(ports)...)
	return startNATS(t, cmd, ports)
}

// eachServer runs a test against all servers that know accounts: nats-server with passwords, and in
// operator mode, and the embedded one.
func eachServer(t *testing.T, test func(t *testing.T, n natsAccounts)) {
	t.Helper()
	t.Run("nats-server", func(t *testing.T) { test(t, startNATSAccounts(t)) })
	t.Run("operator mode", func(t *testing.T) { test(t, startNATSOperator(t)) })
	t.Run("embedded", func(t *testing.T) {
		for _, user := range []string{"renewd", "operator", "signin", "shop"} {
			t.Setenv("RENEWD_NATS_"+strings.ToUpper(user)+"_PASSWORD", passwordOf(user))
		}
		s := must(natsd.Start(t.Context(), natsd.Config{
			StoreDir: t.TempDir(), Listen: "127.0.0.1:0", Auth: natsd.Auth{Accounts: root + "/deploy/nats/nats.conf"},
		}))(t)
		t.Cleanup(s.Shutdown)
		test(t, natsAccounts{url: s.ClientURL()})
	})
}

// onFreePort are the arguments of a nats-server that listens on this machine, on a port that it
// writes into the folder.
func onFreePort(ports string) []string {
	return []string{"--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir", ports}
}

// startNATS starts a nats-server with the arguments onFreePort, and waits until it listens.
func startNATS(t *testing.T, cmd *exec.Cmd, ports string) natsAccounts {
	t.Helper()
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	n := natsAccounts{process: start(t, cmd)}
	eventually(t, startTimeout, func() (err error) {
		if err := n.running(); err != nil {
			return err
		}
		n.url, err = listens(filepath.Join(ports, fmt.Sprintf("nats-server_%d.ports", cmd.Process.Pid)))
		return err
	})
	return n
}

// listens is the address in a server's file of ports, which it writes once it takes connections.
func listens(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	var at struct{ Nats []string }
	if err := json.Unmarshal(data, &at); err != nil || len(at.Nats) == 0 {
		return "", fmt.Errorf("%s: %q: %w", file, data, err)
	}
	return at.Nats[0], nil
}

func startServer(t *testing.T, opts *server.Options, folder string) *server.Server {
	t.Helper()
	opts.StoreDir, opts.DontListen, opts.NoLog, opts.NoSigs = folder, true, true, true
	ns := must(server.NewServer(opts))(t)
	ns.Start()
	t.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("the NATS server did not start")
	}
	return ns
}

// as connects as one of the users.
func (n natsAccounts) as(t *testing.T, user string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	show := n.users[user]
	if n.users == nil {
		show = nats.UserInfo(user, passwordOf(user))
	}
	opts = append(opts, show, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	nc := must(nats.Connect(n.url, opts...))(t)
	t.Cleanup(nc.Close)
	return nc
}

// asRenewd connects as renewd, to streams that are made.
func (n natsAccounts) asRenewd(t *testing.T) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc := n.as(t, "renewd")
	js := must(jetstream.New(nc))(t)
	must(stream.Ensure(t.Context(), js, stream.Topology{Grants: true, Providers: []stream.Provider{{ID: "acme", Concurrency: 4}}}))(t)
	return nc, js
}

// What renewd does on the server, it must be able to do as the user renewd.
func TestUserRenewdSuffices(t *testing.T) {
	n := startNATSAccounts(t)
	nc := n.as(t, "renewd")
	js := must(jetstream.New(nc))(t)
	ctx := t.Context()
	topology := stream.Topology{Grants: true, Providers: []stream.Provider{{ID: "acme", Concurrency: 4}}}
	must(stream.Ensure(ctx, js, topology))(t)
	must(stream.Ensure(ctx, js, topology))(t) // the second one compares

	engine := must(stream.NewEngine(js, stream.Config{}))(t)
	key := grant.Key{Provider: "acme", User: "u1"}
	event := schema.Event{ID: "e1", Source: "/renewd", Type: schema.UserSynced, Provider: "acme", User: "u1", Time: time.Now(), Data: []byte("{}")}
	for name, do := range map[string]func() error{
		"clock":   func() error { return engine.SyncClock(ctx) },
		"keys":    func() error { return engine.PublishKeys(ctx, []byte(`{"keys":[]}`)) },
		"publish": func() error { return engine.Publish(ctx, event) },
		"arm":     func() error { return engine.Arm(ctx, key, time.Now().Add(time.Hour), grant.Work{}) },
		"retire": func() error {
			_, _, published := engine.KeysSince(ctx)
			_, kept := engine.LoginsKept(ctx)
			_, noted := engine.Retired(ctx, "k1")
			return errors.Join(
				published, kept, noted, engine.NoteRetired(ctx, "k1"),
				engine.EachLogin(ctx, func(schema.Event, error) {}), engine.EachParked(ctx, func([]byte) {}),
			)
		},
		"announce": func() error {
			here, leave := context.WithCancel(ctx)
			said := make(chan error, 1)
			left := make(chan error, 1)
			changed := make(chan struct{})
			go func() {
				keys := func() (opens, seals []string) { return []string{"k1"}, []string{"k1"} }
				left <- engine.Announce(here, "w1", "host", keys, changed, func(err error) { said <- err })
			}()
			changed <- struct{}{} // what was said first is stored by now
			workers, err := engine.Workers(ctx)
			if err == nil && (len(workers) != 1 || workers[0].Host != "host" || len(workers[0].Keys) != 1) {
				err = fmt.Errorf("got %+v", workers)
			}
			leave()
			err = errors.Join(err, <-left)
			if len(said) > 0 {
				err = errors.Join(err, <-said)
			}
			if workers, after := engine.Workers(ctx); after != nil || len(workers) != 0 {
				err = errors.Join(err, after, fmt.Errorf("still there: %+v", workers))
			}
			return err
		},
		"park": func() error {
			_, err := engine.Park(ctx, key, grant.Parcel{Version: 1, Sealed: []byte("sealed")})
			return err
		},
	} {
		if err := do(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, found, err := engine.Parked(ctx, key); err != nil || !found {
		t.Errorf("parked: %t, %v", found, err)
	}
	if _, err := engine.Answered(ctx, key, "e1"); err != nil {
		t.Errorf("answered: %v", err)
	}
	if _, err := engine.Depths(ctx); err != nil {
		t.Errorf("depths: %v", err)
	}
	if err := engine.Wake(ctx, key, grant.Work{}); err != nil {
		t.Errorf("wake: %v", err)
	}
	due := must(js.Consumer(ctx, stream.Renewals, stream.ConsumerRenew("acme")))(t)
	m := must(due.Next(jetstream.FetchMaxWait(5 * time.Second)))(t)
	if err := errors.Join(m.InProgress(), m.DoubleAck(ctx)); err != nil {
		t.Errorf("ack: %v", err)
	}
	must(js.PauseConsumer(ctx, stream.Renewals, stream.ConsumerRenew("acme"), time.Now().Add(time.Second)))(t)
	if err := errors.Join(engine.Unpark(ctx, key, 0), engine.Cancel(ctx, key), engine.Settle(ctx, "acme")); err != nil {
		t.Errorf("take away: %v", err)
	}
	grants := must(js.KeyValue(ctx, stream.BucketGrants))(t)
	revision := must(grants.Create(ctx, "acme.u1", []byte("sealed")))(t)
	must(grants.Update(ctx, "acme.u1", []byte("sealed"), revision))(t)
	must(grants.Get(ctx, "acme.u1"))(t)
	must(grants.Keys(ctx))(t)
	if err := grants.Delete(ctx, "acme.u1"); err != nil {
		t.Errorf("delete grant: %v", err)
	}
	if err := nc.LastError(); err != nil {
		t.Errorf("the server refused something: %v", err)
	}
}

// renewd's own user may do what renewd does, and no more: what its stolen password is worth.
func TestUserRenewdIsRefusedTheRest(t *testing.T) { eachServer(t, renewdIsRefusedTheRest) }

func renewdIsRefusedTheRest(t *testing.T, n natsAccounts) {
	t.Helper()
	n.asRenewd(t)
	refused := func(do func(*nats.Conn) error) bool {
		nc := n.as(t, "renewd")
		defer nc.Close()
		if err := errors.Join(do(nc), nc.Flush()); err != nil {
			t.Fatal(err)
		}
		return errors.Is(nc.LastError(), nats.ErrPermissionViolation)
	}
	for _, subject := range []string{
		"user.login.acme.u1", "user.refresh_due.acme.u1", "from.shop.user.login.acme.u1", "from.shop.user.refresh_due.acme.u1", "$JS.API.STREAM.DELETE.RENEWALS", "$JS.API.STREAM.DELETE.OUTCOMES", "$JS.API.STREAM.CREATE.MINE",
		"$JS.API.STREAM.SNAPSHOT.LOGINS", "$JS.API.CONSUMER.DURABLE.CREATE.OTHER.LOGINS",
		"$JS.API.STREAM.PURGE.OUTCOMES", "$JS.API.STREAM.MSG.DELETE.OUTCOMES", "$JS.API.STREAM.UPDATE.OUTCOMES",
	} {
		if !refused(func(nc *nats.Conn) error { return nc.Publish(subject, nil) }) {
			t.Errorf("renewd may publish to %s", subject)
		}
	}
	for _, subject := range []string{">", "user.>", "user.login.>", "from.>", "renewal.>", "$KV.>", "$JS.>"} {
		if !refused(func(nc *nats.Conn) error { _, err := nc.SubscribeSync(subject); return err }) {
			t.Errorf("renewd may subscribe to %s", subject)
		}
	}
}

// What docs/security.md says of a thief of the workers' password: NATS checks no reply subject, so the
// server's own answer purges the outcomes, and is a command in a service's name. Where this test fails
// NATS has learned to: promise more then.
func TestTheWorkersPasswordIsNoWall(t *testing.T) {
	n := startNATSAccounts(t)
	ctx := t.Context()
	nc, js := n.asRenewd(t)
	must(js.Publish(ctx, "user.synced.acme.u1", []byte("{}")))(t)
	if err := nc.PublishRequest("$JS.API.DIRECT.GET.OUTCOMES", "$JS.API.STREAM.PURGE.OUTCOMES", []byte(`{"seq":1}`)); err != nil {
		t.Fatal(err)
	}
	outcomes := must(js.Stream(ctx, stream.Outcomes))(t)
	for must(outcomes.Info(ctx))(t).State.Msgs > 0 {
	}
	if err := nc.PublishRequest("user.synced.acme.u1", "from.shop.user.refresh_due.acme.u7", nil); err != nil {
		t.Fatal(err)
	}
	requests := must(js.Stream(ctx, stream.Requests))(t)
	for must(requests.Info(ctx))(t).State.Msgs == 0 {
	}
}

// The workers' user cannot take a single outcome away by what it is made for: not by a purge, not by a
// deletion, not by narrower limits, and not by a new stream in the place of the old one. Erasures are
// the operator's.
func TestOnlyTheOperatorErases(t *testing.T) {
	n := startNATSAccounts(t)
	ctx := t.Context()
	_, js := n.asRenewd(t)
	worker := must(stream.NewEngine(js, stream.Config{}))(t)
	key := grant.Key{Provider: "acme", User: "u1"}
	for _, typ := range []schema.Type{schema.UserSynced, schema.UserReauthRequired, schema.UserForgotten} {
		if err := worker.Publish(ctx, outcomeOf(typ, string(typ))); err != nil {
			t.Fatal(err)
		}
	}
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		t.Cleanup(cancel)
		return ctx
	}
	outcomes := must(js.Stream(ctx, stream.Outcomes))(t)
	narrow := outcomes.CachedInfo().Config
	narrow.MaxMsgs = 1
	newest := must(worker.NewestLogin(ctx))(t)
	for name, do := range map[string]func() error{
		"purge":     func() error { return outcomes.Purge(short()) },
		"delete":    func() error { return outcomes.DeleteMsg(short(), 1) },
		"overwrite": func() error { return outcomes.SecureDeleteMsg(short(), 1) },
		"narrow":    func() error { _, err := js.UpdateStream(short(), narrow); return err },
		"replace":   func() error { _, err := js.CreateStream(short(), narrow); return err },
		"remove":    func() error { return js.DeleteStream(short(), stream.Outcomes) },
		"rollup": func() error {
			m := nats.NewMsg("user.synced.acme.u1")
			m.Header.Set("Nats-Rollup", "all")
			_, err := js.PublishMsg(short(), m)
			return err
		},
		"erase": func() error { return worker.EraseTraces(short(), key) },
	} {
		if err := do(); err == nil {
			t.Errorf("the workers' user may %s", name)
		}
	}
	if err := worker.MayErase(ctx); !errors.Is(err, stream.ErrMayNotErase) {
		t.Errorf("MayErase = %v", err)
	}
	held := func() int { return int(must(outcomes.Info(ctx))(t).State.Msgs) }
	if held() != 3 {
		t.Errorf("OUTCOMES holds %d, want the 3 that were stored", held())
	}

	nc := n.as(t, "operator")
	operator := must(stream.NewEngine(must(jetstream.New(nc))(t), stream.Config{}))(t)
	if err := operator.MayErase(ctx); err != nil || held() != 3 {
		t.Errorf("MayErase = %v, %d outcomes are left", err, held())
	}
	grants := must(must(jetstream.New(nc))(t).KeyValue(ctx, stream.BucketGrants))(t)
	must(grants.Create(ctx, "acme.u1", []byte("sealed")))(t)
	err := errors.Join(
		grants.Delete(ctx, "acme.u1"), operator.Settle(ctx, "acme"), operator.Erase(ctx, key, newest), operator.Wake(ctx, key, grant.Work{}),
		operator.Publish(ctx, outcomeOf(schema.UserForgotten, "e2")),
		operator.Publish(ctx, schema.Event{ID: "e3", Source: "/renewd", Type: schema.OperatorActed, Time: time.Now(), Data: []byte("{}")}),
	)
	if err != nil || held() != 2 {
		t.Errorf("erase: %v, %d outcomes are left, want two", err, held())
	}
	narrow.MaxMsgs = -1
	must(must(jetstream.New(nc))(t).UpdateStream(ctx, narrow))(t)
	if err := nc.LastError(); err != nil {
		t.Errorf("the server refused something: %v", err)
	}
	_ = nc.Publish("user.login.acme.u1", nil)
	if err := nc.Flush(); err != nil || !errors.Is(nc.LastError(), nats.ErrPermissionViolation) {
		t.Errorf("the operator may publish a login: %v", err)
	}
}

// A service signs users in, and reads the outcomes from the durable that was made for it, with what
// its account imports and nothing else.
func TestServicesHaveWhatTheyNeed(t *testing.T) { eachServer(t, servicesHaveWhatTheyNeed) }

func servicesHaveWhatTheyNeed(t *testing.T, n natsAccounts) {
	t.Helper()
	ctx := t.Context()
	nc, js := n.asRenewd(t)
	engine := must(stream.NewEngine(js, stream.Config{}))(t)
	ring := must(seal.NewKeyring(time.Now()))(t)
	if err := engine.PublishKeys(ctx, ring.JWKS()); err != nil {
		t.Fatal(err)
	}

	publisher := must(publishers.New(n.as(t, "signin"), publishers.WithAPIPrefix("$JS.renewd.API"), publishers.WithSource("/signin")))(t)
	for _, user := range []string{"u1", "u2"} {
		r, err := publisher.Login(ctx, "acme", user, publishers.Tokens{AccessToken: "at", RefreshToken: "rt", ExpiresIn: time.Hour})
		if err != nil || r.Stream != stream.Logins {
			t.Fatalf("login: %+v, %v", r, err)
		}
	}
	must(publisher.RefreshDue(ctx, "acme", "u1", schema.RefreshDue{}))(t)

	if err := consumers.Prepare(ctx, nc, consumers.Subscription{Durable: "shop"}); err != nil {
		t.Fatal(err)
	}
	shop := n.as(t, "shop")
	live := must(shop.SubscribeSync("user.reauth_required.*.*"))(t)
	if err := shop.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"e1", "e2", "e3"} {
		if err := engine.Publish(ctx, outcomeOf(schema.UserReauthRequired, id)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(ctx)
	var got []string
	err := consumers.Subscribe(ctx, shop, consumers.Subscription{APIPrefix: "$JS.renewd.API", Durable: "shop"}, func(_ context.Context, e schema.Event) error {
		if got = append(got, e.ID); len(got) == 3 {
			stop()
		}
		return nil
	})
	if err != nil || fmt.Sprint(got) != "[e1 e2 e3]" {
		t.Errorf("received %q, %v", got, err)
	}
	if m, err := live.NextMsg(5 * time.Second); err != nil || m.Header.Get("ce-id") != "e1" {
		t.Errorf("live: %v", err)
	}
	if i := must(js.Consumer(t.Context(), stream.Outcomes, "shop"))(t).CachedInfo(); i.AckFloor.Stream != 3 {
		t.Errorf("acknowledged up to %d of 3", i.AckFloor.Stream)
	}
}

// A service whose durable is gone says so, and how far it was: it may not make one itself.
func TestAServiceWithoutItsDurableSaysSo(t *testing.T) {
	n := startNATSAccounts(t)
	nc, js := n.asRenewd(t)
	if err := consumers.Prepare(t.Context(), nc, consumers.Subscription{Durable: "shop"}); err != nil {
		t.Fatal(err)
	}
	engine := must(stream.NewEngine(js, stream.Config{}))(t)
	if err := engine.Publish(t.Context(), outcomeOf(schema.UserSynced, "e1")); err != nil {
		t.Fatal(err)
	}
	said := make(lines, 100)
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	ended := make(chan error, 1)
	s := consumers.Subscription{APIPrefix: "$JS.renewd.API", Durable: "shop", Logger: slog.New(slog.NewTextHandler(said, nil))}
	go func() {
		ended <- consumers.Subscribe(ctx, n.as(t, "shop"), s, func(ctx context.Context, _ schema.Event) error {
			return js.DeleteConsumer(ctx, stream.Outcomes, "shop")
		})
	}()
	for line := range said {
		if strings.Contains(line, "the durable vanished") {
			if !strings.Contains(line, "handled was all up to sequence 1") || !strings.Contains(line, "renewd subscribers add") {
				t.Errorf("it says: %s", line)
			}
			break
		}
		if ctx.Err() != nil {
			t.Fatal("it said nothing")
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// lines is a log, line by line.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

func outcomeOf(typ schema.Type, id string) schema.Event {
	return schema.Event{ID: id, Source: "/renewd", Type: typ, Provider: "acme", User: "u1", Time: time.Now(), Data: []byte("{}")}
}

// What a stolen password of a service is worth: nothing that a service publishes, names as a reply,
// or asks JetStream for reaches renewd's streams, but its own commands and its own durable.
func TestServicesReachNothingElse(t *testing.T) { eachServer(t, servicesReachNothingElse) }

func servicesReachNothingElse(t *testing.T, n natsAccounts) {
	t.Helper()
	ctx := t.Context()
	nc, js := n.asRenewd(t)
	engine := must(stream.NewEngine(js, stream.Config{}))(t)
	for _, durable := range []string{"shop", "other"} {
		if err := consumers.Prepare(ctx, nc, consumers.Subscription{Durable: durable}); err != nil {
			t.Fatal(err)
		}
	}
	grants := must(js.KeyValue(ctx, stream.BucketGrants))(t)
	must(grants.Create(ctx, "acme.victim", []byte("sealed")))(t)
	if err := engine.Arm(ctx, grant.Key{Provider: "acme", User: "victim"}, time.Now().Add(time.Hour), grant.Work{}); err != nil {
		t.Fatal(err)
	}
	if err := engine.Publish(ctx, outcomeOf(schema.UserSynced, "e1")); err != nil {
		t.Fatal(err)
	}
	before := standOf(t, js)

	targets := []string{
		"$KV.renewd_grants.acme.victim", "$KV.renewd_keys.jwks", "$KV.renewd_providers.acme", "parked.acme.victim", "renewal.due.acme.victim",
		"from.signin.user.login.acme.victim", "from.other.user.login.acme.victim", "from.other.user.refresh_due.acme.victim",
		"renewal.timer.acme.victim", "deferred.due.acme.victim", "user.reauth_required.acme.victim", "user.forgotten.acme.victim",
		"$JS.API.CONSUMER.MSG.NEXT.LOGINS.login", "$JS.API.STREAM.PURGE.OUTCOMES", "$JS.API.STREAM.DELETE.OUTCOMES",
	}
	push := `{"stream_name":"OUTCOMES","config":{"name":"mine","ack_policy":"explicit","deliver_subject":"$JS.API.CONSUMER.MSG.NEXT.LOGINS.login","headers_only":true}}`
	for user, own := range map[string][]string{
		"signin": {"user.refresh_due.acme.u1", "user.login.acme.u1", "$JS.renewd.API.STREAM.INFO.KV_renewd_keys"},
		"shop":   {"$JS.renewd.API.CONSUMER.INFO.OUTCOMES.shop"},
	} {
		c := n.as(t, user)
		for _, target := range targets {
			_ = c.Publish(target, []byte("forged"))
			for _, subject := range own {
				_ = c.PublishRequest(subject, target, nil) // N1: the server's own answer goes there
			}
		}
		for _, api := range []string{"$JS.API.", "$JS.renewd.API."} {
			for _, what := range []string{
				"CONSUMER.CREATE.OUTCOMES.mine", "CONSUMER.DURABLE.CREATE.OUTCOMES.mine", "CONSUMER.DELETE.OUTCOMES.other", "CONSUMER.PAUSE.OUTCOMES.other",
				"CONSUMER.MSG.NEXT.OUTCOMES.other", "CONSUMER.MSG.NEXT.LOGINS.login", "STREAM.PURGE.OUTCOMES", "STREAM.MSG.DELETE.OUTCOMES", "STREAM.UPDATE.OUTCOMES",
				"STREAM.MSG.GET.LOGINS", "STREAM.MSG.GET.KV_renewd_grants", "STREAM.MSG.GET.OUTCOMES", "DIRECT.GET.OUTCOMES", "STREAM.SNAPSHOT.LOGINS",
			} {
				body := `{"last_by_subj":">","seq":1,"batch":1}`
				if strings.Contains(what, "CREATE") {
					body = push // N2: each outcome would be a pull request for logins
				}
				if m, err := c.Request(api+what, []byte(body), 20*time.Millisecond); err == nil && !strings.Contains(string(m.Data), `"error"`) && m.Header.Get("Status") != "503" {
					t.Errorf("%s: %s was answered: %s %v", user, api+what, m.Data, m.Header)
				}
			}
		}
		_ = c.Publish("$JS.ACK.OUTCOMES.other.1.1.1.1.0", nil) // N3: another one's outcome
		_ = c.Publish("$JS.ACK.LOGINS.login.1.1.1.1.0", nil)
		for _, subject := range []string{"user.login.>", "from.>", "renewal.>", "$KV.>", "_INBOX.>"} {
			must(c.SubscribeSync(subject))(t)
		}
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	// Signin's commands for u1 are stored, as many as the streams keep of a user; all else is as it
	// was.
	before[stream.Requests], before[stream.Logins] = 8, 1
	if after := standOf(t, js); !maps.Equal(after, before) {
		t.Errorf("the streams hold %v, want %v", after, before)
	}
	for _, name := range []string{stream.Logins, stream.Requests} {
		info := must(must(js.Stream(ctx, name))(t).Info(ctx, jetstream.WithSubjectFilter(">")))(t)
		for subject := range info.State.Subjects {
			if !strings.HasPrefix(subject, "from.signin.user.") || !strings.HasSuffix(subject, ".acme.u1") {
				t.Errorf("%s holds %s", name, subject)
			}
		}
	}
	if e := must(grants.Get(ctx, "acme.victim"))(t); string(e.Value()) != "sealed" {
		t.Errorf("the victim's grant is %q", e.Value())
	}
	if i := must(js.Consumer(ctx, stream.Outcomes, "other"))(t).CachedInfo(); i.NumPending != 1 || i.NumAckPending != 0 || i.Paused {
		t.Errorf("another service's durable: %+v", i)
	}
	eventually(t, 10*time.Second, func() error { // the server's count of what waits lags behind
		i := must(js.Consumer(ctx, stream.Logins, stream.ConsumerLogin))(t).CachedInfo()
		if i.NumPending != 1 || i.NumWaiting != 0 {
			return fmt.Errorf("logins: %d wait, %d ask", i.NumPending, i.NumWaiting)
		}
		return nil
	})
	names := 0
	for range must(js.Stream(ctx, stream.Outcomes))(t).ConsumerNames(ctx).Name() {
		names++
	}
	if names != 2 {
		t.Errorf("OUTCOMES has %d consumers, want the two that were made", names)
	}
}

// standOf is how many messages each stream holds.
func standOf(t *testing.T, js jetstream.JetStream) map[string]int {
	t.Helper()
	held := map[string]int{}
	for _, s := range (stream.Topology{Grants: true}).WithDefaults().Streams() {
		held[s.Name] = int(must(must(js.Stream(t.Context(), s.Name))(t).Info(t.Context()))(t).State.Msgs)
	}
	return held
}

// A publisher's headers are not subject to accounts: the streams themselves must refuse those that
// reach beyond its own message.
func TestPublisherCannotWipeByHeader(t *testing.T) {
	n := startNATSAccounts(t)
	ctx := t.Context()
	_, js := n.asRenewd(t)
	publisher := must(jetstream.New(n.as(t, "signin")))(t)
	must(publisher.Publish(ctx, "user.refresh_due.acme.u1", nil))(t)
	for header, value := range map[string]string{"Nats-Rollup": "all", "Nats-Schedule": "@at 2099-01-01T00:00:00Z", "Nats-Schedule-Next": "purge"} {
		m := nats.NewMsg("user.refresh_due.acme.u2")
		m.Header.Set(header, value)
		m.Header.Set("Nats-Schedule-Target", "user.refresh_due.acme.u3")
		m.Header.Set("Nats-Scheduler", "user.refresh_due.acme.u1")
		if _, err := publisher.PublishMsg(ctx, m); err == nil {
			t.Errorf("%s: %s was accepted", header, value)
		} else if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: no answer: %v", header, err)
		}
	}
	info := must(must(js.Stream(ctx, stream.Requests))(t).Info(ctx))(t)
	if info.State.Msgs != 1 {
		t.Errorf("REQUESTS holds %d messages, want the one of u1", info.State.Msgs)
	}
}

// The data of a server without accounts go on in renewd's account once their folder has its name.
func TestAServerWithoutAccountsIsMovedOver(t *testing.T) {
	folder := t.TempDir()
	ctx := t.Context()
	old := startServer(t, &server.Options{JetStream: true}, folder)
	js := must(jetstream.New(must(nats.Connect("", nats.InProcessServer(old)))(t)))(t)
	must(stream.Ensure(ctx, js, stream.Topology{Grants: true, Providers: []stream.Provider{{ID: "acme"}}}))(t)
	must(must(js.KeyValue(ctx, stream.BucketGrants))(t).Create(ctx, "acme.u1", []byte("sealed")))(t)
	if err := consumers.Prepare(ctx, js.Conn(), consumers.Subscription{Durable: "shop"}); err != nil {
		t.Fatal(err)
	}
	if err := must(stream.NewEngine(js, stream.Config{}))(t).Publish(ctx, outcomeOf(schema.UserSynced, "e1")); err != nil {
		t.Fatal(err)
	}
	before := standOf(t, js)
	js.Conn().Close()
	old.Shutdown()
	old.WaitForShutdown()
	if err := os.Rename(filepath.Join(folder, "jetstream", "$G"), filepath.Join(folder, "jetstream", "RENEWD")); err != nil {
		t.Fatal(err)
	}
	_, js = startNATSAccountsIn(t, folder).asRenewd(t)
	if after := standOf(t, js); !maps.Equal(after, before) {
		t.Errorf("the streams hold %v, before %v", after, before)
	}
	if i := must(js.Consumer(ctx, stream.Outcomes, "shop"))(t).CachedInfo(); i.NumPending != 1 {
		t.Errorf("the durable has %d waiting, want 1", i.NumPending)
	}
}
