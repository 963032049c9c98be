package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nuid"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// Suggestion is a setting that would suit the provider better.
type Suggestion struct {
	Setting string `json:"setting"` // as in the settings file, below the provider
	Value   string `json:"value"`   // YAML on one line
	Why     string `json:"why"`
}

// inquiry is one check of a provider.
type inquiry struct {
	examination
	settings settings.Provider
	client   *idp.Provider
	first    idp.ClientAuth // the way tried first
	suggests []Suggestion
	say      func(text string)
}

// ProviderQuestion is what CheckProvider asks, and what it may do beside looking.
type ProviderQuestion struct {
	Conf     *settings.Settings
	Provider string // its id
	MadeUp   bool   // show made-up tokens, to see how the provider refuses them
	// Tokens are a test user's; nil without such tokens.
	Tokens func() (publishers.Tokens, error)
	// RefreshInto is the file for the test user's new tokens; empty: the tokens are not refreshed.
	RefreshInto string
	Tell        func(Finding)     // gets each finding as it comes; may be nil
	Say         func(text string) // gets the next action; may be nil
}

// CheckProvider asks a provider one question after the other, and says which settings suit the
// provider. It needs neither NATS nor a store.
func CheckProvider(ctx context.Context, q ProviderQuestion) ([]Finding, []Suggestion, error) {
	x := &inquiry{examination: examination{tell: q.Tell}, say: q.Say}
	x.settings, _ = q.Conf.Provider(q.Provider)
	var err error
	if x.client, err = daemon.Bare(q.Conf).Client(x.settings); err != nil {
		return nil, nil, err
	}
	defer x.client.Close()
	if x.reach(ctx) {
		if q.MadeUp {
			x.madeUp(ctx)
		}
		if err := x.person(ctx, q); err != nil {
			return nil, nil, err
		}
	}
	return x.findings, x.suggests, nil
}

// reach looks at the endpoints and the connection below.
func (x *inquiry) reach(ctx context.Context) bool {
	e, err := x.client.Examine(ctx)
	if err != nil {
		x.add("endpoints",
			failed(err,
				"is auth_url the issuer, exactly? A provider without a discovery document needs "+
					"token_url and userinfo_url"))
		return false
	}
	x.first = e.First
	found := "token " + e.Token
	if found += "; userinfo " + cmp.Or(e.UserInfo, "none"); e.Revoke != "" {
		found += "; revocation " + e.Revoke
	}
	x.add("endpoints", Finding{State: Fine, Found: found})
	if e.Revoke == "" {
		x.add("revocation", Finding{
			State: Warning,
			Found: "no endpoint is known (RFC 7009)",
			Advice: "a user who is forgotten stays signed in at the provider: " +
				"set revoke_url if it has one",
		})
	}
	x.connection(e)
	switch away := e.Ahead.Abs(); {
	case !e.Dated:
		x.add("clock", Finding{
			State:  Warning,
			Found:  "its answers have no Date",
			Advice: "a lifetime that it gives as a time of day is read by this machine's clock",
		})
	case away > 5*time.Second:
		x.add("clock", Finding{
			State:  Warning,
			Found:  fmt.Sprintf("%v apart from this machine's", away),
			Advice: "set both by NTP; renewd allows for it, but logs and audits will not agree",
		})
	default:
		x.add("clock",
			Finding{State: Fine, Found: fmt.Sprintf("%v apart from this machine's", away)})
	}
	return true
}

func (x *inquiry) connection(e idp.Examination) {
	f := Finding{State: Fine, Found: e.Protocol + ", " + cmp.Or(e.TLS, "no TLS")}
	if !e.Until.IsZero() {
		f.Found += ", certificate until " + plain.Clock(e.Until)
	}
	if left := time.Until(e.Until); !e.Until.IsZero() && left < 7*24*time.Hour {
		f.State, f.Advice = Warning, "the certificate expires soon: no user is renewed once it has"
	}
	x.add("connection", f)
}

// madeUp shows the token endpoint and userinfo a made-up token, after saying so.
func (x *inquiry) madeUp(ctx context.Context) {
	token := secret.New("made-up-by-renewd-provider-check-" + nuid.Next())
	if x.say != nil {
		x.say("now a made-up refresh token is shown to the token endpoint, " +
			"and a made-up access token to userinfo (--no-made-up leaves that out)")
	}
	_, err := x.client.Refresh(ctx, token)
	f, _ := errors.AsType[*grant.Fault](err)
	if way := x.client.Way(); err == nil || f.Class == grant.Permanent || f.Class == grant.Unknown {
		x.add("client",
			Finding{State: Fine, Found: "let in, " + authenticated(way, x.settings.ClientAuth)})
		if way != x.first && way != idp.AuthAuto {
			x.suggest("client_auth", string(way),
				"the way that works, without a try of the other one at each start")
		}
	}
	x.add("a dead token", x.verdictOn(f))
	if x.settings.Userinfo != "none" {
		_, _, err = x.client.Whoami(ctx, token)
		x.add("a dead access token", x.refusalOf(err))
	}
}

func authenticated(way idp.ClientAuth, set string) string {
	how := map[idp.ClientAuth]string{
		idp.AuthNone:       "by client_id alone",
		idp.AuthPost:       "by its secret in the form (post)",
		idp.AuthBasic:      "by its secret in a header (basic)",
		idp.AuthPrivateKey: "by a signature of its key (private_key_jwt)",
	}[way]
	if set == "" && (way == idp.AuthPost || way == idp.AuthBasic) {
		how += ", found by itself"
	}
	return cmp.Or(how, "in a way that renewd does not know")
}

// verdictOn tells how renewd takes the answer to a made-up refresh token.
func (x *inquiry) verdictOn(f *grant.Fault) Finding {
	if f == nil {
		return Finding{
			State:  Broken,
			Found:  "a made-up refresh token is answered with tokens",
			Advice: "this is no token endpoint that anybody can rely on: check token_url",
		}
	}
	said := answered(f)
	switch f.Class {
	case grant.Permanent:
		return Finding{
			State: Fine,
			Found: said + ": a dead session, told after three refusals as " + f.Reason,
		}
	case grant.Unknown:
		if f.Code == "" && f.Detail == "" {
			return Finding{State: Warning, Found: said + ": words that renewd does not know, " +
				"and none to make a rule of",
				Advice: "three such refusals, confirm_unknown apart, " +
					"are believed while others are renewed"}
		}
		rule := fmt.Sprintf("[{status: %d, code: %s, class: permanent, reason: revoked}]",
			f.Status, strconv.Quote(f.Code))
		if f.Detail != "" {
			rule = fmt.Sprintf("[{status: %d, code: %s, body: %s, class: "+
				"permanent, reason: revoked}]", f.Status, strconv.Quote(f.Code),
				strconv.Quote(beginning(f.Detail)))
		}
		x.suggest("rules", rule,
			"if these are its words for a session that has ended: "+
				"then it is told within a minute, not hours")
		return Finding{
			State: Warning,
			Found: said + ": words that renewd does not know",
			Advice: "see the rule below; without one, three such refusals, " +
				"confirm_unknown apart, are believed while others are renewed",
		}
	case grant.Config:
		return Finding{
			State:  Broken,
			Found:  said + ": it refuses this client",
			Advice: f.Err.Error(),
		}
	}
	return Finding{
		State:  Warning,
		Found:  said + ": it is out of order, or throttles",
		Advice: "run this again later",
	}
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

// beginning is enough of a description to tell it from other descriptions, which end in numbers and
// names.
func beginning(s string) string {
	words := strings.Fields(s)
	return strings.Join(words[:min(len(words), 6)], " ")
}

// refusalOf tells how renewd takes userinfo's answer to a made-up access token.
func (x *inquiry) refusalOf(err error) Finding {
	f, faulty := errors.AsType[*grant.Fault](err)
	switch {
	case errors.Is(err, grant.ErrAccessRefused):
		return Finding{State: Fine, Found: "userinfo refuses it: a refresh is next"}
	case err == nil:
		return Finding{
			State:  Broken,
			Found:  "userinfo names somebody by a made-up token",
			Advice: "nothing that it says can be believed: check userinfo_url",
		}
	case faulty && f.Status >= 400 && f.Status < 500:
		x.suggest("rules", fmt.Sprintf("[{on: userinfo, status: %d, class: refused}]", f.Status),
			"userinfo's way to say that the access token is dead, "+
				"if no other answer has this status")
		return Finding{
			State: Warning,
			Found: "userinfo says " + answered(f) +
				": taken for a fault of the settings, not of the token",
			Advice: "see the rule below",
		}
	case faulty && f.Status >= 500:
		return Finding{
			State:  Warning,
			Found:  "userinfo says " + answered(f),
			Advice: "run this again later",
		}
	}
	return failed(err, "check userinfo_url; a provider that has none needs userinfo: none")
}

// person asks with a test user's tokens.
func (x *inquiry) person(ctx context.Context, q ProviderQuestion) error {
	if q.Tokens == nil {
		x.add("userinfo", Finding{State: Skipped, Found: "no test user's tokens: --tokens-file"})
		return nil
	}
	tokens, err := q.Tokens()
	if err != nil {
		return err
	}
	before, ok := x.profile(ctx, tokens)
	if ok {
		x.elsewhere(before)
	}
	if q.RefreshInto == "" {
		return nil
	}
	if tokens.RefreshToken == "" {
		x.add("refresh", Finding{
			State:  Broken,
			Found:  "the file has no refresh_token",
			Advice: "does the login ask for one? Most want the scope offline_access",
		})
		return nil
	}
	next, err := x.rotate(ctx, q.RefreshInto, tokens)
	if err != nil || next.AccessToken == "" {
		return err
	}
	if !ok {
		x.profile(ctx, next) // the file's token may have been too old
	} else if _, after, err := x.client.Whoami(ctx, secret.New(next.AccessToken)); err == nil {
		x.volatile(before, after)
	}
	return nil
}

// profile asks whose tokens these are.
func (x *inquiry) profile(ctx context.Context, t publishers.Tokens) (schema.Profile, bool) {
	if x.settings.Userinfo == "none" {
		x.add("userinfo", Finding{
			State: Skipped,
			Found: "none, by the settings: the profile is in the ID token",
		})
		return schema.Profile{}, false
	}
	user, profile, err := x.client.Whoami(ctx, secret.New(t.AccessToken))
	if err != nil {
		x.add("userinfo",
			failed(err,
				"is the access token still good, and did its login ask for openid and profile?"))
		return schema.Profile{}, false
	}
	x.add("userinfo", Finding{
		State: Fine,
		Found: fmt.Sprintf("names %s; a user.login must say exactly this id. %s",
			user, filled(profile)),
	})
	return profile, true
}

// filled names the members of a profile that the provider fills.
func filled(p schema.Profile) string {
	var members map[string]json.RawMessage
	raw, err := json.Marshal(p)
	if err != nil || json.Unmarshal(raw, &members) != nil {
		return ""
	}
	delete(members, "raw")
	return "It fills " + strings.Join(sortedKeys(members), ", ")
}

// rotate refreshes the test user's tokens, and keeps the new tokens before anything else can fail.
func (x *inquiry) rotate(
	ctx context.Context, path string, t publishers.Tokens,
) (publishers.Tokens, error) {
	fresh, err := x.client.Refresh(ctx, secret.New(t.RefreshToken))
	if err != nil {
		f, _ := errors.AsType[*grant.Fault](err)
		x.add("refresh", Finding{
			State:  Broken,
			Found:  answered(f) + ": " + string(f.Class),
			Advice: cmp.Or(errorText(f.Err), "is the refresh token still good?"),
		})
		return publishers.Tokens{}, nil
	}
	next := publishers.Tokens{
		AccessToken:  fresh.Access.Reveal(),
		RefreshToken: cmp.Or(fresh.Refresh.Reveal(), t.RefreshToken),
		IDToken:      fresh.ID.Reveal(),
		Scope:        fresh.Scope,
		ExpiresIn:    fresh.ExpiresIn,
	}
	if err := writeTokens(path, next); err != nil {
		return next, fmt.Errorf("the new tokens cannot be written to %s, "+
			"and the old ones may be spent: %w", path, err)
	}
	found := "works; the refresh token stays the same"
	if next.RefreshToken != t.RefreshToken {
		found = "works; each one replaces the refresh token: " +
			"switch a grace window on there, if it has one"
	}
	if next.IDToken == "" {
		found += "; no ID token comes with it"
	}
	x.add("refresh", Finding{State: Fine, Found: found})
	if fresh.ExpiresIn == 0 {
		x.add("lifetime", Finding{
			State:  Warning,
			Found:  "the answer does not say how long the access token lives",
			Advice: "set policy.lifetime to what the provider's documentation says",
		})
	} else {
		x.add("lifetime", Finding{
			State: Fine,
			Found: fmt.Sprintf("an access token lives %v", fresh.ExpiresIn.Round(time.Second)),
		})
	}
	return next, nil
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// writeTokens replaces a file of tokens, in one step; only its owner may read the file.
func writeTokens(path string, t publishers.Tokens) error {
	raw, err := json.Marshal(map[string]any{
		"access_token":  t.AccessToken,
		"refresh_token": t.RefreshToken,
		"id_token":      t.IDToken,
		"scope":         t.Scope,
		"expires_in":    t.ExpiresIn.Seconds(),
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
	x.suggests = append(x.suggests, Suggestion{setting, value, why})
}
