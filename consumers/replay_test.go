package consumers_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/testkit/link"
	"github.com/renewd/renewd/schema"
)

// replayed collects the ids of a replay; "!" stands for a message that is no event.
func replayed(t *testing.T, nc *nats.Conn, q consumers.Query) (ids []string) {
	t.Helper()
	for e, err := range consumers.Replay(t.Context(), nc, q) {
		switch _, malformed := errors.AsType[*schema.Malformed](err); {
		case malformed:
			ids = append(ids, "!")
		case err != nil:
			t.Fatal(err)
		default:
			ids = append(ids, e.ID)
		}
	}
	return ids
}

// storedAt is when the stream took a message.
func storedAt(t *testing.T, js jetstream.JetStream, sequence uint64) time.Time {
	t.Helper()
	s, err := js.Stream(t.Context(), "OUTCOMES")
	if err != nil {
		t.Fatal(err)
	}
	msg, err := s.GetMsg(t.Context(), sequence)
	if err != nil {
		t.Fatal(err)
	}
	return msg.Time
}

func TestReplay(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	js := outcomes(t, nc)
	say(t, js, "1", schema.UserSynced, "u17", struct{}{})
	say(t, js, "2", schema.UserSynced, "auth0|abc", struct{}{})
	say(t, js, "3", schema.UserReauthRequired, "u17", struct{}{})
	say(t, js, "4", schema.ProviderDegraded, "", struct{}{})
	say(t, js, "5", schema.UserSynced, "u17", struct{}{})
	if _, err := js.Publish(t.Context(), "user.synced.propelauth.u17",
		[]byte("<html>")); err != nil {
		t.Fatal(err)
	}
	say(t, js, "7", schema.MessageRejected, "u17", struct{}{})
	for name, c := range map[string]struct {
		q    consumers.Query
		want string
	}{
		"all": {consumers.Query{}, "1 2 3 4 5 ! 7"},
		"type": {
			consumers.Query{
				Types: []schema.Type{schema.UserReauthRequired, schema.ProviderDegraded},
			},
			"3 4",
		},
		"user":     {consumers.Query{Provider: "propelauth", User: "u17"}, "1 3 5 ! 7"},
		"escaped":  {consumers.Query{Provider: "propelauth", User: "auth0|abc"}, "2"},
		"nobody":   {consumers.Query{Provider: "propelauth", User: "u18"}, ""},
		"provider": {consumers.Query{Provider: "okta"}, ""},
		"since":    {consumers.Query{Since: storedAt(t, js, 4)}, "4 5 ! 7"},
		"until":    {consumers.Query{Until: storedAt(t, js, 4)}, "1 2 3"},
		"between": {
			consumers.Query{Since: storedAt(t, js, 2), Until: storedAt(t, js, 5)}, "2 3 4",
		},
		"user, since": {
			consumers.Query{Provider: "propelauth", User: "u17", Since: storedAt(t, js, 2)},
			"3 5 ! 7",
		},
		"later": {consumers.Query{Since: time.Now().Add(time.Hour)}, ""},
	} {
		if got := strings.Join(replayed(t, nc, c.q), " "); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	s, err := js.Stream(t.Context(), "OUTCOMES")
	if err != nil {
		t.Fatal(err)
	}
	if n := s.CachedInfo().State.Consumers; n != 0 {
		t.Errorf("%d consumers left behind", n)
	}
}

// fill stores n events without waiting for each.
func fill(t *testing.T, js jetstream.JetStream, n int) (want []string) {
	t.Helper()
	for i := range n {
		of := schema.Outcomes()[i%3]
		h, body := schema.Encode(schema.Event{
			ID:       fmt.Sprint(i),
			Source:   "/renewd",
			Type:     of,
			Provider: "propelauth",
			User:     "u17",
			Time:     time.Now(),
		})
		msg := &nats.Msg{
			Subject: string(of) + ".propelauth.u17",
			Header:  nats.Header(h),
			Data:    body,
		}
		if _, err := js.PublishMsgAsync(msg); err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprint(i))
	}
	receive(t, js.PublishAsyncComplete())
	return want
}

func TestReplayEndsWithWhatWasStoredWhenItBegan(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	js := outcomes(t, nc)
	want := fill(t, js, 3000)
	var got []string
	for e, err := range consumers.Replay(t.Context(), nc, consumers.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		if len(got)%500 == 0 {
			say(t, js, fmt.Sprint("new", len(got)), schema.UserSynced, "u17", struct{}{})
		}
		got = append(got, e.ID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d events, want the %d in their order", len(got), len(want))
	}
}

func TestReplayMayBeLeftAndRepeated(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	fill(t, outcomes(t, nc), 10)
	all := consumers.Replay(t.Context(), nc, consumers.Query{})
	for range 2 {
		for e, err := range all {
			if err != nil || e.ID != "0" {
				t.Fatalf("%v, %v", e, err)
			}
			break
		}
	}
}

func TestReplayGoesOnAfterACut(t *testing.T) {
	t.Parallel()
	s := start(t, true)
	want := fill(t, outcomes(t, connect(t, s)), 3000)
	wire := link.For(t, s.Addr().String())
	var got []string
	for e, err := range consumers.Replay(t.Context(), through(t, wire), consumers.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, e.ID); len(got) == 1000 {
			wire.HangUp()
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d events, want the %d in their order", len(got), len(want))
	}
}

func TestReplayNeverEndsEarlyWithoutAnError(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	fill(t, outcomes(t, nc), 2000)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	for _, err := range consumers.Replay(ctx, nc, consumers.Query{}) {
		cancel()
		last = err
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("ended with %v", last)
	}
}

func TestQueryNamesTheField(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	for field, q := range map[string]consumers.Query{
		"Provider": {User: "u17"},
		"Until":    {Since: time.Now(), Until: time.Now().Add(-time.Hour)},
		"Types":    {Types: []schema.Type{"user.*"}},
		"Types: none": {
			Types:    []schema.Type{schema.ProviderDegraded},
			Provider: "propelauth",
			User:     "u17",
		},
		"stream": {}, // no stream was made
	} {
		var last error
		for _, err := range consumers.Replay(t.Context(), nc, q) {
			last = err
		}
		if last == nil || !strings.Contains(last.Error(), field) {
			t.Errorf("%s: %v", field, last)
		}
	}
}

// theirs is the server's time, as Await sees it.
func theirs(t *testing.T, js jetstream.JetStream) time.Time {
	t.Helper()
	s, err := js.Stream(t.Context(), "OUTCOMES")
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().TimeStamp
}

func TestAwait(t *testing.T) {
	t.Parallel()
	cause := func(id string) schema.Cause {
		return schema.Cause{ID: id, Type: schema.UserRefreshDue, Source: "/crm"}
	}
	for name, c := range map[string]struct {
		of   schema.Type
		data any
	}{
		"synced": {
			schema.UserSynced,
			schema.Synced{Cause: cause("mine"), BeganAt: time.Now().Add(-time.Hour)},
		},
		"reauth": {
			schema.UserReauthRequired, schema.ReauthRequired{Cause: cause("mine")},
		},
		"rejected": {schema.MessageRejected, schema.Rejected{Cause: cause("mine")}},
		"rejected, unnamed": {
			schema.MessageRejected,
			schema.Rejected{Cause: schema.Cause{ID: "mine", Type: schema.UserRefreshDue}},
		},
		"replaced": {
			schema.UserSynced,
			schema.Synced{Cause: cause("newer"), BeganAt: time.Now().Add(time.Hour)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nc := connect(t, start(t, false))
			js := outcomes(t, nc)
			say(t, js, "before", schema.UserSynced, "u17",
				schema.Synced{Cause: cause("mine"), BeganAt: time.Now().Add(time.Hour)})
			whom := consumers.Whom{Provider: "propelauth", User: "u17"}
			publish := func(context.Context) (string, string, error) {
				// The answer is there before publish returns, among events that are not the answer.
				say(t, js, "older work", schema.UserSynced, "u17",
					schema.Synced{Cause: cause("other"), BeganAt: theirs(t, js)})
				say(t, js, "other user", schema.UserSynced, "u18",
					schema.Synced{Cause: cause("mine"), BeganAt: time.Now().Add(time.Hour)})
				say(t, js, "other source", schema.UserSynced, "u17",
					schema.Synced{Cause: schema.Cause{ID: "mine", Source: "/billing"}})
				say(t, js, "rejection of another", schema.MessageRejected, "u17",
					schema.Rejected{Cause: cause("other")})
				_, err := js.Publish(t.Context(), "user.synced.propelauth.u17",
					json.RawMessage(`"odd"`))
				if err != nil {
					t.Error(err)
				}
				say(t, js, "answer", c.of, "u17", c.data)
				return "/crm", "mine", nil
			}
			e, err := consumers.Await(t.Context(), nc, whom, publish)
			if err != nil || e.ID != "answer" {
				t.Errorf("%s, %v", e.ID, err)
			}
		})
	}
}

// A caller that knows its sender takes no outcome of another sender's command for its own, even
// under the same source and id.
func TestAwaitGoesByTheSender(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	js := outcomes(t, nc)
	of := func(sender string) schema.Synced {
		return schema.Synced{
			Cause: schema.Cause{
				ID:     "mine",
				Type:   schema.UserRefreshDue,
				Source: "/crm",
				Sender: sender,
			},
		}
	}
	for sender, want := range map[string]string{"crm": "answer", "": "forged"} {
		whom := consumers.Whom{Provider: "propelauth", User: "u17", Sender: sender}
		publish := func(context.Context) (string, string, error) {
			say(t, js, "forged for "+sender, schema.UserSynced, "u17", of("shop"))
			say(t, js, "unnamed for "+sender, schema.UserSynced, "u17", of(""))
			say(t, js, "answer for "+sender, schema.UserSynced, "u17", of("crm"))
			return "/crm", "mine", nil
		}
		e, err := consumers.Await(t.Context(), nc, whom, publish)
		if err != nil || e.ID != want+" for "+sender {
			t.Errorf("sender %q: %s, %v, want %s", sender, e.ID, err, want)
		}
	}
}

// What began before the command was stored is no answer, and what began after it is, by the
// server's clock. Here the server's clock is ten years ahead of this machine's.
func TestAwaitGoesByTheServersClock(t *testing.T) {
	t.Parallel()
	s := start(t, true)
	js := outcomes(t, connect(t, s))
	const ahead = 10 * 365 * 24 * time.Hour // the proxy keeps the length of what it changes
	nc, err := nats.Connect(proxied(t, s.Addr().String(), func(b []byte) []byte {
		return bytes.ReplaceAll(b, fmt.Appendf(nil, `"ts":"%d`, time.Now().UTC().Year()),
			fmt.Appendf(nil, `"ts":"%d`, time.Now().Add(ahead).UTC().Year()))
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	got := make(chan schema.Event, 1)
	go func() {
		whom := consumers.Whom{Provider: "propelauth", User: "u17"}
		publish := func(context.Context) (string, string, error) { return "/crm", "mine", nil }
		e, err := consumers.Await(t.Context(), nc, whom, publish)
		if err != nil {
			t.Error(err)
		}
		got <- e
	}()
	subscribed(t, js, 1) // the wait has begun
	newer := schema.Cause{ID: "newer", Source: "/crm"}
	// It is after the command only by this machine's clock.
	say(t, js, "begun before", schema.UserSynced, "u17",
		schema.Synced{Cause: newer, BeganAt: time.Now().Add(time.Hour)})
	say(t, js, "begun after", schema.UserSynced, "u17",
		schema.Synced{Cause: newer, BeganAt: time.Now().Add(2 * ahead)})
	if e := receive(t, got); e.ID != "begun after" {
		t.Errorf("answered by %s", e.ID)
	}
}

// proxied is where a server is reached by way of change, which sees all that it sends.
func proxied(t *testing.T, addr string, change func([]byte) []byte) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // closed
			}
			server, err := net.Dial("tcp", addr)
			if err != nil {
				_ = client.Close()
				continue
			}
			go func() { _, _ = io.Copy(server, client); _ = server.Close() }()
			go func() {
				defer client.Close()
				for lines := bufio.NewReader(server); ; {
					line, err := lines.ReadBytes('\n')
					if _, werr := client.Write(change(line)); err != nil || werr != nil {
						return
					}
				}
			}()
		}
	}()
	return "nats://" + l.Addr().String()
}

func TestAwaitEnds(t *testing.T) {
	t.Parallel()
	nc := connect(t, start(t, false))
	outcomes(t, nc)
	whom := consumers.Whom{Provider: "propelauth", User: "u17"}
	if _, err := consumers.Await(t.Context(), nc, whom,
		func(context.Context) (string, string, error) {
			return "", "", errFlaky
		}); !errors.Is(err, errFlaky) {
		t.Errorf("publish failed: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := consumers.Await(ctx, nc, whom, func(context.Context) (string, string, error) {
		cancel(errFlaky)
		return "/crm", "mine", nil
	})
	if !errors.Is(err, errFlaky) || !strings.Contains(err.Error(), "mine") {
		t.Errorf("context ended: %v", err)
	}
	_, err = consumers.Await(t.Context(), nc, consumers.Whom{}, nil)
	if !errors.Is(err, schema.ErrSubject) {
		t.Errorf("nobody: %v", err)
	}
}
