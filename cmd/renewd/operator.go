package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os/user"
	"time"

	"github.com/nats-io/nuid"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/schema"
)

// byFlags name the operator behind a command.
type byFlags struct {
	By string `placeholder:"NAME" help:"Who does this, for its outcome. Default: RENEWD_BY, else your login."`
}

// who is the operator. Nothing proves the name: it is what an honest operator wants on record.
func (f byFlags) who(a *app) (string, error) {
	env := settings.Environ(a.environ)
	by := cmp.Or(f.By, env.Get(settings.ByEnv), env.Get("SUDO_USER"))
	if by == "" {
		if u, err := user.Current(); err == nil {
			by = u.Username
		}
	}
	return by, checkWords(by, "")
}

// operatorFlags are for a command whose change is not about one user.
type operatorFlags struct {
	byFlags
	Unrecorded bool `help:"Do it also if the outcome that tells of it cannot be stored."`
}

// record stores the outcome about an act. It comes before the act, and its error forbids the act:
// an act that cannot be recorded is not done, unless the operator says --unrecorded. An act that
// then fails stays on record.
//
// An embedded NATS server that does not listen can take no outcome from here.
func (f operatorFlags) record(
	ctx context.Context, a *app, conf *settings.Settings, server, act string, about ...string,
) error {
	by, err := f.who(a)
	if err != nil {
		return err
	}
	if !conf.Reachable(server) {
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
	ctx context.Context, conf *settings.Settings, server string, data []byte,
) error {
	nc, err := a.connect(conf, server)
	if err != nil {
		return err
	}
	defer nc.Close()
	engine, err := daemon.ClientEngine(nc, conf)
	if err != nil {
		return err
	}
	return engine.Publish(ctx, schema.Event{
		ID: nuid.Next(), Source: daemon.Source, Type: schema.OperatorActed, Time: time.Now().UTC(),
		Data: data,
	})
}
