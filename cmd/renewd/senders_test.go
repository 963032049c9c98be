package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/topology"
)

// A worker runs on the streams of the version before, which take no command that names its sender,
// and says what to do; once they are applied it handles those commands too, without a restart.
func TestServeOnStreamsOfBeforeSenders(t *testing.T) {
	t.Parallel()
	url := natsServer(t)
	// At this address is no provider.
	const provider = "providers:\n  - id: acme\n" +
		"    auth_url: https://127.0.0.1:1\n    client_id: c1\n"
	settings := write(t, "renewd.yaml", provider+
		"senders:\n  shop: {ask: [acme]}\n  busy: {ask: [acme], rate: 0.001, burst: 2}\n")
	env := []string{
		"RENEWD_CONFIG=" + settings, "RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + t.TempDir(),
	}
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	js := client(t, url)
	ctx := t.Context()
	for name, durable := range map[string]string{
		topology.Logins:   topology.ConsumerLogin,
		topology.Requests: topology.ConsumerRequest,
	} {
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
	is(t, diagnosis(t, env, exitFailed)["streams"], admin.Warning, "streams apply")
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
	is(t, diagnosis(t, env, exitFailed)["streams"], admin.Fine, "")
	for _, subject := range []string{
		"from.shop.user.refresh_due.acme.u2", "from.crm.user.refresh_due.acme.u3",
	} {
		if err := ask(subject); err != nil {
			t.Fatal(err)
		}
	}
	out = answer(t, js, "user.refresh_failed.acme.u2")
	if !strings.Contains(out, "unknown_grant") || !strings.Contains(out, `"sender":"shop"`) {
		t.Errorf("a command of a sender that may was answered by %s", out)
	}
	busyRequests(t, js)
	out = answer(t, js, "message.rejected.acme.u3")
	if !strings.Contains(out, "crm is not in") || !strings.Contains(out, `"sender":"crm"`) {
		t.Errorf("a command of a stranger was answered by %s", out)
	}
}

// busyRequests has a sender with a rate ask for more users than it may.
func busyRequests(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	for n := range 5 {
		_, err := js.Publish(t.Context(), fmt.Sprintf("from.busy.user.refresh_due.acme.busy%d", n),
			nil)
		if err != nil {
			t.Fatal(err)
		}
	}
	answers := map[string]int{}
	for n := range 5 {
		out := answer(t, js, fmt.Sprintf("*.*.acme.busy%d", n))
		for _, says := range []string{"senders.busy.rate", "unknown_grant"} {
			if strings.Contains(out, says) && strings.Contains(out, `"sender":"busy"`) {
				answers[says]++
			}
		}
	}
	if answers["unknown_grant"] != 2 || answers["senders.busy.rate"] != 3 {
		t.Errorf("the requests of a sender with a rate were answered by %v, "+
			"want 2 in its burst and 3 beyond", answers)
	}
}

// answer is the data of the first outcome on a subject, from now on or before.
func answer(t *testing.T, js jetstream.JetStream, subject string) string {
	t.Helper()
	c, err := js.OrderedConsumer(t.Context(), topology.Outcomes,
		jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}})
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Next(jetstream.FetchMaxWait(dialLimit))
	if err != nil {
		t.Fatalf("%s: no answer: %v", subject, err)
	}
	return string(m.Data())
}
