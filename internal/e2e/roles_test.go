package e2e

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

// natsRoles is a server that runs deploy/nats/nats.conf, with everything but its port and folder as
// in the file.
type natsRoles struct{ server *server.Server }

func rolePassword(role string) string { return "password-of-" + role }

func startNATSRoles(t *testing.T) natsRoles {
	t.Helper()
	for _, role := range []string{"publisher", "subscriber", "auditor", "renewd"} {
		t.Setenv("RENEWD_NATS_"+strings.ToUpper(role)+"_PASSWORD", rolePassword(role))
	}
	opts := must(server.ProcessConfigFile(root + "/deploy/nats/nats.conf"))(t)
	opts.StoreDir, opts.DontListen, opts.NoLog, opts.NoSigs = t.TempDir(), true, true, true
	ns := must(server.NewServer(opts))(t)
	ns.Start()
	t.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("the NATS server did not start")
	}
	return natsRoles{ns}
}

// as connects as one of the roles, with the inbox that the role has.
func (n natsRoles) as(t *testing.T, role string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	opts = append(opts, nats.InProcessServer(n.server), nats.UserInfo(role, rolePassword(role)), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if role != "renewd" {
		opts = append(opts, nats.CustomInboxPrefix("_INBOX_"+role))
	}
	nc := must(nats.Connect("", opts...))(t)
	t.Cleanup(nc.Close)
	return nc
}

// refused says whether the server refused what f did on a connection of this role. A permission is
// not answered but reported: what follows it on the connection has been read once a flush returns.
func (n natsRoles) refused(t *testing.T, role string, f func(*nats.Conn) error) bool {
	t.Helper()
	nc := n.as(t, role)
	defer nc.Close()
	if err := f(nc); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return errors.Is(nc.LastError(), nats.ErrPermissionViolation)
}

// What renewd does on the server, it must be able to do as the role renewd.
func TestRoleRenewdSuffices(t *testing.T) {
	n := startNATSRoles(t)
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
	newest := must(engine.NewestLogin(ctx))(t)
	if err := errors.Join(engine.Unpark(ctx, key, 0), engine.Cancel(ctx, key), engine.Erase(ctx, key, newest), engine.Settle(ctx, "acme")); err != nil {
		t.Errorf("erase: %v", err)
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

// Everything a role must not do, in the words of the server: what a stolen password of it is worth.
func TestRolesAreRefusedTheRest(t *testing.T) {
	n := startNATSRoles(t)
	must(stream.Ensure(t.Context(), must(jetstream.New(n.as(t, "renewd")))(t), stream.Topology{Grants: true, Providers: []stream.Provider{{ID: "acme"}}}))(t)

	outcomes := []string{"user.synced.acme.u1", "user.reauth_required.acme.u1", "provider.degraded.acme"}
	inside := []string{"renewal.due.acme.u1", "renewal.timer.acme.u1", "parked.acme.u1", "$KV.renewd_grants.acme.u1", "$KV.renewd_keys.jwks", "$KV.renewd_providers.acme"}
	commands := []string{"user.login.acme.u1", "user.refresh_due.acme.u1"}
	change := []string{
		"$JS.API.STREAM.DELETE.RENEWALS", "$JS.API.STREAM.DELETE.OUTCOMES", "$JS.API.STREAM.CREATE.MINE",
		"$JS.API.STREAM.SNAPSHOT.LOGINS", "$JS.API.CONSUMER.DURABLE.CREATE.OTHER.LOGINS",
	}
	manage := []string{
		"$JS.API.STREAM.UPDATE.OUTCOMES", "$JS.API.STREAM.PURGE.OUTCOMES", "$JS.API.STREAM.MSG.DELETE.OUTCOMES", "$JS.API.CONSUMER.PAUSE.RENEWALS.renew-acme",
	}
	spy := []string{
		"$JS.API.STREAM.MSG.GET.LOGINS", "$JS.API.STREAM.MSG.GET.KV_renewd_grants", "$JS.API.STREAM.MSG.GET.PARKED",
		"$JS.API.CONSUMER.CREATE.LOGINS.mine", "$JS.API.CONSUMER.CREATE.KV_renewd_grants.mine.>", "$JS.API.CONSUMER.MSG.NEXT.LOGINS.login",
	}
	read := []string{"$JS.API.CONSUMER.CREATE.OUTCOMES.mine", "$JS.API.DIRECT.GET.OUTCOMES", "$JS.API.STREAM.MSG.GET.OUTCOMES"}
	everybodys := []string{">", "user.>", "user.login.>", "renewal.>", "$KV.>", "$JS.>"}

	for role, no := range map[string]struct{ publish, subscribe [][]string }{
		"publisher":  {[][]string{outcomes, inside, change, manage, spy, read, {"$JS.ACK.LOGINS.login.1.1.1.1.0"}}, [][]string{everybodys, outcomes, {"_INBOX.>", "_INBOX_auditor.>"}}},
		"subscriber": {[][]string{outcomes, inside, change, manage, spy, commands}, [][]string{everybodys, {"_INBOX.>", "_INBOX_renewd.>", "_INBOX_auditor.>"}}},
		"auditor":    {[][]string{outcomes, inside, change, manage, spy, commands, {"$JS.ACK.OUTCOMES.durable.1.1.1.1.0"}}, [][]string{everybodys, outcomes, {"_INBOX.>", "_INBOX_publisher.>"}}},
		"renewd":     {[][]string{commands, change}, [][]string{everybodys, {"_INBOX_publisher.>"}}},
	} {
		for _, list := range no.publish {
			for _, subject := range list {
				if !n.refused(t, role, func(nc *nats.Conn) error { return nc.Publish(subject, nil) }) {
					t.Errorf("%s may publish to %s", role, subject)
				}
			}
		}
		for _, list := range no.subscribe {
			for _, subject := range list {
				if !n.refused(t, role, func(nc *nats.Conn) error { _, err := nc.SubscribeSync(subject); return err }) {
					t.Errorf("%s may subscribe to %s", role, subject)
				}
			}
		}
	}
}

// A publisher's headers are not subject to permissions: the streams themselves must refuse those
// that reach beyond its own message.
func TestRolePublisherCannotWipeByHeader(t *testing.T) {
	n := startNATSRoles(t)
	ctx := t.Context()
	engineJS := must(jetstream.New(n.as(t, "renewd")))(t)
	must(stream.Ensure(ctx, engineJS, stream.Topology{Providers: []stream.Provider{{ID: "acme"}}}))(t)
	publisher := must(jetstream.New(n.as(t, "publisher")))(t)
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
	info := must(must(engineJS.Stream(ctx, stream.Requests))(t).Info(ctx))(t)
	if info.State.Msgs != 1 {
		t.Errorf("REQUESTS holds %d messages, want the one of u1", info.State.Msgs)
	}
}
