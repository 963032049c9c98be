package runner

import (
	"context"
	"errors"
	"time"

	"github.com/renewd/renewd/schema"
)

// Handler handles one message and returns a verdict: nil (done, the message goes), Retry, or
// Reject. Any other error, and a panic, is Retry after a second. See Config.PutOff for a message
// that is retried again and again. A Handler never acknowledges the message itself. Its ctx ends
// with cause ErrLeaseLost when the message may have gone to another worker, and with cause
// ErrShutdown when the time to drain is over.
type Handler = func(ctx context.Context, m *Message) error

// Causes of the end of a handler's context.
var (
	// ErrLeaseLost: no heartbeat was answered for so long that the server may have given the
	// message to another worker. A function given to Message.KeepAlive may wrap ErrLeaseLost to end
	// the lease at once.
	ErrLeaseLost = errors.New("lease on the message is lost")
	// ErrShutdown: the runner was told to stop, and the handler did not finish within Config.Drain.
	ErrShutdown = errors.New("worker is shutting down")
	// ErrPanicked: a function of the runner's caller panicked.
	ErrPanicked = errors.New("panicked")
)

// errRetry stands in for a Retry without an error.
var errRetry = errors.New("asked to be retried")

// retryAfter is the wait for errors other than verdicts, and for a rejection that could not be
// recorded.
const retryAfter = time.Second

type kind string

const (
	done   kind = "ack"
	retry  kind = "retry"
	reject kind = "reject"
	putOff kind = "put_off" // retried enough for now: stored elsewhere, with a timer
	// the lease was lost: the message's present worker settles the message
	abandoned kind = "abandoned"
)

type verdict struct {
	kind  kind
	err   error
	after time.Duration
}

func (v *verdict) Error() string { return v.err.Error() }
func (v *verdict) Unwrap() error { return v.err }

// Retry is the verdict "deliver the message again after this time": at most Config.MaxDelay, since
// a waiting message keeps its place among the messages being handled. For longer waits, arm a timer
// and return nil.
func Retry(err error, after time.Duration) error {
	if err == nil {
		err = errRetry
	}
	return &verdict{retry, err, max(0, after)}
}

// Reject is the verdict "this message can never be handled": Config.Rejected records the message,
// which is then removed. err gives the reason, best as a *schema.Malformed.
func Reject(err error) error {
	if err == nil {
		err = &schema.Malformed{Reason: schema.RejectData, Field: "data", Message: "refused"}
	}
	return &verdict{reject, err, 0}
}

// Refused is Reject if err is a *schema.Malformed, and Retry in a second for any other error.
func Refused(err error) error {
	if _, malformed := errors.AsType[*schema.Malformed](err); malformed {
		return Reject(err)
	}
	return Retry(err, time.Second)
}

func verdictOf(err error) *verdict {
	if err == nil {
		return &verdict{kind: done}
	}
	if v, ok := errors.AsType[*verdict](err); ok {
		return v
	}
	return &verdict{retry, err, retryAfter}
}

// reason is all that the server may publish about a rejection: the broken rule and its field, no
// more.
func (v *verdict) reason() string {
	if m, ok := errors.AsType[*schema.Malformed](v.err); ok {
		return m.Reason + ": " + m.Field
	}
	return "rejected"
}
