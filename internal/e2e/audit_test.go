package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/audit"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// eachServerWithAudit runs a test against all servers that know accounts, with an account for the
// audit.
func eachServerWithAudit(t *testing.T, test func(t *testing.T, n natsAccounts)) {
	t.Helper()
	users := []string{"renewd", "operator", "signin", "shop", "audit", "auditor"}
	t.Run("nats-server", func(t *testing.T) {
		test(t, startNATSConfigured(t, must(printedNATS(t, "--audit"))(t), t.TempDir(), users...))
	})
	t.Run("operator mode", func(t *testing.T) { test(t, startNATSOperator(t, "--audit")) })
	t.Run("embedded", func(t *testing.T) {
		for _, user := range users {
			t.Setenv("RENEWD_NATS_"+strings.ToUpper(user)+"_PASSWORD", passwordOf(user))
		}
		file := filepath.Join(t.TempDir(), "nats.conf")
		err := os.WriteFile(file, []byte(must(printedNATS(t, "--audit"))(t)), 0o600)
		if err != nil {
			t.Fatal(err)
		}
		s := must(natsd.Start(t.Context(), natsd.Config{
			StoreDir: t.TempDir(), Listen: "127.0.0.1:0", Auth: natsd.Auth{Accounts: file},
		}))(t)
		t.Cleanup(s.Shutdown)
		test(t, natsAccounts{url: s.ClientURL()})
	})
}

// The copy of the outcomes keeps what was stored. The users of renewd's account may do anything to
// their own stream, by their rights or by a detour, and the copy's own account may ask for
// anything.
func TestTheCopyIsOutOfTheWorkersReach(t *testing.T) { eachServerWithAudit(t, copyIsOutOfReach) }

func copyIsOutOfReach(t *testing.T, n natsAccounts) {
	t.Helper()
	ctx := t.Context()
	nc, js := n.asRenewd(t)
	engine := must(stream.NewEngine(js, stream.Config{}))(t)
	publish := func(id string) {
		if err := engine.Publish(ctx, outcomeOf(schema.UserSynced, id)); err != nil {
			t.Fatal(err)
		}
	}
	publish("before")
	operator := must(jetstream.New(n.as(t, "operator")))(t)
	auditor := must(jetstream.New(n.as(t, "audit")))(t)
	for range 2 { // the second time finds what is there
		if err := audit.Source(ctx, operator, schema.Subjects{}); err != nil {
			t.Fatal(err)
		}
		must(audit.Copy(ctx, auditor, schema.Subjects{}, "$JS.renewd.API", 1, 0))(t)
	}
	holds := func(want ...string) {
		t.Helper()
		eventually(t, startTimeout, func() error {
			if have := idsIn(t, auditor); !slices.Equal(have, want) {
				return fmt.Errorf("the copy holds %v, want %v", have, want)
			}
			return nil
		})
	}
	holds("before")

	// What a thief of the workers' password can do: each answer of the server goes to a subject
	// that the user may not publish to. The last of these answers purges renewd's own stream.
	outcomes := must(js.Stream(ctx, topology.Outcomes))(t)
	for _, reply := range []string{
		"audit.copy", "$JS.API.CONSUMER.RESET.OUTCOMES.audit-copy", "$JS.FC.OUTCOMES.audit-copy.x",
		"$JS.API.STREAM.PURGE.OUTCOMES",
	} {
		for _, request := range []string{
			"$JS.API.STREAM.INFO.OUTCOMES",
			"$JS.API.STREAM.MSG.GET.OUTCOMES",
			"$JS.API.DIRECT.GET.OUTCOMES",
		} {
			if err := nc.PublishRequest(request, reply, []byte(`{"seq":1}`)); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, startTimeout, func() error {
		if held := must(outcomes.Info(ctx))(t).State.Msgs; held > 0 {
			return fmt.Errorf("OUTCOMES holds %d", held)
		}
		return nil
	})
	publish("between")
	holds("before", "between")
	publish("after")
	holds("before", "between", "after")
	for _, subject := range []string{"audit.copy", "$JS.renewd.API.STREAM.PURGE.OUTCOMES"} {
		thief := n.as(t, "renewd")
		err := errors.Join(thief.Publish(subject, nil), thief.Flush())
		if err != nil || !errors.Is(thief.LastError(), nats.ErrPermissionViolation) {
			t.Errorf("the workers' user may publish to %s: %v", subject, err)
		}
	}
	thin := must(js.PushConsumer(ctx, topology.Outcomes, audit.Durable))(t).CachedInfo().Config
	thin.FilterSubject = "user.reauth_required.>"
	must(js.UpdatePushConsumer(ctx, topology.Outcomes, thin))(t)
	_, err := audit.Copy(ctx, auditor, schema.Subjects{}, "$JS.renewd.API", 1, 0)
	if err == nil || !strings.Contains(err.Error(), "leaves outcomes out") {
		t.Errorf("a copy that a thief of the workers' password thins out: %v", err)
	}
	if err := audit.Source(ctx, operator, schema.Subjects{}); err != nil {
		t.Fatal(err)
	}
	must(audit.Copy(ctx, auditor, schema.Subjects{}, "$JS.renewd.API", 1, 0))(t)
	if err := operator.DeleteStream(ctx, topology.Outcomes); err != nil {
		t.Fatal(err)
	}
	copied := must(auditor.Stream(ctx, topology.Outcomes))(t)
	shortened := copied.CachedInfo().Config
	shortened.MaxMsgs = 1
	opened := copied.CachedInfo().Config
	opened.Subjects = []string{"user.synced.>"}
	update := func(to jetstream.StreamConfig) error {
		_, err := auditor.UpdateStream(short(t), to)
		return err
	}
	for name, do := range map[string]func() error{
		"purge":   func() error { return copied.Purge(short(t)) },
		"delete":  func() error { return copied.DeleteMsg(short(t), 1) },
		"remove":  func() error { return auditor.DeleteStream(short(t), topology.Outcomes) },
		"shorten": func() error { return update(shortened) },
		"open":    func() error { return update(opened) },
		"publish": func() error {
			_, err := auditor.Publish(short(t), "user.synced.acme.u1", nil)
			return err
		},
	} {
		if err := do(); err == nil {
			t.Errorf("the audit's own user may %s", name)
		}
	}
	holds("before", "between", "after")
}

func short(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	t.Cleanup(cancel)
	return ctx
}

// idsIn returns the ids of the events in the stream of outcomes.
func idsIn(t *testing.T, js jetstream.JetStream) (ids []string) {
	t.Helper()
	s := must(js.Stream(t.Context(), topology.Outcomes))(t)
	for seq := max(1, s.CachedInfo().State.FirstSeq); seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(t.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, m.Header.Get("ce-id"))
	}
	return ids
}

// The steps of docs/security.md, as the commands do them. The operator makes the source, audit
// makes the copy, and the auditor reads the copy with renewd replay and may do nothing else.
func TestTheAuditorReplaysTheCopy(t *testing.T) {
	n := startNATSConfigured(t, must(printedNATS(t, "--audit"))(t), t.TempDir(), "renewd",
		"operator", "signin", "shop", "audit", "auditor")
	ctx := t.Context()
	_, js := n.asRenewd(t)
	engine := must(stream.NewEngine(js, stream.Config{}))(t)
	if err := engine.Publish(ctx, outcomeOf(schema.UserSynced, "e1")); err != nil {
		t.Fatal(err)
	}
	as := func(user string, args ...string) string {
		t.Helper()
		cmd := command(t, []string{
			"RENEWD_NATS_URL=" + n.url, "RENEWD_NATS_USER=" + user,
			"RENEWD_NATS_PASSWORD=" + passwordOf(user),
			"RENEWD_AUTH_URL=https://127.0.0.1:1", "RENEWD_CLIENT_ID=c",
		}, args...)
		cmd.Stdout = nil
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v: %v", user, args, err)
		}
		return string(out)
	}
	as("operator", "audit", "source", "--by", "ann")
	as("audit", "audit", "copy")
	eventually(t, startTimeout, func() error {
		if out := as("audit", "audit", "copy"); !strings.Contains(out, "holds 2 outcomes") {
			return errors.New(out)
		}
		return nil
	})
	err := must(must(jetstream.New(n.as(t, "operator")))(t).Stream(ctx, topology.Outcomes))(t).
		Purge(ctx)
	if err != nil {
		t.Fatal(err)
	}
	out := as("auditor", "replay", "-o", "json")
	if !strings.Contains(out, `"id":"e1"`) || !strings.Contains(out, `"by":"ann"`) {
		t.Errorf("the auditor replays %s", out)
	}
	nc := n.as(t, "auditor")
	for _, subject := range []string{
		"$JS.API.STREAM.PURGE.OUTCOMES", "$JS.API.STREAM.DELETE.OUTCOMES",
		"$JS.API.STREAM.UPDATE.OUTCOMES", "$JS.renewd.API.CONSUMER.RESET.OUTCOMES.audit-copy",
	} {
		err := errors.Join(nc.Publish(subject, nil), nc.Flush())
		if err != nil || !errors.Is(nc.LastError(), nats.ErrPermissionViolation) ||
			!strings.Contains(nc.LastError().Error(), subject) {
			t.Errorf("the auditor may publish to %s: %v, %v", subject, err, nc.LastError())
		}
	}
}
