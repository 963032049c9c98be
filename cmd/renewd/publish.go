package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

type publishCommand struct {
	Login      publishLogin      `cmd:"" help:"Say that a user signed in, with fresh tokens; they are sealed before they leave this process."`
	RefreshDue publishRefreshDue `cmd:"" help:"Ask for a user's profile, or tokens, to be fresh now."`
	Logout     publishLogout     `cmd:"" help:"Say that a user signs out: renewd drops the tokens."`
}

// publishFlags are common to all publish commands.
type publishFlags struct {
	clientFlags
	Provider string        `placeholder:"ID" help:"Provider's id in renewd's settings. Default: the first there, else propelauth."`
	User     string        `required:"" placeholder:"ID" help:"The user's id, as the provider writes it."`
	Source   string        `default:"/renewd/cli" placeholder:"PATH" help:"Who asks; outcomes name it in their cause."`
	Sender   string        `placeholder:"NAME" help:"Name that the NATS server gives this publisher (renewd nats config): --wait then takes no other sender's outcome for its own."`
	Wait     bool          `help:"Wait for the outcome and show it. Exit code 1 unless that is user.synced, of a logout user.signed_out."`
	Timeout  time.Duration `type:"duration" default:"90s" placeholder:"DURATION" help:"How long to wait; to confirm that a session has ended takes up to 70 s. Default: 90s."`
	Output   string        `short:"o" enum:"text,json" default:"text" help:"text or json."`

	done schema.Type // the wanted outcome; empty: user.synced
}

// send publishes one event about one user.
type send func(ctx context.Context, p *publishers.Publisher, provider, user string) (
	publishers.Receipt, error,
)

type publishRefreshDue struct {
	publishFlags
	Reason   string        `placeholder:"TEXT" help:"Why, for the audit."`
	Want     string        `enum:"profile,tokens" default:"profile" help:"profile (tokens are rotated only if they are about to expire) or tokens (rotate them now)."`
	MinValid time.Duration `type:"duration" placeholder:"DURATION" help:"Rotate the tokens if less validity than this is left."`
}

// Run publishes the request.
func (p publishRefreshDue) Run(ctx context.Context, a *app, c *cli) error {
	r := schema.RefreshDue{
		Reason:          p.Reason,
		Want:            p.Want,
		MinValidSeconds: int(math.Ceil(p.MinValid.Seconds())),
	}
	return p.publish(ctx, a, c, func(
		ctx context.Context, pub *publishers.Publisher, provider, user string,
	) (publishers.Receipt, error) {
		return pub.RefreshDue(ctx, provider, user, r)
	})
}

type publishLogout struct {
	publishFlags
	Revoke bool   `help:"Revoke the refresh token at the provider first."`
	Reason string `placeholder:"TEXT" help:"Why, for the audit."`
}

// Run publishes the logout.
func (p publishLogout) Run(ctx context.Context, a *app, c *cli) error {
	l := schema.Logout{Revoke: p.Revoke, Reason: p.Reason}
	p.done = schema.UserSignedOut
	do := func(
		ctx context.Context, pub *publishers.Publisher, provider, user string,
	) (publishers.Receipt, error) {
		return pub.Logout(ctx, provider, user, l)
	}
	return p.publish(ctx, a, c, do)
}

type publishLogin struct {
	publishFlags
	TokensFile string `required:"" placeholder:"FILE" help:"The token endpoint's answer as JSON (access_token, refresh_token, expires_in …); - reads standard input."`
}

// Run publishes the login.
func (p publishLogin) Run(ctx context.Context, a *app, c *cli) error {
	tokens, err := readTokens(p.TokensFile, a.stdin)
	if err != nil {
		return settings.Mistake(fmt.Errorf("--tokens-file: %w", err))
	}
	return p.publish(ctx, a, c, func(
		ctx context.Context, pub *publishers.Publisher, provider, user string,
	) (publishers.Receipt, error) {
		return pub.Login(ctx, provider, user, tokens)
	})
}

const maxTokensFile = 1 << 20

func readTokens(path string, stdin io.Reader) (publishers.Tokens, error) {
	from := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return publishers.Tokens{}, err
		}
		defer f.Close()
		from = f
	}
	var answer struct {
		AccessToken  string    `json:"access_token"`
		RefreshToken string    `json:"refresh_token"`
		IDToken      string    `json:"id_token"`
		Scope        string    `json:"scope"`
		ExpiresIn    float64   `json:"expires_in"`
		ExpiresAt    time.Time `json:"expires_at"`
	}
	// A JSON error may quote the text where it failed, which may be a token.
	if err := json.NewDecoder(io.LimitReader(from, maxTokensFile)).Decode(&answer); err != nil {
		return publishers.Tokens{}, fmt.Errorf("%s: want the token endpoint's JSON: "+
			"access_token, refresh_token, expires_in (seconds) or expires_at (RFC 3339)", path)
	}
	if answer.AccessToken == "" {
		return publishers.Tokens{}, fmt.Errorf("%s: access_token is missing", path)
	}
	return publishers.Tokens{
		AccessToken:  answer.AccessToken,
		RefreshToken: answer.RefreshToken,
		IDToken:      answer.IDToken,
		Scope:        answer.Scope,
		ExpiresIn:    time.Duration(answer.ExpiresIn * float64(time.Second)),
		ExpiresAt:    answer.ExpiresAt,
	}, nil
}

func (p publishFlags) publish(ctx context.Context, a *app, c *cli, do send) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	if p.Provider == "" {
		p.Provider = conf.DefaultProvider()
	}
	if err := (eventFlags{Provider: p.Provider, User: p.User}).check(); err != nil {
		return err
	}
	nc, err := a.connect(conf, p.Server)
	if err != nil {
		return err
	}
	defer nc.Close()
	pub, err := publishers.New(nc, publishers.WithPrefix(conf.NATSPrefix),
		publishers.WithAPIPrefix(conf.NATSAPI), publishers.WithSource(p.Source))
	if err != nil {
		return settings.Mistake(err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, p.Timeout,
		fmt.Errorf("no outcome within %s (--timeout): the event is stored and will "+
			"be handled; see: %s replay", settings.FormatDuration(p.Timeout), a.name))
	defer cancel()
	if p.Wait {
		return p.await(ctx, a, nc, conf.NATSPrefix, pub, do)
	}
	receipt, err := do(ctx, pub, p.Provider, p.User)
	if err != nil {
		return p.refused(err)
	}
	return p.print(a, receipt)
}

// refused tells mistakes of the command line from errors that may pass.
func (p publishFlags) refused(err error) error {
	if _, ok := errors.AsType[*schema.Malformed](err); ok {
		return settings.Mistake(err)
	}
	return err
}

func (p publishFlags) print(a *app, r publishers.Receipt) error {
	if p.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(map[string]any{
			"id":       r.ID,
			"stream":   r.Stream,
			"sequence": r.Sequence,
			"time":     r.Time.UTC(),
		})
	}
	_, err := fmt.Fprintf(a.stdout, "stored as %s, number %d in %s\n", r.ID, r.Sequence, r.Stream)
	return err
}

// await publishes, waits for the outcome and shows it.
func (p publishFlags) await(
	ctx context.Context, a *app, nc *nats.Conn, prefix string, pub *publishers.Publisher, do send,
) error {
	whom := consumers.Whom{
		Prefix:   prefix,
		Provider: p.Provider,
		User:     p.User,
		Sender:   p.Sender,
	}
	e, err := consumers.Await(ctx, nc, whom, func(ctx context.Context) (string, string, error) {
		r, err := do(ctx, pub, p.Provider, p.User)
		return r.Source, r.ID, err
	})
	if err != nil {
		return streamHint(p.refused(err), a)
	}
	if p.Output == "json" {
		err = printJSON(a.stdout, e)
	} else {
		err = printLine(a.stdout, colours(a.stdout, a.environ), e)
	}
	if err == nil && e.Type != cmp.Or(p.done, schema.UserSynced) {
		return errSilent
	}
	return err
}
