package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os/user"
	"time"

	"github.com/nats-io/nuid"

	"github.com/renewd/renewd/schema"
)

// byEnv names the operator where a script runs the commands.
const byEnv = "RENEWD_BY"

// byFlags say who does what a command does.
type byFlags struct {
	By string `placeholder:"NAME" help:"Who does this, for its outcome. Default: RENEWD_BY, else your login."`
}

// who is the operator. Nothing proves it: it is what an honest operator wants to have on record.
func (f byFlags) who(a *app) (string, error) {
	env := otelEnv(a.environ)
	by := cmp.Or(f.By, env.get(byEnv), env.get("SUDO_USER"))
	if by == "" {
		if u, err := user.Current(); err == nil {
			by = u.Username
		}
	}
	return by, checkWords(by, "")
}

// operatorFlags are for a command that changes something that is not one user's.
type operatorFlags struct {
	byFlags
	Unrecorded bool `help:"Do it also if the outcome that tells of it cannot be stored."`
}

// record stores the outcome that tells of an act. It comes before the act, which its error forbids:
// what cannot be told is not done, unless the operator says --unrecorded. An act that fails after
// it stays on record.
//
// An embedded NATS server that does not listen can be told nothing from here.
func (f operatorFlags) record(
	ctx context.Context, a *app, conf *configuration, server, act string, about ...string,
) error {
	by, err := f.who(a)
	if err != nil {
		return err
	}
	if !conf.reachable(server) {
		fmt.Fprintln(a.stderr,
			"renewd: not on record: the embedded NATS server does not listen (RENEWD_NATS_LISTEN)")
		return nil
	}
	data, err := json.Marshal(schema.Acted{Act: act, By: by, About: about})
	if err != nil {
		return err
	}
	if err = a.publishAct(ctx, conf, server, data); err == nil {
		return nil
	}
	if f.Unrecorded {
		fmt.Fprintf(a.stderr, "renewd: not on record: %v: keep this elsewhere: %s\n", err, data)
		return nil
	}
	return fmt.Errorf("the outcome that tells of it could not be stored: %w; "+
		"were the streams applied by this version of renewd (%s streams apply), "+
		"and may this NATS user publish operator.acted? "+
		"To do it without add --unrecorded, and keep this elsewhere: %s",
		streamHint(err, a), a.name, data)
}

func (a *app) publishAct(
	ctx context.Context, conf *configuration, server string, data []byte,
) error {
	nc, err := a.connect(conf, server)
	if err != nil {
		return err
	}
	defer nc.Close()
	engine, err := clientEngine(nc, conf)
	if err != nil {
		return err
	}
	return engine.Publish(ctx, schema.Event{
		ID: nuid.Next(), Source: source, Type: schema.OperatorActed, Time: time.Now().UTC(),
		Data: data,
	})
}

// reachable reports whether commands reach the NATS server of the settings.
func (c *configuration) reachable(server string) bool {
	return !c.embedded() || c.NATSListen != "" || server != ""
}
