package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/term"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/schema"
)

// accessTokenEnv is where a program started by `renewd token` finds the token.
const accessTokenEnv = "RENEWD_ACCESS_TOKEN"

type tokenCommand struct {
	clientFlags
	User     string        `arg:"" help:"The user's id, as the provider writes it."`
	Program  []string      `arg:"" optional:"" help:"Program to run with the token in $$RENEWD_ACCESS_TOKEN, after --: root and the same user's processes can read it there. The program's exit code is this command's."`
	Provider string        `placeholder:"ID" help:"Provider's id in renewd's settings. Default: the first there, else propelauth."`
	MinValid time.Duration `type:"duration" default:"60s" placeholder:"DURATION" help:"How long the token is to be good for at least; 0s: any that lives. Default: 60s."`
	Show     bool          `help:"Print the token to a terminal too."`
	Output   string        `short:"o" enum:"text,json" default:"text" help:"text (the token alone) or json."`
}

// Run asks for the token over NATS, as any service does.
func (t tokenCommand) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	if t.Provider == "" {
		t.Provider = conf.DefaultProvider()
	}
	if err := (eventFlags{Provider: t.Provider, User: t.User}).check(); err != nil {
		return err
	}
	f, file := a.stdout.(*os.File)
	if file && len(t.Program) == 0 && !t.Show && term.IsTerminal(int(f.Fd())) {
		return settings.Mistake(fmt.Errorf("an access token on a terminal is easily seen: "+
			"add --show, or run a program with it: %s token %s -- PROGRAM, which finds it in $%s",
			a.name, t.User, accessTokenEnv))
	}
	nc, err := a.connect(conf, t.Server)
	if err != nil {
		return err
	}
	defer nc.Close()
	whom := consumers.Whom{Prefix: conf.NATSPrefix, Provider: t.Provider, User: t.User}
	if t.MinValid <= 0 {
		t.MinValid = -1
	}
	token, err := consumers.Token(ctx, nc, whom, t.MinValid)
	if err != nil {
		return err
	}
	if len(t.Program) > 0 {
		return t.run(ctx, a, token)
	}
	if t.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(token)
	}
	if token.Short != "" {
		fmt.Fprintf(a.stderr, "%s: the token is good for less than asked for: %s\n",
			a.name, token.Short)
	}
	_, err = fmt.Fprintln(a.stdout, token.AccessToken)
	return err
}

// childExit is the exit code of a program that ran in this command's place.
type childExit int

func (c childExit) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// stopLimit is how long an interrupted program may take to end.
const stopLimit = 10 * time.Second

func (t tokenCommand) run(ctx context.Context, a *app, token schema.AccessToken) error {
	p := exec.CommandContext(ctx, t.Program[0], t.Program[1:]...)
	p.Stdin, p.Stdout, p.Stderr = a.stdin, a.stdout, a.stderr
	p.Env = append(append([]string{}, a.environ...), accessTokenEnv+"="+token.AccessToken)
	p.Cancel = func() error { return p.Process.Signal(os.Interrupt) }
	p.WaitDelay = stopLimit
	err := p.Run()
	if ended, ok := errors.AsType[*exec.ExitError](err); ok && ended.ExitCode() > 0 {
		return childExit(ended.ExitCode())
	}
	return err
}
