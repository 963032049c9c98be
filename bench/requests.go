package main

import (
	"context"
	"os/exec"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// raceRequests has one `renewd serve` renew all users because a service asks for each, over TCP, on
// a NATS server apart, as a deployment does. No profile was synced before. The time counts from the
// first request until the last outcome is stored. The processor time of the service is left out, as
// is the time of the process that tells the peers to go.
func (b *bench) raceRequests(ctx context.Context, p *provider, o legOptions) (sample, error) {
	server, url, err := b.startNATS("requests-" + strconv.FormatInt(time.Now().UnixNano(), 36))
	if err != nil {
		return sample{}, err
	}
	defer server.kill()
	d, err := b.newDaemon(ctx, daemonOptions{provider: p, concurrency: o.workers, natsURL: url})
	if err != nil {
		return sample{}, err
	}
	defer d.close()
	if _, err := d.seed(ctx, p, plan{
		users: o.users,
		due:   time.Now().Add(time.Hour),
		ago:   time.Hour,
		life:  lifetime,
		long:  o.long,
		first: true,
	}); err != nil {
		return sample{}, err
	}
	service, err := b.service(url, o.users)
	if err != nil {
		return sample{}, err
	}
	defer service.kill()
	if err := p.begin(ctx); err != nil {
		return sample{}, err
	}
	stop := d.profile(o.leg)
	before, err := b.meter(ctx, d.process, p, d.database)
	if err != nil {
		return sample{}, err
	}
	nats := cpuOf(server.Pid())
	if err := service.start(); err != nil {
		return sample{}, err
	}
	r, err := service.result()
	if err != nil {
		return sample{}, err
	}
	ended, err := d.await(ctx, uint64(o.users), 5*time.Minute)
	if err != nil {
		return sample{}, err
	}
	nats = cpuOf(server.Pid()) - nats
	stop()
	s, err := b.sample(ctx, ended.Sub(r.Began), before, d.process, p)
	s.nats, s.cpu = nats, s.cpu+nats
	return s, err
}

// service starts the asking process, and returns once the process is ready to go.
func (b *bench) service(natsURL string, users int) (*process, error) {
	return b.contestant("ask",
		exec.Command(b.self, "ask", "--nats", natsURL, "--users", strconv.Itoa(users)))
}

// askCommand publishes a user.refresh_due for each user.
type askCommand struct {
	NATS  string `required:""`
	Users int    `required:""`
}

// askers is how many requests wait for their acknowledgement at a time.
const askers = 64

// Run asks for all users, then waits to be killed.
func (c askCommand) Run(ctx context.Context) error {
	nc, err := nats.Connect(c.NATS)
	if err != nil {
		return err
	}
	defer nc.Close()
	p, err := publishers.New(nc, publishers.WithSource("/bench"))
	if err != nil {
		return err
	}
	return race(ctx, func(ctx context.Context) error {
		return parallel(askers, c.Users, func(n int) error {
			_, err := p.RefreshDue(ctx, providerID, userName(n), schema.RefreshDue{})
			return err
		})
	})
}
