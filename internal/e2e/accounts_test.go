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
	"syscall"
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
	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/testkit/streams"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// natsServer builds the NATS server that go.mod names, once, and returns where the binary is.
var natsServer = sync.OnceValues(func() (string, error) {
	return built("nats-server", "github.com/nats-io/nats-server/v2")
})

// natsAccounts is a nats-server that runs deploy/nats/nats.conf, with everything but its address
// and folder as in the file.
type natsAccounts struct {
	*process
	url   string
	users map[string]nats.Option // how each connects; nil: with its name's password
	conf  string                 // the server's file; empty: none that may change
}

func passwordOf(user string) string { return "password-of-" + user }

func startNATSAccounts(t *testing.T) natsAccounts {
	t.Helper()
	return startNATSAccountsIn(t, t.TempDir())
}

func startNATSAccountsIn(t *testing.T, folder string) natsAccounts {
	t.Helper()
	shipped := readFile(t, "deploy/nats/nats.conf")
	return startNATSConfigured(t, shipped, folder, "renewd", "operator", "signin", "shop")
}

// startNATSConfigured starts a nats-server with settings as `renewd nats config` prints them.
func startNATSConfigured(t *testing.T, settings, folder string, users ...string) natsAccounts {
	t.Helper()
	const store = `store_dir: "/data"`
	if strings.Count(settings, store) != 1 {
		t.Fatalf("want %s once", store)
	}
	conf := filepath.Join(t.TempDir(), "nats.conf")
	err := os.WriteFile(conf,
		[]byte(strings.Replace(settings, store, fmt.Sprintf("store_dir: %q", folder), 1)), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(must(natsServer())(t), "--config", conf)
	cmd.Env = os.Environ()
	for _, user := range users {
		cmd.Env = append(cmd.Env,
			"RENEWD_NATS_"+strings.ToUpper(user)+"_PASSWORD="+passwordOf(user))
	}
	ports := t.TempDir()
	cmd.Args = append(cmd.Args, onFreePort(ports)...)
	n := startNATS(t, cmd, ports)
	n.conf = conf
	return n
}

// eachServer runs a test against all servers that know accounts: nats-server with passwords,
// nats-server in operator mode, and the embedded server.
func eachServer(t *testing.T, test func(t *testing.T, n natsAccounts)) {
	t.Helper()
	t.Run("nats-server", func(t *testing.T) { test(t, startNATSAccounts(t)) })
	t.Run("operator mode", func(t *testing.T) { test(t, startNATSOperator(t)) })
	t.Run("embedded", func(t *testing.T) {
		for _, user := range []string{"renewd", "operator", "signin", "shop"} {
			t.Setenv("RENEWD_NATS_"+strings.ToUpper(user)+"_PASSWORD", passwordOf(user))
		}
		s := must(natsd.Start(t.Context(), natsd.Config{
			StoreDir: t.TempDir(),
			Listen:   "127.0.0.1:0",
			Auth:     natsd.Auth{Accounts: root + "/deploy/nats/nats.conf"},
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
		n.url, err = listens(filepath.Join(ports,
			fmt.Sprintf("nats-server_%d.ports", cmd.Process.Pid)))
		return err
	})
	return n
}

// listens returns the address in a server's file of ports. A server writes that file once it takes
// connections.
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

// asRenewd connects as renewd, after the streams are made.
func (n natsAccounts) asRenewd(t *testing.T) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc := n.as(t, "renewd")
	js := must(jetstream.New(nc))(t)
	must(topology.Ensure(t.Context(), js, topology.Topology{
		Grants:    true,
		Providers: []topology.Provider{{ID: "acme", Concurrency: 4}},
	}))(t)
	return nc, js
}

// The user renewd must be able to do what renewd does on the server.
func TestUserRenewdSuffices(t *testing.T) {
	n := startNATSAccounts(t)
	nc := n.as(t, "renewd")
	js := must(jetstream.New(nc))(t)
	ctx := t.Context()
	want := topology.Topology{
		Grants:    true,
		Providers: []topology.Provider{{ID: "acme", Concurrency: 4}},
	}
	must(topology.Ensure(ctx, js, want))(t)
	must(topology.Ensure(ctx, js, want))(t) // the second one compares

	engine := must(stream.NewEngine(js, stream.Config{}))(t)
	key := grant.Key{Provider: "acme", User: "u1"}
	event := schema.Event{
		ID:       "e1",
		Source:   "/renewd",
		Type:     schema.UserSynced,
		Provider: "acme",
		User:     "u1",
		Time:     time.Now(),
		Data:     []byte("{}"),
	}
	for name, do := range map[string]func() error{
		"clock": func() error { return engine.SyncClock(ctx) },
		"keys": func() error {
			store := engine.PublishStoreKeys(ctx, []string{"k1"})
			return errors.Join(store, engine.PublishKeys(ctx, []byte(`{"keys":[]}`)))
		},
		"publish": func() error { return engine.Publish(ctx, event) },
		"arm": func() error {
			return engine.Arm(ctx, key, time.Now().Add(time.Hour), grant.Work{})
		},
		"retire": func() error {
			_, _, published := engine.KeysSince(ctx)
			_, kept := engine.LoginsKept(ctx)
			_, noted := engine.Retired(ctx, "k1")
			return errors.Join(
				published, kept, noted, engine.NoteRetired(ctx, "k1"),
				engine.EachLogin(ctx, func(schema.Event, error) {}),
				engine.EachParked(ctx, func([]byte) {}),
			)
		},
		"announce": func() error {
			here, leave := context.WithCancel(ctx)
			said := make(chan error, 1)
			left := make(chan error, 1)
			changed := make(chan struct{})
			go func() {
				keys := func() (opens, seals []string) { return []string{"k1"}, []string{"k1"} }
				left <- engine.Announce(here, stream.Worker{ID: "w1", Host: "host"}, keys, changed,
					func(err error) { said <- err })
			}()
			changed <- struct{}{} // the first message is stored by now
			workers, err := engine.Workers(ctx)
			if err == nil &&
				(len(workers) != 1 || workers[0].Host != "host" || len(workers[0].Keys) != 1) {
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
	due := must(js.Consumer(ctx, topology.Renewals, topology.ConsumerRenew("acme")))(t)
	m := must(due.Next(jetstream.FetchMaxWait(5 * time.Second)))(t)
	if err := errors.Join(m.InProgress(), m.DoubleAck(ctx)); err != nil {
		t.Errorf("ack: %v", err)
	}
	must(js.PauseConsumer(ctx, topology.Renewals, topology.ConsumerRenew("acme"),
		time.Now().Add(time.Second)))(t)
	err := errors.Join(engine.Unpark(ctx, key, 0), engine.Cancel(ctx, key),
		engine.AwaitInFlight(ctx, "acme"))
	if err != nil {
		t.Errorf("take away: %v", err)
	}
	grants := must(js.KeyValue(ctx, topology.BucketGrants))(t)
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

// renewd's own user may do what renewd does, and no more. This is what its stolen password is
// worth.
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
		"user.login.acme.u1", "user.refresh_due.acme.u1", "from.shop.user.login.acme.u1",
		"from.shop.user.refresh_due.acme.u1", "$JS.API.STREAM.DELETE.RENEWALS",
		"$JS.API.STREAM.DELETE.OUTCOMES", "$JS.API.STREAM.CREATE.MINE",
		"$JS.API.STREAM.SNAPSHOT.LOGINS", "$JS.API.CONSUMER.DURABLE.CREATE.OTHER.LOGINS",
		"$JS.API.STREAM.PURGE.OUTCOMES", "$JS.API.STREAM.MSG.DELETE.OUTCOMES",
		"$JS.API.STREAM.UPDATE.OUTCOMES",
	} {
		if !refused(func(nc *nats.Conn) error { return nc.Publish(subject, nil) }) {
			t.Errorf("renewd may publish to %s", subject)
		}
	}
	for _, subject := range []string{
		">", "user.>", "user.login.>", "from.>", "renewal.>", "$KV.>", "$JS.>",
	} {
		if !refused(func(nc *nats.Conn) error { _, err := nc.SubscribeSync(subject); return err }) {
			t.Errorf("renewd may subscribe to %s", subject)
		}
	}
}

// What docs/security.md says of a thief of the workers' password: NATS checks no reply subject, so
// the server's own answer purges the outcomes, and is a command in a service's name. If this test
// fails, NATS has learned to check it: promise more then.
func TestTheWorkersPasswordIsNoWall(t *testing.T) {
	n := startNATSAccounts(t)
	ctx := t.Context()
	nc, js := n.asRenewd(t)
	must(js.Publish(ctx, "user.synced.acme.u1", []byte("{}")))(t)
	err := nc.PublishRequest("$JS.API.DIRECT.GET.OUTCOMES", "$JS.API.STREAM.PURGE.OUTCOMES",
		[]byte(`{"seq":1}`))
	if err != nil {
		t.Fatal(err)
	}
	outcomes := must(js.Stream(ctx, topology.Outcomes))(t)
	for must(outcomes.Info(ctx))(t).State.Msgs > 0 {
	}
	err = nc.PublishRequest("user.synced.acme.u1", "from.shop.user.refresh_due.acme.u7", nil)
	if err != nil {
		t.Fatal(err)
	}
	requests := must(js.Stream(ctx, topology.Requests))(t)
	for must(requests.Info(ctx))(t).State.Msgs == 0 {
	}
}

// The operator takes a snapshot of a stream and restores it, as `nats stream backup` and
// `nats stream restore` do (docs/backup.md).
func TestTheOperatorRestoresAStream(t *testing.T) {
	eachServer(t, func(t *testing.T, n natsAccounts) {
		ctx := t.Context()
		_, js := n.asRenewd(t)
		worker := must(stream.NewEngine(js, stream.Config{}))(t)
		// More than a snapshot's window, so that the server waits for the operator's acks.
		large := outcomeOf(schema.UserSynced, "")
		large.Data = fmt.Appendf(nil, `{"version": 1, "note": %q}`, strings.Repeat("x", 500_000))
		const events = 30
		for i := range events {
			large.ID = fmt.Sprint("e", i)
			if err := worker.Publish(ctx, large); err != nil {
				t.Fatal(err)
			}
		}
		operator := must(jetstream.New(n.as(t, "operator")))(t)
		streams.Backup(t, operator, topology.Outcomes).Restore(t, operator, topology.Outcomes)
		restored := must(operator.Stream(ctx, topology.Outcomes))(t).CachedInfo().State
		if restored.Msgs != events {
			t.Errorf("%d of %d outcomes are restored", restored.Msgs, events)
		}
	})
}

// The workers' user cannot remove a single outcome by the rights that it has: not by a purge, not
// by a deletion, not by narrower limits, and not by a new stream in the place of the old one. Only
// the operator erases.
func TestOnlyTheOperatorErases(t *testing.T) {
	n := startNATSAccounts(t)
	ctx := t.Context()
	_, js := n.asRenewd(t)
	worker := must(stream.NewEngine(js, stream.Config{}))(t)
	key := grant.Key{Provider: "acme", User: "u1"}
	for _, typ := range []schema.Type{
		schema.UserSynced, schema.UserReauthRequired, schema.UserForgotten,
	} {
		if err := worker.Publish(ctx, outcomeOf(typ, string(typ))); err != nil {
			t.Fatal(err)
		}
	}
	outcomes := must(js.Stream(ctx, topology.Outcomes))(t)
	narrow := outcomes.CachedInfo().Config
	narrow.MaxMsgs = 1
	newest := must(worker.NewestLogin(ctx))(t)
	for name, do := range map[string]func() error{
		"purge":     func() error { return outcomes.Purge(short(t)) },
		"delete":    func() error { return outcomes.DeleteMsg(short(t), 1) },
		"overwrite": func() error { return outcomes.SecureDeleteMsg(short(t), 1) },
		"narrow":    func() error { _, err := js.UpdateStream(short(t), narrow); return err },
		"replace":   func() error { _, err := js.CreateStream(short(t), narrow); return err },
		"remove":    func() error { return js.DeleteStream(short(t), topology.Outcomes) },
		"rollup": func() error {
			m := nats.NewMsg("user.synced.acme.u1")
			m.Header.Set("Nats-Rollup", "all")
			_, err := js.PublishMsg(short(t), m)
			return err
		},
		"erase": func() error { return worker.EraseTraces(short(t), key) },
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
	grants := must(must(jetstream.New(nc))(t).KeyValue(ctx, topology.BucketGrants))(t)
	must(grants.Create(ctx, "acme.u1", []byte("sealed")))(t)
	err := errors.Join(
		grants.Delete(ctx, "acme.u1"), operator.AwaitInFlight(ctx, "acme"),
		operator.Erase(ctx, key, newest), operator.Wake(ctx, key, grant.Work{}),
		operator.Publish(ctx, outcomeOf(schema.UserForgotten, "e2")),
		operator.Publish(ctx, schema.Event{
			ID:     "e3",
			Source: "/renewd",
			Type:   schema.OperatorActed,
			Time:   time.Now(),
			Data:   []byte("{}"),
		}),
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

// A service signs users in, and reads the outcomes from the durable that was made for it. It uses
// what its account imports and nothing else.
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

	publisher := must(publishers.New(n.as(t, "signin"), publishers.WithAPIPrefix("$JS.renewd.API"),
		publishers.WithSource("/signin")))(t)
	for _, user := range []string{"u1", "u2"} {
		r, err := publisher.Login(ctx, "acme", user, publishers.Tokens{
			AccessToken:  "at",
			RefreshToken: "rt",
			ExpiresIn:    time.Hour,
		})
		if err != nil || r.Stream != topology.Logins {
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
	s := consumers.Subscription{APIPrefix: "$JS.renewd.API", Durable: "shop"}
	err := consumers.Subscribe(ctx, shop, s, func(_ context.Context, e schema.Event) error {
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
	eventually(t, time.Minute, func() error { // the server may take an ack later than the next call
		i := must(js.Consumer(t.Context(), topology.Outcomes, "shop"))(t).CachedInfo()
		if i.AckFloor.Stream != 3 {
			return fmt.Errorf("acknowledged up to %d of 3", i.AckFloor.Stream)
		}
		return nil
	})
}

// A service whose durable is gone says so, and how far it had read. It may not make a durable
// itself.
func TestAServiceWithoutItsDurableSaysSo(t *testing.T) {
	n := startNATSAccounts(t)
	nc, js := n.asRenewd(t)
	err := consumers.Prepare(t.Context(), nc, consumers.Subscription{Durable: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	engine := must(stream.NewEngine(js, stream.Config{}))(t)
	if err := engine.Publish(t.Context(), outcomeOf(schema.UserSynced, "e1")); err != nil {
		t.Fatal(err)
	}
	said := make(lines, 100)
	ctx, stop := context.WithTimeout(t.Context(), testkit.Patience)
	defer stop()
	ended := make(chan error, 1)
	s := consumers.Subscription{
		APIPrefix: "$JS.renewd.API",
		Durable:   "shop",
		Logger:    slog.New(slog.NewTextHandler(said, nil)),
	}
	go func() {
		remove := func(ctx context.Context, _ schema.Event) error {
			return js.DeleteConsumer(ctx, topology.Outcomes, "shop")
		}
		ended <- consumers.Subscribe(ctx, n.as(t, "shop"), s, remove)
	}()
	for line := range said {
		if strings.Contains(line, "the durable vanished") {
			if !strings.Contains(line, "handled was all up to sequence 1") ||
				!strings.Contains(line, "renewd subscribers add") {
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
	return schema.Event{
		ID:       id,
		Source:   "/renewd",
		Type:     typ,
		Provider: "acme",
		User:     "u1",
		Time:     time.Now(),
		Data:     []byte("{}"),
	}
}

// What a stolen password of a service is worth. Nothing that a service publishes, names as a reply,
// or asks JetStream for reaches renewd's streams, except its own commands and its own durable.
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
	grants := must(js.KeyValue(ctx, topology.BucketGrants))(t)
	must(grants.Create(ctx, "acme.victim", []byte("sealed")))(t)
	err := engine.Arm(ctx, grant.Key{Provider: "acme", User: "victim"}, time.Now().Add(time.Hour),
		grant.Work{})
	if err != nil {
		t.Fatal(err)
	}
	if err := engine.Publish(ctx, outcomeOf(schema.UserSynced, "e1")); err != nil {
		t.Fatal(err)
	}
	before := standOf(t, js)

	targets := []string{
		"$KV.renewd_grants.acme.victim", "$KV.renewd_keys.jwks", "$KV.renewd_providers.acme",
		"parked.acme.victim", "renewal.due.acme.victim",
		"from.signin.user.login.acme.victim", "from.other.user.login.acme.victim",
		"from.other.user.refresh_due.acme.victim",
		"renewal.timer.acme.victim", "deferred.due.acme.victim", "user.reauth_required.acme.victim",
		"user.forgotten.acme.victim",
		"$JS.API.CONSUMER.MSG.NEXT.LOGINS.login", "$JS.API.STREAM.PURGE.OUTCOMES",
		"$JS.API.STREAM.DELETE.OUTCOMES",
	}
	push := `{"stream_name":"OUTCOMES","config":{"name":"mine","ack_policy":"explicit",` +
		`"deliver_subject":"$JS.API.CONSUMER.MSG.NEXT.LOGINS.login","headers_only":true}}`
	for user, own := range map[string][]string{
		"signin": {
			"user.refresh_due.acme.u1",
			"user.login.acme.u1",
			"$JS.renewd.API.STREAM.INFO.KV_renewd_keys",
		},
		"shop": {"$JS.renewd.API.CONSUMER.INFO.OUTCOMES.shop"},
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
				"CONSUMER.CREATE.OUTCOMES.mine", "CONSUMER.DURABLE.CREATE.OUTCOMES.mine",
				"CONSUMER.DELETE.OUTCOMES.other", "CONSUMER.PAUSE.OUTCOMES.other",
				"CONSUMER.MSG.NEXT.OUTCOMES.other", "CONSUMER.MSG.NEXT.LOGINS.login",
				"STREAM.PURGE.OUTCOMES", "STREAM.MSG.DELETE.OUTCOMES", "STREAM.UPDATE.OUTCOMES",
				"STREAM.MSG.GET.LOGINS", "STREAM.MSG.GET.KV_renewd_grants",
				"STREAM.MSG.GET.OUTCOMES", "DIRECT.GET.OUTCOMES", "STREAM.SNAPSHOT.LOGINS",
			} {
				body := `{"last_by_subj":">","seq":1,"batch":1}`
				if strings.Contains(what, "CREATE") {
					body = push // N2: each outcome would be a pull request for logins
				}
				m, err := c.Request(api+what, []byte(body), 20*time.Millisecond)
				if err == nil && !strings.Contains(string(m.Data), `"error"`) &&
					m.Header.Get("Status") != "503" {
					t.Errorf("%s: %s was answered: %s %v", user, api+what, m.Data, m.Header)
				}
			}
		}
		_ = c.Publish("$JS.ACK.OUTCOMES.other.1.1.1.1.0", nil) // N3: another one's outcome
		_ = c.Publish("$JS.ACK.LOGINS.login.1.1.1.1.0", nil)
		for _, subject := range []string{
			"user.login.>", "from.>", "renewal.>", "$KV.>", "_INBOX.>",
		} {
			must(c.SubscribeSync(subject))(t)
		}
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	// Signin's commands for u1 are stored, as many as the streams keep of a user. Everything else
	// is unchanged.
	before[topology.Requests], before[topology.Logins] = 8, 8
	if after := standOf(t, js); !maps.Equal(after, before) {
		t.Errorf("the streams hold %v, want %v", after, before)
	}
	for _, name := range []string{topology.Logins, topology.Requests} {
		info := must(must(js.Stream(ctx, name))(t).Info(ctx, jetstream.WithSubjectFilter(">")))(t)
		for subject := range info.State.Subjects {
			if !strings.HasPrefix(subject, "from.signin.user.") ||
				!strings.HasSuffix(subject, ".acme.u1") {
				t.Errorf("%s holds %s", name, subject)
			}
		}
	}
	if e := must(grants.Get(ctx, "acme.victim"))(t); string(e.Value()) != "sealed" {
		t.Errorf("the victim's grant is %q", e.Value())
	}
	eventually(t, time.Minute, func() error { // the server's pending counts lag behind
		i := must(js.Consumer(ctx, topology.Outcomes, "other"))(t).CachedInfo()
		if i.NumPending != 1 || i.NumAckPending != 0 || i.Paused {
			return fmt.Errorf("another service's durable: %+v", i)
		}
		i = must(js.Consumer(ctx, topology.Logins, topology.ConsumerLogin))(t).CachedInfo()
		if i.NumPending != 8 || i.NumWaiting != 0 {
			return fmt.Errorf("logins: %d wait, %d ask", i.NumPending, i.NumWaiting)
		}
		return nil
	})
	names := 0
	for range must(js.Stream(ctx, topology.Outcomes))(t).ConsumerNames(ctx).Name() {
		names++
	}
	if names != 2 {
		t.Errorf("OUTCOMES has %d consumers, want the two that were made", names)
	}
}

// standOf returns how many messages each stream holds.
func standOf(t *testing.T, js jetstream.JetStream) map[string]int {
	t.Helper()
	held := map[string]int{}
	for _, s := range (topology.Topology{Grants: true}).WithDefaults().Streams() {
		stored := must(js.Stream(t.Context(), s.Name))(t)
		held[s.Name] = int(must(stored.Info(t.Context()))(t).State.Msgs)
	}
	return held
}

// Accounts do not restrict a publisher's headers. The streams themselves must refuse headers that
// reach beyond the publisher's own message.
func TestPublisherCannotWipeByHeader(t *testing.T) {
	n := startNATSAccounts(t)
	ctx := t.Context()
	_, js := n.asRenewd(t)
	publisher := must(jetstream.New(n.as(t, "signin")))(t)
	must(publisher.Publish(ctx, "user.refresh_due.acme.u1", nil))(t)
	for header, value := range map[string]string{
		"Nats-Rollup":        "all",
		"Nats-Schedule":      "@at 2099-01-01T00:00:00Z",
		"Nats-Schedule-Next": "purge",
	} {
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
	info := must(must(js.Stream(ctx, topology.Requests))(t).Info(ctx))(t)
	if info.State.Msgs != 1 {
		t.Errorf("REQUESTS holds %d messages, want the one of u1", info.State.Msgs)
	}
}

// The data of a server without accounts live on in renewd's account once the folder of the data has
// that account's name.
func TestAServerWithoutAccountsIsMovedOver(t *testing.T) {
	folder := t.TempDir()
	ctx := t.Context()
	old := startServer(t, &server.Options{JetStream: true}, folder)
	js := must(jetstream.New(must(nats.Connect("", nats.InProcessServer(old)))(t)))(t)
	must(topology.Ensure(ctx, js,
		topology.Topology{Grants: true, Providers: []topology.Provider{{ID: "acme"}}}))(t)
	grants := must(js.KeyValue(ctx, topology.BucketGrants))(t)
	must(grants.Create(ctx, "acme.u1", []byte("sealed")))(t)
	err := consumers.Prepare(ctx, js.Conn(), consumers.Subscription{Durable: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	err = must(stream.NewEngine(js, stream.Config{}))(t).
		Publish(ctx, outcomeOf(schema.UserSynced, "e1"))
	if err != nil {
		t.Fatal(err)
	}
	before := standOf(t, js)
	js.Conn().Close()
	old.Shutdown()
	old.WaitForShutdown()
	err = os.Rename(filepath.Join(folder, "jetstream", "$G"),
		filepath.Join(folder, "jetstream", "RENEWD"))
	if err != nil {
		t.Fatal(err)
	}
	_, js = startNATSAccountsIn(t, folder).asRenewd(t)
	if after := standOf(t, js); !maps.Equal(after, before) {
		t.Errorf("the streams hold %v, before %v", after, before)
	}
	eventually(t, time.Minute, func() error { // the server's pending count lags behind
		i := must(js.Consumer(ctx, topology.Outcomes, "shop"))(t).CachedInfo()
		if i.NumPending != 1 {
			return fmt.Errorf("the durable has %d waiting, want 1", i.NumPending)
		}
		return nil
	})
}

// A service's password is changed as docs/security.md says: by a second user in its account, which
// is the same sender, and with the server's settings read again. A user that was removed is cut
// off.
func TestAPasswordIsChangedWhileTheServerRuns(t *testing.T) {
	n := startNATSAccounts(t)
	_, js := n.asRenewd(t)
	cut := make(chan struct{}, 1)
	was := n.as(t, "signin", nats.NoReconnect(),
		nats.ClosedHandler(func(*nats.Conn) { cut <- struct{}{} }))
	text := string(must(os.ReadFile(n.conf))(t))
	own := `{ user: "signin", password: $RENEWD_NATS_SIGNIN_PASSWORD }`
	for i, users := range []string{
		own + `, { user: "signin-2", password: "password-of-signin-2" }`,
		`{ user: "signin-2", password: "password-of-signin-2" }`,
	} {
		if strings.Count(text, own) != 1 {
			t.Fatalf("want %s once", own)
		}
		changed := []byte(strings.Replace(text, own, users, 1))
		if err := os.WriteFile(n.conf, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		n.Signal(syscall.SIGHUP)
		var nc *nats.Conn
		eventually(t, startTimeout, func() (err error) {
			nc, err = nats.Connect(n.url, nats.UserInfo("signin-2", passwordOf("signin-2")))
			return err
		})
		subject := fmt.Sprintf("user.refresh_due.acme.u%d", i)
		asking := must(jetstream.New(nc))(t)
		eventually(t, startTimeout, func() error { // a reload takes the imports for a moment
			_, err := asking.Publish(t.Context(), subject, nil)
			return err
		})
		nc.Close()
		eventually(t, startTimeout, func() error { // and JetStream itself
			s, err := js.Stream(t.Context(), topology.Requests)
			if err == nil {
				_, err = s.GetLastMsgForSubject(t.Context(), "from.signin."+subject)
			}
			return err
		})
		if i == 0 && !was.IsConnected() {
			t.Error("the user that is there was cut off")
		}
	}
	select {
	case <-cut:
	case <-time.After(startTimeout):
		t.Error("the user that was removed is connected")
	}
	if _, err := nats.Connect(n.url, nats.UserInfo("signin", passwordOf("signin"))); err == nil {
		t.Error("the old password is good")
	}
}
