package e2e

import (
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/testkit/proc"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// senderRights are settings with which the service signin may sign users in, and ask for nothing.
const senderRights = `
providers:
  - id: acme
    preset: propelauth
    auth_url: %s
    client_id: c
    client_secret: s
    allow_http_loopback: true
senders:
  signin: {login: [acme]}
`

// A service publishes as it always did, and renewd knows which service it was. The server says so,
// and neither a subject, a reply nor a header that the service chooses changes that.
func TestTheServerNamesTheSender(t *testing.T) {
	t.Run("nats-server", func(t *testing.T) {
		n := startNATSAccounts(t)
		theServerNamesTheSender(t, func(*daemon) natsAccounts { return n },
			"RENEWD_STREAMS_APPLY=true", "RENEWD_NATS_URL="+n.url, "RENEWD_NATS_USER=renewd",
			"RENEWD_NATS_PASSWORD="+passwordOf("renewd"))
	})
	t.Run("embedded", func(t *testing.T) {
		environ := []string{
			"RENEWD_NATS_ACCOUNTS=" + must(filepath.Abs(root+"/deploy/nats/nats.conf"))(t),
		}
		for _, user := range []string{"renewd", "operator", "signin", "shop"} {
			environ = append(environ,
				"RENEWD_NATS_"+strings.ToUpper(user)+"_PASSWORD="+passwordOf(user))
		}
		theServerNamesTheSender(t,
			func(d *daemon) natsAccounts { return natsAccounts{url: "nats://" + d.nats} },
			environ...)
	})
}

func theServerNamesTheSender(t *testing.T, server func(*daemon) natsAccounts, environ ...string) {
	t.Helper()
	provider := standin.New(standin.Options{ClientID: "c", ClientSecret: "s"})
	served := httptest.NewServer(provider)
	t.Cleanup(served.Close)
	d := serveHere(t, fmt.Sprintf(senderRights, served.URL), environ)
	n := server(d)

	signin := n.as(t, "signin")
	app := must(publishers.New(signin, publishers.WithAPIPrefix("$JS.renewd.API"),
		publishers.WithSource("/signin")))(t)
	login := provider.Login("jane")
	must(app.Login(t.Context(), "acme", "jane", publishers.Tokens{
		AccessToken: login.Access, RefreshToken: login.Refresh, ExpiresIn: time.Hour,
	}))(t)
	must(app.RefreshDue(t.Context(), "acme", "joe", schema.RefreshDue{}))(t)
	forge(t, signin)

	js := must(jetstream.New(n.as(t, "renewd")))(t)
	synced := must(schema.Data[schema.Synced](outcomeOn(t, js, "user.synced.acme.jane")))(t)
	if c := synced.Cause; c.Sender != "signin" || c.Source != "/signin" {
		t.Errorf("the login was of %+v", c)
	}
	for _, user := range []string{"joe", "forged"} {
		rejected := must(schema.Data[schema.Rejected](
			outcomeOn(t, js, "message.rejected.acme."+user),
		))(t)
		if rejected.Reason != schema.RejectSender || rejected.Cause.Sender != "signin" {
			t.Errorf("%s: the request of a sender that may not ask: %+v", user, rejected)
		}
	}
	outcomes := must(must(js.Stream(t.Context(), topology.Outcomes))(t).Info(t.Context()))(t)
	if outcomes.State.Msgs != 3 {
		t.Errorf("%d outcomes, want those of what came through the import", outcomes.State.Msgs)
	}
	operatorSuspends(t, n, signin)
	d.stop(t)
}

// operatorSuspends: an operator may suspend and resume without being named in the setting senders.
// A service may not, and its server does not even let it ask.
func operatorSuspends(t *testing.T, n natsAccounts, signin *nats.Conn) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "operator.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, senderRights, "http://127.0.0.1:1"),
		0o600); err != nil {
		t.Fatal(err)
	}
	environ := []string{
		"RENEWD_CONFIG=" + file, "RENEWD_NATS_URL=" + n.url, "RENEWD_NATS_USER=operator",
		"RENEWD_NATS_PASSWORD=" + passwordOf("operator"), "RENEWD_BY=kim",
	}
	for _, do := range []struct{ what, says string }{
		{"suspend", "user.suspended"}, {"resume", "user.synced"},
	} {
		cmd := command(t, environ, "user", do.what, "jane", "--reason", "try", "-o", "json")
		var out strings.Builder
		cmd.Stdout = &out
		err := cmd.Run()
		text := out.String()
		if err != nil || !strings.Contains(text, do.says) ||
			!strings.Contains(text, `"/operators/kim"`) {
			t.Errorf("%s: %v: %s", do.what, err, text)
		}
	}
	if m, err := signin.Request("user.suspend.acme.jane", nil, time.Second); err == nil {
		t.Errorf("a service may suspend: %s", m.Data)
	}
}

// serveHere is serve for a daemon whose NATS server is named by the environment or embedded.
func serveHere(t *testing.T, settings string, environ []string) *daemon {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "renewd.yaml")
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	d := &daemon{http: proc.FreeAddrFor(t), nats: proc.FreeAddrFor(t), data: dir}
	environ = append(environ, "RENEWD_CONFIG="+file, "RENEWD_DATA_DIR="+dir,
		"RENEWD_HTTP_ADDR="+d.http)
	if !slices.ContainsFunc(environ, func(kv string) bool {
		return strings.HasPrefix(kv, "RENEWD_NATS_URL=")
	}) {
		environ = append(environ, "RENEWD_NATS_LISTEN="+d.nats)
	} else if err := command(t, environ, "keys", "new").Run(); err != nil {
		t.Fatal(err)
	}
	d.process = start(t, command(t, environ, "serve"))
	eventually(t, startTimeout, d.ready(t.Context()))
	return d
}

// forge publishes requests in another service's name. Only the last request may arrive, in the
// sender's own name.
func forge(t *testing.T, nc *nats.Conn) {
	t.Helper()
	for _, subject := range []string{
		"from.shop.user.refresh_due.acme.forged", "from.signin.user.refresh_due.acme.forged",
		"RENEWD.from.shop.user.refresh_due.acme.forged",
	} {
		if err := nc.Publish(subject, nil); err != nil {
			t.Fatal(err)
		}
		err := nc.PublishRequest("$JS.renewd.API.STREAM.INFO.KV_renewd_keys", subject, nil)
		if err != nil {
			t.Fatal(err)
		}
	}
	m := nats.NewMsg("user.refresh_due.acme.forged")
	m.Header.Set("Renewd-Sender", "shop")
	m.Header.Set("Nats-Request-Info", `{"acc":"SHOP"}`)
	m.Reply = "from.shop.user.refresh_due.acme.forged"
	if err := nc.PublishMsg(m); err != nil {
		t.Fatal(err)
	}
}

// outcomeOn waits for the first outcome on a subject.
func outcomeOn(t *testing.T, js jetstream.JetStream, subject string) schema.Event {
	t.Helper()
	var e schema.Event
	eventually(t, startTimeout, func() error {
		s, err := js.Stream(t.Context(), topology.Outcomes)
		if err != nil {
			return err
		}
		m, err := s.GetLastMsgForSubject(t.Context(), subject)
		if err != nil {
			return err
		}
		e, err = schema.Subjects{}.Decode(schema.Header(m.Header), m.Data,
			schema.Arrival{Subject: m.Subject})
		return err
	})
	return e
}
