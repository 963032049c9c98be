package webhook

import (
	"context"
	"errors"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/sink"
)

// An endpoint to which no connection is made in time is not there, whatever other limit ends first.
func TestDialThatTakesTooLong(t *testing.T) {
	_, err := (&net.Dialer{Timeout: 1}).Dial("tcp", "127.0.0.1:1")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal("no such error:", err)
	}
	to := &Target{config: Config{Timeout: time.Second}}
	got := to.unanswered(&url.Error{Op: "Post", URL: "https://a.example/T0KEN", Err: err})
	if f, ok := errors.AsType[*sink.Fault](got); !ok || f.Blame != sink.Unreachable {
		t.Errorf("%v, want one that is not there", got)
	}
}
