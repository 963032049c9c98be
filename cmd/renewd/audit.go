package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/audit"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/schema"
)

// auditCommand keeps a copy of the outcomes in a separate NATS account (renewd nats config
// --audit), or a chain of their digests in a file.
type auditCommand struct {
	Source auditSource `cmd:"" help:"In renewd's account, as operator: make the consumer that the copy is filled from."`
	Copy   auditCopy   `cmd:"" help:"In the audit's account, as its user audit: make the copy, and say how it stands."`
	Chain  auditChain  `cmd:"" help:"Append a line for each new outcome to a file outside of NATS."`
	Verify auditVerify `cmd:"" help:"Compare the outcomes with that file. Exit code 1 if one is gone, changed or put in."`
}

type auditSource struct {
	clientFlags
	operatorFlags
}

// Run makes the consumer.
func (s auditSource) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	js, done, err := a.jetStream(conf, s.Server)
	if err != nil {
		return err
	}
	defer done()
	err = s.record(ctx, a, conf, s.Server, schema.ActSubscribersAdd, audit.Durable)
	if err != nil {
		return fmt.Errorf("audit source: %w", err)
	}
	ctx, stop := context.WithTimeout(ctx, dialLimit)
	defer stop()
	if err := audit.Source(ctx, js, conf.Subjects()); err != nil {
		return streamHint(err, a)
	}
	fmt.Fprintf(a.stdout, "%s is there: as the user audit run %s audit copy\n",
		audit.Durable, a.name)
	return nil
}

type auditCopy struct {
	clientFlags
	Keep   time.Duration `type:"duration" default:"400d" placeholder:"DURATION" help:"How long a new copy keeps an outcome; 0: without an end. Default: 400d."`
	Output string        `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Run makes the copy.
func (s auditCopy) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	js, done, err := a.jetStream(conf, s.Server)
	if err != nil {
		return err
	}
	defer done()
	ctx, stop := context.WithTimeout(ctx, dialLimit)
	defer stop()
	state, err := audit.Copy(ctx, js, conf.Subjects(), importedAPI, conf.NATSReplicas, s.Keep)
	if err != nil {
		return err
	}
	if s.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(state)
	}
	heard := "its source was never heard of: is the consumer there (" + a.name +
		" audit source, as operator)?"
	if state.Heard >= 0 {
		heard = fmt.Sprintf("its source was heard of %s ago, and has %s more",
			settings.FormatDuration(state.Heard.Truncate(time.Second)),
			plain.Plural(int(state.Behind), "outcome"))
	}
	_, err = fmt.Fprintf(a.stdout, "the copy holds %s; %s\n",
		plain.Plural(int(state.Outcomes), "outcome"), heard)
	return err
}

// jetStream connects; done ends the connection.
func (a *app) jetStream(
	conf *settings.Settings, server string,
) (jetstream.JetStream, func(), error) {
	nc, err := a.connect(conf, server)
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return js, nc.Close, nil
}
