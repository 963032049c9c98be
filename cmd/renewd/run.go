package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/renewd/renewd/internal/pseudonym"
	"github.com/renewd/renewd/internal/settings"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2 // of the command line or the settings: the same again fails again
)

// version is set by the linker.
var version = "dev"

// app is the world a command runs in.
type app struct {
	name    string // how to call this program again
	environ []string
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer
	dev     devOptions
	names   *pseudonym.Names // for the error that ends serve; nil: ids stay as they are
}

// cli is the command line.
type cli struct {
	Serve       serveCommand       `cmd:"" help:"Run renewd: handle logins and requests, renew what is due, publish what became of it."`
	Dev         devCommand         `cmd:"" help:"Try renewd: everything embedded, with users whose tokens live seconds. Needs nothing else."`
	Publish     publishCommand     `cmd:"" help:"Publish an event, as a service would."`
	Subscribe   subscribeCommand   `cmd:"" help:"Show outcomes as they happen."`
	Replay      replayCommand      `cmd:"" help:"Show outcomes of the past, for an audit."`
	Token       tokenCommand       `cmd:"" help:"Print a user's access token, or run a program with it. It is renewed first if it must be."`
	User        userCommand        `cmd:"" help:"Look at what is stored about a user, or erase it."`
	Store       storeCommand       `cmd:"" help:"After a restore: compare the store with what was published, and decide about what is superseded."`
	Migrate     migrateCommand     `cmd:"" help:"Make renewd's tables in PostgreSQL, or bring them up to date, with a role that may."`
	Backup      backupCommand      `cmd:"" help:"Copy the folder of the embedded NATS server, without the keyring, while renewd is stopped."`
	Streams     streamsCommand     `cmd:"" help:"Compare the NATS streams with the settings, and create or update them."`
	Subscribers subscribersCommand `cmd:"" help:"Make, list and remove the places in the outcomes that services read from."`
	Sinks       sinksCommand       `cmd:"" help:"Look at where outcomes are taken to (webhooks), stop it, repeat it, and ask who knows of a sign-out."`
	Sources     sourcesCommand     `cmd:"" help:"See what became of what others posted."`
	Adopt       adoptCommand       `cmd:"" help:"Take an app's users over from its own table, and see whether anybody else renews."`
	Audit       auditCommand       `cmd:"" help:"Keep a copy of the outcomes out of the workers' reach, or a chain of their digests."`
	Clients     clientsCommand     `cmd:"" help:"Make, list and remove the services that use renewd over HTTP."`
	NATS        natsCommand        `cmd:"" name:"nats" help:"Print the settings of a NATS server that keeps services apart; encrypt the embedded one's files."`
	Provider    providerCommand    `cmd:"" help:"Look at a provider's health, pause it, or resume it."`
	Keys        keysCommand        `cmd:"" help:"Make, list and rotate the keys that seal logins and stored tokens."`
	Config      configCommand      `cmd:"" help:"Check and show the settings."`
	Doctor      doctorCommand      `cmd:"" help:"Look whether everything is in order, and say what to do about what is not. Changes nothing."`
	Healthcheck healthcheckCommand `cmd:"" help:"Ask the renewd at http_addr whether it is ready; exit code 1 if not."`
	StandIn     standInCommand     `cmd:"" help:"Run a stand-in for PropelAuth, with users that it makes up."`
	Version     versionCommand     `cmd:"" help:"Show the version."`

	File string `name:"config" short:"c" placeholder:"FILE" help:"Settings file (YAML). Default: the one $$RENEWD_CONFIG names."`
}

// errSilent ends a command with exit code 1 after the command has said why.
var errSilent = errors.New("failed")

// run is the program: args is the command line with the program's name, the return value is the
// exit code. It returns when the command is done, or soon after ctx is done.
func run(
	ctx context.Context, args, environ []string, stdin io.Reader, stdout, stderr io.Writer,
) int {
	a := &app{
		name:    callName(args[0]),
		environ: environ,
		stdin:   stdin,
		stdout:  stdout,
		stderr:  stderr,
	}
	return a.run(ctx, args[1:])
}

func (a *app) run(ctx context.Context, args []string) int {
	var c cli
	helped := false
	parser, err := kong.New(&c,
		kong.Name("renewd"),
		kong.Writers(a.stdout, a.stderr),
		kong.Exit(func(int) { helped = true }),
		kong.Description("Keeps the OAuth tokens and profiles of signed-in users fresh, "+
			"driven by NATS JetStream."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.NamedMapper("duration", kong.MapperFunc(decodeDuration)),
		kong.Bind(a, &c), kong.BindTo(ctx, (*context.Context)(nil)))
	if err != nil {
		panic(err) // the command line is built of constants
	}
	switch {
	case len(args) == 0:
		args = []string{"--help"}
	case args[0] == "help":
		args = append(slices.Clone(args[1:]), "--help")
	case args[0] == "--version":
		args[0] = "version"
	}
	command, err := parser.Parse(args)
	if helped {
		return exitDone
	}
	if err == nil {
		err = command.Run()
	} else {
		err = settings.Mistake(fmt.Errorf("%w; see: renewd --help", err))
	}
	return a.exit(err)
}

// exit prints the error and returns its exit code.
func (a *app) exit(err error) int {
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errSilent):
		return exitFailed
	}
	if code, ok := errors.AsType[childExit](err); ok {
		return int(code)
	}
	fmt.Fprintln(a.stderr,
		"renewd: "+strings.ReplaceAll(a.names.Text(err.Error()), "\n", "\n        "))
	if _, ok := errors.AsType[settings.MistakeError](err); ok {
		return exitUsage
	}
	return exitFailed
}

// load reads the settings, with the given file if the command line names one.
func (a *app) load(c *cli) (*settings.Settings, error) {
	conf, err := settings.Load(c.File, a.environ)
	if err != nil {
		return nil, settings.Mistake(err)
	}
	return conf, nil
}

// callName is what a person types to call this program again.
func callName(arg0 string) string {
	if strings.Contains(arg0, "go-build") {
		return "go run ./cmd/renewd"
	}
	return arg0
}

// decodeDuration lets flags take days too.
func decodeDuration(ctx *kong.DecodeContext, target reflect.Value) error {
	var text string
	if err := ctx.Scan.PopValueInto("duration", &text); err != nil {
		return err
	}
	d, err := settings.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("%q: want a duration such as 30s, 5m, 12h or 7d", text)
	}
	target.Set(reflect.ValueOf(d))
	return nil
}

type versionCommand struct {
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Run prints the version, and its origin.
func (v versionCommand) Run(a *app) error {
	built := originOf(version, debug.ReadBuildInfo)
	if v.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(built)
	}
	details := []string{built.Go}
	if built.Commit != "" {
		details = []string{"commit " + built.Commit, built.Go}
	}
	_, err := fmt.Fprintf(a.stdout, "renewd %s (%s)\n", built.Version, strings.Join(details, ", "))
	return err
}

// origin is what a program was built from.
type origin struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"` // ends in + if there were uncommitted changes
	Go      string `json:"go"`
}

// originOf is this program's origin: the linker's version, else the module's version.
func originOf(linked string, read func() (*debug.BuildInfo, bool)) origin {
	o := origin{Version: linked, Go: runtime.Version()}
	info, ok := read()
	if !ok {
		return o
	}
	if v := info.Main.Version; linked == "dev" && strings.HasPrefix(v, "v") {
		o.Version = v
	}
	changed := ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			o.Commit = s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = "+"
		}
	}
	if o.Commit != "" {
		o.Commit += changed
	}
	return o
}
