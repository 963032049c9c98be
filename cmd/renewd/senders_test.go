package main

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/stream"
)

// A worker runs on the streams of the version before, which take no command that names its sender,
// and says what to do; once they are applied it handles those commands too, without a restart.
func TestServeOnStreamsOfBeforeSenders(t *testing.T) {
	t.Parallel()
	url := natsServer(t)
	provider := strings.NewReplacer("oidc", "propelauth", "id.acme.example", "127.0.0.1:1").Replace(acme) // nobody is there
	settings := write(t, "renewd.yaml", provider+"senders:\n  shop: {ask: [acme]}\n")
	env := []string{"RENEWD_CONFIG=" + settings, "RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + t.TempDir()}
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	js := client(t, url)
	ctx := t.Context()
	for name, durable := range map[string]string{stream.Logins: stream.ConsumerLogin, stream.Requests: stream.ConsumerRequest} {
		s, err := js.Stream(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		config := s.CachedInfo().Config
		config.Subjects = config.Subjects[:1]
		c, err := s.Consumer(ctx, durable)
		if err != nil {
			t.Fatal(err)
		}
		filtered := c.CachedInfo().Config
		filtered.FilterSubject = config.Subjects[0]
		if _, err = js.UpdateConsumer(ctx, name, filtered); err == nil {
			_, err = js.UpdateStream(ctx, config)
		}
		if err != nil {
			t.Fatal(err)
		}
	}

	start(t, append(env, "RENEWD_HTTP_ADDR=127.0.0.1:0"))
	diagnosis(t, env, exitFailed)["streams"].is(t, warning, "streams apply")
	ask := func(subject string) error {
		_, err := js.Publish(ctx, subject, nil)
		return err
	}
	if err := ask("from.shop.user.refresh_due.acme.u1"); err == nil {
		t.Error("a command with a sender was taken before the streams were applied")
	}
	if err := ask("user.refresh_due.acme.u1"); err != nil {
		t.Fatal(err)
	}
	out := answer(t, js, "message.rejected.acme.u1")
	if !strings.Contains(out, "sender_refused") || strings.Contains(out, `"sender":"`) {
		t.Errorf("a command without a sender was answered by %s", out)
	}

	want(t, env, exitDone, "from.*.user.login.>", "streams", "apply")
	diagnosis(t, env, exitFailed)["streams"].is(t, fine, "")
	for _, subject := range []string{"from.shop.user.refresh_due.acme.u2", "from.crm.user.refresh_due.acme.u3"} {
		if err := ask(subject); err != nil {
			t.Fatal(err)
		}
	}
	if out := answer(t, js, "user.refresh_failed.acme.u2"); !strings.Contains(out, "unknown_grant") || !strings.Contains(out, `"sender":"shop"`) {
		t.Errorf("a command of a sender that may was answered by %s", out)
	}
	if out := answer(t, js, "message.rejected.acme.u3"); !strings.Contains(out, "crm is not in") || !strings.Contains(out, `"sender":"crm"`) {
		t.Errorf("a command of a stranger was answered by %s", out)
	}
}

// answer is the data of the first outcome on a subject, from now on or before.
func answer(t *testing.T, js jetstream.JetStream, subject string) string {
	t.Helper()
	c, err := js.OrderedConsumer(t.Context(), stream.Outcomes, jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}})
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Next(jetstream.FetchMaxWait(natsDialLimit))
	if err != nil {
		t.Fatalf("%s: no answer: %v", subject, err)
	}
	return string(m.Data())
}
