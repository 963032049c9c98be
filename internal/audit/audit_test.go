package audit_test

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/audit"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/testkit/streams"
	"github.com/renewd/renewd/schema"
)

// In renewd's own account there is a stream of that name, which is no copy: nothing of it changes,
// and who runs the command there is told.
func TestACopyIsNotMadeInRenewdsAccount(t *testing.T) {
	js := streams.Start(t, natsd.Config{})
	subjects, err := schema.NewSubjects("eu")
	if err != nil {
		t.Fatal(err)
	}
	name := subjects.Name("OUTCOMES")
	if err := audit.Source(t.Context(), js, subjects); err == nil {
		t.Error("a source without a stream was made")
	}
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name:     name,
		Subjects: []string{"eu.user.>"},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = audit.Copy(t.Context(), js, subjects, "$JS.renewd.API", 1, 0)
	if err == nil || !strings.Contains(err.Error(), "the account of the audit") {
		t.Errorf("got %v", err)
	}
	for range 2 {
		if err := audit.Source(t.Context(), js, subjects); err != nil {
			t.Fatal(err)
		}
	}
	c, err := js.PushConsumer(t.Context(), name, audit.Durable)
	if err != nil || c.CachedInfo().Config.DeliverSubject != "eu.audit.copy" {
		t.Errorf("got %+v, %v", c, err)
	}
}
