package topology_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/renewd/renewd/internal/testkit/streams"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What these tests share with those of the packages beside.
var (
	alice    = streams.Alice
	start    = streams.Start
	wanted   = streams.Wanted
	ensure   = streams.Ensure
	engine   = streams.Engine
	fresh    = streams.Fresh
	next     = streams.Next
	renewal  = streams.Renewal
	ack      = streams.Ack
	work     = streams.Work
	messages = streams.Messages
	must     = streams.Must
)
