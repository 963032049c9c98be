package idp

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Preset holds the known facts about a kind of provider. A preset is data: a provider that needs
// special code has no preset.
type Preset struct {
	// BaseURL is the address for all customers; empty: each customer has its own address.
	BaseURL string
	// Token and UserInfo are paths below the base, or whole addresses. Empty: OpenID Connect
	// Discovery is asked.
	Token, UserInfo string
	// Hosts are the hosts that the discovery document at BaseURL names beside BaseURL's own. Empty:
	// there is no other host, or no other host is known.
	Hosts []string
	// Subject is the member of the profile that names the user; empty: "sub" (OpenID Connect Core
	// section 5.3.2).
	Subject string
	// ClientAuth is the way of client authentication to try first, if the settings name no way and
	// discovery does not decide; empty: AuthBasic.
	ClientAuth ClientAuth
	// Profile says where members of the profile are, see Config.
	Profile map[string]string
	// Volatile are members of the profile that change by themselves at this provider, see
	// grant.Policy.
	Volatile []string
	Rules    []Rule
}

// ordinary are providers that "oidc" fits as it is. docs/providers says what to switch on there.
var ordinary = []string{"cognito", "entra", "glewlwyd", "okta"}

// Presets are the kinds of providers, by name.
func Presets() map[string]Preset {
	return map[string]Preset{
		// See also tokens.go for the shapes of PropelAuth's answers.
		"propelauth": {
			Token:      "/propelauth/oauth/token",
			UserInfo:   "/propelauth/oauth/userinfo",
			Subject:    "user_id",
			ClientAuth: AuthPost,
		},
		"oidc": {},
		"auth0": {
			// As ever: Auth0's answer to the other way is not documented.
			ClientAuth: AuthPost,
			// A 500 that means 429.
			Rules: []Rule{
				{
					Status: 500,
					Code:   "access_denied",
					Body:   "Global limit has been reached",
					Class:  grant.Throttled,
				},
			},
		},
		"authelia": {Rules: []Rule{
			// rolled back
			{
				Status: 400,
				Code:   "invalid_request",
				Body:   "multiple concurrent requests using the same token",
				Class:  grant.Ambiguous,
			},
		}},
		"dex": {Rules: []Rule{
			{
				Status: 400,
				Code:   "invalid_request",
				Body:   "Refresh token is invalid or has already been claimed",
				Class:  grant.Permanent,
				Reason: schema.ReasonRevoked,
			},
			{
				Status: 400,
				Code:   "invalid_request",
				Body:   "Refresh token expired",
				Class:  grant.Permanent,
				Reason: schema.ReasonExpired,
			},
			{
				Status: 400,
				Code:   "invalid_grant",
				Body:   "Connector not allowed for this client",
				Class:  grant.Config,
			},
			{UserInfo: true, Status: 403, Code: "access_denied", Class: Refused},
		}},
		"google": {
			BaseURL: "https://accounts.google.com",
			Hosts: []string{
				"oauth2.googleapis.com", "openidconnect.googleapis.com", "www.googleapis.com",
			},
			Rules: []Rule{
				{
					Status: 400,
					Code:   "invalid_grant",
					Body:   "invalid_rapt",
					Class:  grant.Permanent,
					Reason: schema.ReasonExpired,
				},
			},
		},
		"gitlab": {BaseURL: "https://gitlab.com"},
		"hydra": {Rules: []Rule{
			// rolled back
			{
				Status: 400,
				Code:   "invalid_request",
				Body:   "Please retry the request",
				Class:  grant.Ambiguous,
			},
			{
				Status: 400,
				Code:   "invalid_grant",
				Body:   "The refresh token expired",
				Class:  grant.Permanent,
				Reason: schema.ReasonExpired,
			},
		}},
		"keycloak": {Rules: []Rule{
			{
				Status: 400,
				Code:   "invalid_scope",
				Body:   "Client no longer has requested consent from user",
				Class:  grant.Permanent,
				Reason: schema.ReasonRevoked,
			},
			{
				Status: 400,
				Code:   "invalid_grant",
				Body:   "User disabled",
				Class:  grant.Permanent,
				Reason: schema.ReasonAccountDisabled,
			},
			{
				Status: 400,
				Code:   "invalid_grant",
				Body:   "Token is not active",
				Class:  grant.Permanent,
				Reason: schema.ReasonExpired,
			},
		}},
		"github": {
			BaseURL:    "https://github.com",
			Token:      "/login/oauth/access_token",
			UserInfo:   "https://api.github.com/user",
			Subject:    "id",
			ClientAuth: AuthPost,
			// GitHub's profile has counters of the user's activity.
			Volatile: []string{
				"updated_at", "public_repos", "public_gists", "followers", "following",
				"private_gists", "total_private_repos", "owned_private_repos",
				"disk_usage", "collaborators",
			},
			Rules: []Rule{
				{Status: 200, Code: "bad_verification_code", Class: grant.Config},
				{UserInfo: true, Status: 403, Body: "rate limit", Class: grant.Throttled},
			},
		},
		"slack": {
			BaseURL: "https://slack.com",
			// Slack's own words: "possible some aspect of the operation succeeded".
			Rules: []Rule{
				{Code: "internal_error", Class: grant.Ambiguous},
				{Code: "fatal_error", Class: grant.Ambiguous},
			},
		},
		"twitch": {
			BaseURL: "https://id.twitch.tv/oauth2", ClientAuth: AuthPost,
			Rules: []Rule{
				// the answer has no code
				{
					Status: 400,
					Body:   "Invalid refresh token",
					Class:  grant.Permanent,
					Reason: schema.ReasonRevoked,
				},
				// the code is the status in words
				{
					Status: 400,
					Code:   "Bad Request",
					Body:   "Invalid refresh token",
					Class:  grant.Permanent,
					Reason: schema.ReasonRevoked,
				},
				{Status: 400, Body: "invalid client", Class: grant.Config},
			},
		},
		"zitadel": {
			Profile: map[string]string{"roles": "/urn:zitadel:iam:org:project:roles"},
			Rules: []Rule{
				{
					Status: 400,
					Code:   "invalid_request",
					Body:   "Errors.OIDCSession.RefreshTokenInvalid",
					Class:  grant.Permanent,
					Reason: schema.ReasonRevoked,
				},
				{
					Status: 400,
					Code:   "invalid_request",
					Body:   "Errors.User.RefreshToken.Invalid",
					Class:  grant.Permanent,
					Reason: schema.ReasonRevoked,
				},
				{UserInfo: true, Status: 403, Class: Refused},
			},
		},
	}
}

// Refused is the class of an answer of userinfo that refuses the access token, as a 401 does: a
// refresh is next. The class says nothing about a user, so no Fault has it.
const Refused grant.Class = "refused"

// Rule moves answers of a provider to another class, before the table is asked. A rule never
// touches a success, and never makes a verdict of a 5xx.
type Rule struct {
	UserInfo bool        // of the userinfo endpoint; else of the token endpoint
	Status   int         // 0: any
	Code     string      // exactly; empty: the answer has no code
	Body     string      // text in the body, in any case; empty: anything
	Empty    bool        // the answer has no body at all
	Class    grant.Class // Refused only of userinfo, grant.Permanent only of the token endpoint
	Reason   string      // of user.reauth_required, for grant.Permanent
}

func (r Rule) matches(a Answer) bool {
	if r.UserInfo != a.UserInfo ||
		r.Class == grant.Permanent && a.Status >= http.StatusInternalServerError ||
		r.Empty && !a.Empty {
		return false
	}
	return !a.Usable && (r.Status == 0 || r.Status == a.Status) && r.Code == a.Code &&
		(r.Body == "" || strings.Contains(strings.ToLower(a.Body), strings.ToLower(r.Body)))
}

// validate refuses a rule with an impossible class, and a rule that could sign out all users at
// once.
func (r Rule) validate() error {
	switch {
	case r.Status != 0 && (r.Status < 100 || r.Status > 599):
		return fmt.Errorf("status: %d: want 100 to 599, or 0 for any", r.Status)
	case r.UserInfo && r.Class == grant.Permanent, !r.UserInfo && r.Class == Refused:
		return fmt.Errorf("class: %q: a refusal of a refresh token is %q, one of an access token "+
			"by userinfo %q", r.Class, grant.Permanent, Refused)
	case r.Class == Refused:
		return nil
	case !slices.Contains(grant.Classes(), r.Class) || r.Class == grant.Unsent:
		return fmt.Errorf("class: %q: want one of %q", r.Class,
			slices.DeleteFunc(grant.Classes(), func(c grant.Class) bool {
				return c == grant.Unsent
			}))
	case r.Empty && (r.Code != "" || r.Body != ""):
		return errors.New("empty: an answer without a body has neither a code nor a text")
	case r.Class != grant.Permanent:
		return nil
	case r.Status >= http.StatusInternalServerError:
		return fmt.Errorf("status: %d: a provider that is out of order signs no user out", r.Status)
	case strings.Trim(r.Reason, "abcdefghijklmnopqrstuvwxyz_") != "" || len(r.Reason) > 64:
		return fmt.Errorf("reason: want a word like %q, of a-z and _", schema.ReasonRevoked)
	case r.Reason == "":
		return fmt.Errorf("reason: missing: a permanent answer signs the user out, say why (%q "+
			"for instance)", schema.ReasonRevoked)
	case r.Code == "" && r.Body == "":
		return errors.New("code: missing: a permanent answer signs the user out, so name its " +
			"code or a part of its body")
	}
	return nil
}
