package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/publishers"
)

type providerCheck struct {
	Provider   string `arg:"" optional:"" help:"Its id in the settings. Default: the only one there."`
	TokensFile string `placeholder:"FILE" help:"A test user's tokens, the token endpoint's answer as JSON: userinfo is asked with them. - reads standard input."`
	Refresh    bool   `help:"Also refresh the test user's tokens, once: the file then has the new ones. They must be in use nowhere else, in renewd neither."`
	NoMadeUp   bool   `help:"Do not show the provider a made-up token, to see how it answers one that is dead."`
	Output     string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Run asks the provider one question after the other, and says which settings suit it. Run needs
// neither NATS nor a store.
func (p providerCheck) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	id, err := conf.KnownProvider(p.Provider)
	if err != nil {
		return settings.Mistake(err)
	}
	if p.Refresh && (p.TokensFile == "" || p.TokensFile == "-") {
		return settings.Mistake(errors.New(
			"--refresh: needs --tokens-file, a file to write the new tokens to",
		))
	}
	q := admin.ProviderQuestion{Conf: conf, Provider: id, MadeUp: !p.NoMadeUp}
	if p.Output == "text" {
		q.Tell = a.printFinding
		q.Say = func(text string) { fmt.Fprintln(a.stdout, "        "+text) }
	}
	if p.TokensFile != "" {
		q.Tokens = func() (publishers.Tokens, error) {
			tokens, err := readTokens(p.TokensFile, a.stdin)
			if err != nil {
				err = settings.Mistake(fmt.Errorf("--tokens-file: %w", err))
			}
			return tokens, err
		}
	}
	if p.Refresh {
		q.RefreshInto = p.TokensFile
	}
	found, suggestions, err := admin.CheckProvider(ctx, q)
	if err != nil {
		return err
	}
	return a.printCheck(p.Output, id, found, suggestions)
}

// printCheck prints the settings that suit the provider, and fails if a finding is broken.
func (a *app) printCheck(
	output, provider string, found []admin.Finding, suggestions []admin.Suggestion,
) error {
	if output == "json" {
		all := map[string]any{"provider": provider, "findings": found, "suggestions": suggestions}
		if err := json.NewEncoder(a.stdout).Encode(all); err != nil {
			return err
		}
	} else if len(suggestions) > 0 {
		fmt.Fprintln(a.stdout, "\nSettings that would suit it, below this provider:")
		for _, s := range suggestions {
			fmt.Fprintf(a.stdout, "    %s: %s    # %s\n", s.Setting, plain.Text(s.Value), s.Why)
		}
	}
	return anyBroken(found)
}
