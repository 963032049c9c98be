package main

import (
	"context"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/testkit/link"
	"github.com/renewd/renewd/internal/testkit/pgtest"
)

// lane is shared by faults of similar kinds. A lane's faults come in turn, except for workerLane
// and for different providers.
type lane string

const (
	workerLane   lane = "worker" // several at a time
	slowLane     lane = "slow"   // faults that occupy a worker for long
	serverLane   lane = "server"
	providerLane lane = "provider"
	rollLane     lane = "roll"  // acts of an operator on all workers in turn
	userLane     lane = "user"  // acts of users, apps and strangers
	eraseLane    lane = "erase" // erasures, each of which takes minutes in a storm
)

// kind is a way for things to go wrong.
type kind struct {
	name   string
	lane   lane
	weight int
	// strike causes the fault, and heals the fault before returning.
	strike func(ctx context.Context, x *strike) error
}

// strike is a fault as it happens.
type strike struct {
	world    *world
	people   *people
	rand     *rand.Rand
	worker   *worker  // in workerLane and slowLane
	provider *standIn // the struck provider, if any
	brief    bool     // as short as faults of its kind can be

	kind     string
	lane     lane
	from, to time.Time
	lost     bool      // the victim may have lost the work it was handling
	outage   bool      // no user could be renewed meanwhile
	unfelt   bool      // no excuse for anything
	frozen   bool      // the worker stood still
	healed   time.Time // when all servers were back
	parts    []*strike // acts on single workers during the fault
}

func (x *strike) String() string {
	text := x.kind
	switch {
	case x.worker != nil:
		text += " (" + x.worker.name + ")"
	case x.provider != nil:
		text += " (" + x.provider.id + ")"
	}
	return text + " at " + x.from.Format(clockFormat)
}

// between draws a duration. All durations of the schedule are drawn by between.
func (x *strike) between(from, to time.Duration) time.Duration {
	if x.brief {
		return from
	}
	return from + time.Duration(x.rand.Int64N(int64(to-from)+1))
}

// last waits while the fault lasts. When ctx ends, last returns at once and the fault is healed.
func (x *strike) last(ctx context.Context, from, to time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(x.between(from, to)):
	}
}

// count draws a number.
func (x *strike) count(from, to int) int {
	if x.brief {
		return from
	}
	return from + x.rand.IntN(to-from+1)
}

// over is when the fault, and its effect on servers, had ended.
func (x *strike) over() time.Time {
	if x.healed.After(x.to) {
		return x.healed
	}
	return x.to
}

// Names used outside the table too.
const (
	killed       = "worker killed" // the fault at the centre of the run
	longStall    = "worker stalled for minutes"
	hiccup       = "provider's userinfo answers 401"
	allKilled    = "all NATS servers killed"
	retuned      = "settings changed"
	keyringLost  = "keyring lost"
	rolledKill   = "worker killed to restart it"
	rolledStop   = "worker stopped to restart it"
	massSignOut  = "provider signs 60 % out"
	wholeCluster = 3
)

// kinds are all kinds of faults, but for the loss of the keyring, which comes at the end.
func kinds(o options) []kind {
	all := []kind{
		{killed, workerLane, 14, killWorker},
		{"worker stalled shortly", workerLane, 2, stallWorker(time.Second, 5*time.Second, false)},
		{
			"worker stalled past its lease", workerLane, 2,
			stallWorker(12*time.Second, 16*time.Second, true),
		},
		{longStall, slowLane, 1, stallWorker(170*time.Second, 200*time.Second, true)},
		{"worker stopped in order", workerLane, 2, stopWorker},
		{"NATS server killed", serverLane, 4, killNode},
		{allKilled, serverLane, 3, killNodes},
		{"NATS server stalled", serverLane, 2, stallNode},
	}
	if o.Binary == "" {
		for _, c := range []struct {
			name string
			d    time.Duration
		}{
			{"11 s ahead", 11 * time.Second},
			{"11 s behind", -11 * time.Second},
			{"an hour ahead", time.Hour},
			{"an hour behind", -time.Hour},
		} {
			all = append(all, kind{"worker's clock " + c.name, slowLane, 1, stepClock(c.d)})
		}
	}
	if o.Nodes == wholeCluster {
		all = append(all,
			kind{"NATS leader killed", serverLane, 4, killLeader},
			kind{"NATS server cut off", serverLane, 3, partition})
	}
	if o.Store == storePostgres {
		all = append(all,
			kind{"PostgreSQL killed", serverLane, 6, restartDatabase((*pgtest.Server).Kill)},
			kind{"PostgreSQL stopped", serverLane, 5, restartDatabase((*pgtest.Server).Stop)},
			kind{"PostgreSQL refuses connections", serverLane, 2, cutDatabase(link.Refusing)},
			kind{"PostgreSQL hangs", serverLane, 2, cutDatabase(link.Hanging)},
			kind{"worker cut off from PostgreSQL", serverLane, 2, cutWorker},
			kind{"an app's table locked", userLane, 3, lockTable})
	}
	return append(append(all, providerKinds()...), []kind{
		{"keys rotated", rollLane, 3, rotateKeys},
		{retuned, rollLane, 4, changeSettings},
		{"users erased with a login in hand", eraseLane, 8, eraseWithLogin},
		{"works meet on one grant", eraseLane, 8, meet},
		{"logins repeated after long", userLane, 8, repeatLogins},
		{"logins with nobody's or another's tokens", userLane, 8, garbageLogins},
		{"users suspended", userLane, 4, suspendUsers},
		{massSignOut, userLane, 1, signMostOut},
		{"an app's webhook answers 503", userLane, 3, failWebhook},
	}...)
}

// providerKinds are the faults of a provider.
func providerKinds() []kind {
	return []kind{
		{
			"provider answers 503", providerLane, 3,
			answers(5*time.Second, 15*time.Second, standin.Fault{Status: 503}),
		},
		{
			"provider hangs", providerLane, 1,
			answers(4*time.Second, 10*time.Second, standin.Fault{Hang: true}),
		},
		{
			"provider slow", providerLane, 2,
			answers(5*time.Second, 10*time.Second, standin.Fault{Delay: 1500 * time.Millisecond}),
		},
		{
			"provider throttles", providerLane, 2,
			answers(5*time.Second, 10*time.Second, standin.Fault{
				Status: 429,
				Header: http.Header{"Retry-After": {"2"}},
			}),
		},
		{
			"provider refuses the client", providerLane, 2,
			answers(5*time.Second, 12*time.Second,
				standin.Fault{Status: 401, Body: `{"error":"invalid_client"}`}, "token"),
		},
		{
			"provider refuses everybody", providerLane, 2,
			answers(8*time.Second, 15*time.Second,
				standin.Fault{Status: 400, Body: `{"error":"invalid_grant"}`}, "token"),
		},
		{
			"provider refuses everybody in unknown words", providerLane, 2,
			answers(8*time.Second, 15*time.Second, standin.Fault{Status: 400}, "token"),
		},
		{"provider paused by an operator", providerLane, 1, pauseProvider},
		{
			hiccup, providerLane, 2,
			answers(5*time.Second, 12*time.Second,
				standin.Fault{Status: 401, Body: `{"error":"invalid_token"}`}, "userinfo"),
		},
		{
			"provider answers nonsense", providerLane, 1,
			answers(3*time.Second, 8*time.Second, standin.Fault{
				Status: 200,
				Body:   "<html>maintenance</html>",
			}),
		},
		{"provider flaps", providerLane, 2, flap},
		{
			"provider's answers lost after rotating", providerLane, 2,
			some(standin.Fault{Act: true, Drop: true}),
		},
		{"provider's answers cut in half", providerLane, 1, some(standin.Fault{Truncate: true})},
		{"provider's requests lost before it", providerLane, 2, some(standin.Fault{Drop: true})},
	}
}
