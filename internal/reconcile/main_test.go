package reconcile_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/testkit/streams"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What these tests share with those of the packages beside.
var (
	alice      = streams.Alice
	fresh      = streams.Fresh
	renewal    = streams.Renewal
	ack        = streams.Ack
	work       = streams.Work
	command    = streams.Command
	loginOf    = streams.LoginOf
	outcome    = streams.Outcome
	messages   = streams.Messages
	eventually = testkit.Eventually
	must       = streams.Must
	park       = streams.Park
	total      = streams.Total
)

type plain = streams.Plain
