package runner_test

import (
	"errors"
	"testing"

	"go.uber.org/goleak"

	"github.com/renewd/renewd/internal/testkit"
	testnats "github.com/renewd/renewd/internal/testkit/nats"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = testkit.Patience

// What these tests share with those of other packages.
var (
	start      = testnats.Start
	connect    = testnats.Connect
	stream     = testnats.JetStream
	eventually = testkit.Eventually
	through    = testnats.Through
)

func receive[T any](t testing.TB, c <-chan T) T { t.Helper(); return testkit.Receive(t, c) }

type logs = testkit.Logs

// errFlaky is the error of a handler that is to be called again.
var errFlaky = errors.New("flaky")
