package stream_test

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
	start      = streams.Start
	connect    = streams.Connect
	wanted     = streams.Wanted
	ensure     = streams.Ensure
	engine     = streams.Engine
	fresh      = streams.Fresh
	next       = streams.Next
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
	names      = streams.Names
)

type plain = streams.Plain
