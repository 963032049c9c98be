package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nuid"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

type providerCheck struct {
	Provider   string `arg:"" optional:"" help:"Its id in the settings. Default: the only one there."`
	TokensFile string `placeholder:"FILE" help:"A test user's tokens, the token endpoint's answer as JSON: userinfo is asked with them. - reads standard input."`
	Refresh    bool   `help:"Also refresh the test user's tokens, once: the file then has the new ones. They must be nobody else's, renewd's neither."`
	NoMadeUp   bool   `help:"Do not show the provider a made-up token, to see how it answers one that is dead."`
	Output     string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// suggestion is a setting that would suit the provider better.
type suggestion struct {
	Setting string `json:"setting"` // as in the settings file, below the provider
	Value   string `json:"value"`   // YAML on one line
	Why     string `json:"why"`
}

// inquiry is one check of a provider.
type inquiry struct {
	examination
	settings providerSettings
	client   *idp.Provider
	first    idp.ClientAuth // the way that is tried first
	suggests []suggestion
}

// Run asks the provider one question after the other, and says what settings suit it. It needs
// neither NATS nor a store.
func (p providerCheck) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	id, err := conf.knownProvider(p.Provider)
	if err != nil {
		return err
	}
	if p.Refresh && (p.TokensFile == "" || p.TokensFile == "-") {
		return usageError{errors.New("--refresh: needs --tokens-file, a file to write the new tokens to")}
	}
	x := &inquiry{examination: examination{app: a, plant: &plant{conf: conf, log: slog.New(slog.DiscardHandler), tel: &telemetry{}}}}
	x.settings, _ = conf.provider(id)
	if x.client, err = x.plant.client(x.settings); err != nil {
		return err
	}
	defer x.client.Close()
	if p.Output == "text" {
		x.tell = a.stdout
	}
	if x.reach(ctx) {
		if !p.NoMadeUp {
			x.madeUp(ctx)
		}
		if err := x.person(ctx, p, a); err != nil {
			return err
		}
	}
	return x.conclude(a, p.Output)
}

// reach looks at the endpoints and what is below them.
func (x *inquiry) reach(ctx context.Context) bool {
	e, err := x.client.Examine(ctx)
	if err != nil {
		x.add("endpoints", failed(err, "is auth_url the issuer, exactly? A provider without a discovery document needs token_url and userinfo_url"))
		return false
	}
	x.first = e.First
	found := "token " + e.Token
	if found += "; userinfo " + cmp.Or(e.UserInfo, "none"); e.Revoke != "" {
		found += "; revocation " + e.Revoke
	}
	x.add("endpoints", finding{State: fine, Found: found})
	if e.Revoke == "" {
		x.add("revocation", finding{State: warning, Found: "no endpoint is known (RFC 7009)", Advice: "a user who is forgotten stays signed in at the provider: set revoke_url if it has one"})
	}
	x.connection(e)
	switch away := e.Ahead.Abs(); {
	case !e.Dated:
		x.add("clock", finding{State: warning, Found: "its answers have no Date", Advice: "a lifetime that it gives as a time of day is read by this machine's clock"})
	case away > 5*time.Second:
		x.add("clock", finding{State: warning, Found: fmt.Sprintf("%v apart from this machine's", away), Advice: "set both by NTP; renewd allows for it, but logs and audits will not agree"})
	default:
		x.add("clock", finding{State: fine, Found: fmt.Sprintf("%v apart from this machine's", away)})
	}
	return true
}

func (x *inquiry) connection(e idp.Examination) {
	f := finding{State: fine, Found: e.Protocol + ", " + cmp.Or(e.TLS, "no TLS")}
	if !e.Until.IsZero() {
		f.Found += ", certificate until " + clock(e.Until)
	}
	if left := time.Until(e.Until); !e.Until.IsZero() && left < 7*24*time.Hour {
		f.State, f.Advice = warning, "the certificate expires soon: nobody is renewed once it has"
	}
	x.add("connection", f)
}

// madeUp shows the token endpoint and userinfo a token that is none, after saying so.
func (x *inquiry) madeUp(ctx context.Context) {
	token := grant.NewSecret("made-up-by-renewd-provider-check-" + nuid.Next())
	if x.tell != nil {
		fmt.Fprintln(x.tell, "        now a made-up refresh token is shown to the token endpoint, and a made-up access token to userinfo (--no-made-up leaves that out)")
	}
	_, err := x.client.Refresh(ctx, token)
	f, _ := errors.AsType[*grant.Fault](err)
	if way := x.client.Way(); err == nil || f.Class == grant.Permanent || f.Class == grant.Unknown {
		x.add("client", finding{State: fine, Found: "let in, " + authenticated(way, x.settings.ClientAuth)})
		if way != x.first && way != idp.AuthAuto {
			x.suggest("client_auth", string(way), "the way that works, without a try of the other one at each start")
		}
	}
	x.add("a dead token", x.verdictOn(f))
	if x.settings.Userinfo != "none" {
		_, _, err = x.client.Whoami(ctx, token)
		x.add("a dead access token", x.refusalOf(err))
	}
}

func authenticated(way idp.ClientAuth, set string) string {
	how := map[idp.ClientAuth]string{idp.AuthNone: "by client_id alone", idp.AuthPost: "by its secret in the form (post)", idp.AuthBasic: "by its secret in a header (basic)", idp.AuthPrivateKey: "by a signature of its key (private_key_jwt)"}[way]
	if set == "" && (way == idp.AuthPost || way == idp.AuthBasic) {
		how += ", found by itself"
	}
	return cmp.Or(how, "in a way that nobody knows")
}

// verdictOn says how the answer to a refresh token that was made up is taken.
func (x *inquiry) verdictOn(f *grant.Fault) finding {
	if f == nil {
		return finding{State: broken, Found: "a made-up refresh token is answered with tokens", Advice: "this is no token endpoint that anybody can rely on: check token_url"}
	}
	said := answered(f)
	switch f.Class {
	case grant.Permanent:
		return finding{State: fine, Found: said + ": a dead session, told after three refusals as " + f.Reason}
	case grant.Unknown:
		if f.Code == "" && f.Detail == "" {
			return finding{State: warning, Found: said + ": words that nobody knows, and none to make a rule of",
				Advice: "three such refusals, confirm_unknown apart, are believed while others are renewed"}
		}
		rule := fmt.Sprintf("[{status: %d, code: %s, class: permanent, reason: revoked}]", f.Status, strconv.Quote(f.Code))
		if f.Detail != "" {
			rule = fmt.Sprintf("[{status: %d, code: %s, body: %s, class: permanent, reason: revoked}]", f.Status, strconv.Quote(f.Code), strconv.Quote(beginning(f.Detail)))
		}
		x.suggest("rules", rule, "if these are its words for a session that has ended: then it is told within a minute, not hours")
		return finding{State: warning, Found: said + ": words that nobody knows", Advice: "see the rule below; without one, three such refusals, confirm_unknown apart, are believed while others are renewed"}
	case grant.Config:
		return finding{State: broken, Found: said + ": it refuses this client", Advice: f.Err.Error()}
	}
	return finding{State: warning, Found: said + ": it is out of order, or throttles", Advice: "run this again later"}
}

// answered is an answer in words: its status, code and description.
func answered(f *grant.Fault) string {
	s := fmt.Sprintf("answered %d", f.Status)
	if f.Status == 0 {
		s = "not answered"
	}
	if f.Code != "" {
		s += " " + f.Code
	}
	if f.Detail != "" {
		s += fmt.Sprintf(" (%s)", f.Detail)
	}
	return s
}

// beginning is so much of a description as tells it from others: descriptions end in numbers and
// names.
func beginning(s string) string {
	words := strings.Fields(s)
	return strings.Join(words[:min(len(words), 6)], " ")
}

// refusalOf says how userinfo's answer to a made-up access token is taken.
func (x *inquiry) refusalOf(err error) finding {
	f, faulty := errors.AsType[*grant.Fault](err)
	switch {
	case errors.Is(err, grant.ErrAccessRefused):
		return finding{State: fine, Found: "userinfo refuses it: a refresh is next"}
	case err == nil:
		return finding{State: broken, Found: "userinfo names somebody by a made-up token", Advice: "nothing that it says can be believed: check userinfo_url"}
	case faulty && f.Status >= 400 && f.Status < 500:
		x.suggest("rules", fmt.Sprintf("[{on: userinfo, status: %d, class: refused}]", f.Status), "userinfo's way to say that the access token is dead, if no other answer has this status")
		return finding{State: warning, Found: "userinfo says " + answered(f) + ": taken for a fault of the settings, not of the token", Advice: "see the rule below"}
	case faulty && f.Status >= 500:
		return finding{State: warning, Found: "userinfo says " + answered(f), Advice: "run this again later"}
	}
	return failed(err, "check userinfo_url; a provider that has none needs userinfo: none")
}

// person asks with a test user's tokens.
func (x *inquiry) person(ctx context.Context, p providerCheck, a *app) error {
	if p.TokensFile == "" {
		x.add("userinfo", finding{State: skipped, Found: "no test user's tokens: --tokens-file"})
		return nil
	}
	tokens, err := readTokens(p.TokensFile, a.stdin)
	if err != nil {
		return usageError{fmt.Errorf("--tokens-file: %w", err)}
	}
	before, ok := x.profile(ctx, tokens)
	if ok {
		x.elsewhere(before)
	}
	if !p.Refresh {
		return nil
	}
	if tokens.RefreshToken == "" {
		x.add("refresh", finding{State: broken, Found: "the file has no refresh_token", Advice: "does the login ask for one? Most want the scope offline_access"})
		return nil
	}
	next, err := x.rotate(ctx, p.TokensFile, tokens)
	if err != nil || next.AccessToken == "" {
		return err
	}
	if !ok {
		x.profile(ctx, next) // the file's may have been too old
	} else if _, after, err := x.client.Whoami(ctx, grant.NewSecret(next.AccessToken)); err == nil {
		x.volatile(before, after)
	}
	return nil
}

// profile asks who the tokens are of.
func (x *inquiry) profile(ctx context.Context, t publishers.Tokens) (schema.Profile, bool) {
	if x.settings.Userinfo == "none" {
		x.add("userinfo", finding{State: skipped, Found: "none, by the settings: the profile is in the ID token"})
		return schema.Profile{}, false
	}
	user, profile, err := x.client.Whoami(ctx, grant.NewSecret(t.AccessToken))
	if err != nil {
		x.add("userinfo", failed(err, "is the access token still good, and did its login ask for openid and profile?"))
		return schema.Profile{}, false
	}
	x.add("userinfo", finding{State: fine, Found: fmt.Sprintf("names %s; a user.login must say exactly this id. %s", user, filled(profile))})
	return profile, true
}

// filled says which members of a profile the provider fills.
func filled(p schema.Profile) string {
	var members map[string]json.RawMessage
	raw, err := json.Marshal(p)
	if err != nil || json.Unmarshal(raw, &members) != nil {
		return ""
	}
	delete(members, "raw")
	return "It fills " + strings.Join(sortedKeys(members), ", ")
}

// rotate refreshes the test user's tokens, and keeps the new ones before anything else can fail.
func (x *inquiry) rotate(ctx context.Context, path string, t publishers.Tokens) (publishers.Tokens, error) {
	fresh, err := x.client.Refresh(ctx, grant.NewSecret(t.RefreshToken))
	if err != nil {
		f, _ := errors.AsType[*grant.Fault](err)
		x.add("refresh", finding{State: broken, Found: answered(f) + ": " + string(f.Class), Advice: cmp.Or(errorText(f.Err), "is the refresh token still good?")})
		return publishers.Tokens{}, nil
	}
	next := publishers.Tokens{
		AccessToken: fresh.Access.Reveal(), RefreshToken: cmp.Or(fresh.Refresh.Reveal(), t.RefreshToken), IDToken: fresh.ID.Reveal(), Scope: fresh.Scope, ExpiresIn: fresh.ExpiresIn,
	}
	if err := writeTokens(path, next); err != nil {
		return next, fmt.Errorf("the new tokens cannot be written to %s, and the old ones may be spent: %w", path, err)
	}
	found := "works; the refresh token stays the same"
	if next.RefreshToken != t.RefreshToken {
		found = "works; each one replaces the refresh token: switch a grace window on there, if it has one"
	}
	if next.IDToken == "" {
		found += "; no ID token comes with it"
	}
	x.add("refresh", finding{State: fine, Found: found})
	if fresh.ExpiresIn == 0 {
		x.add("lifetime", finding{State: warning, Found: "the answer does not say how long the access token lives", Advice: "set policy.lifetime to what the provider's documentation says"})
	} else {
		x.add("lifetime", finding{State: fine, Found: fmt.Sprintf("an access token lives %v", fresh.ExpiresIn.Round(time.Second))})
	}
	return next, nil
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// writeTokens replaces a file of tokens, in one step and for nobody else to read.
func writeTokens(path string, t publishers.Tokens) error {
	raw, err := json.Marshal(map[string]any{
		"access_token": t.AccessToken, "refresh_token": t.RefreshToken, "id_token": t.IDToken, "scope": t.Scope, "expires_in": t.ExpiresIn.Seconds(),
	})
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tokens-*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(append(raw, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func (x *inquiry) suggest(setting, value, why string) {
	x.suggests = append(x.suggests, suggestion{setting, value, why})
}

// conclude prints what settings suit the provider, and fails if something is broken.
func (x *inquiry) conclude(a *app, output string) error {
	if output == "json" {
		if err := json.NewEncoder(a.stdout).Encode(map[string]any{"provider": x.settings.ID, "findings": x.findings, "suggestions": x.suggests}); err != nil {
			return err
		}
	} else if len(x.suggests) > 0 {
		fmt.Fprintln(a.stdout, "\nSettings that would suit it, below this provider:")
		for _, s := range x.suggests {
			fmt.Fprintf(a.stdout, "    %s: %s    # %s\n", s.Setting, printable(s.Value), s.Why)
		}
	}
	for _, f := range x.findings {
		if f.State == broken {
			return errSilent
		}
	}
	return nil
}
