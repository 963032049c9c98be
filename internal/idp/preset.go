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

// Preset is what is known about a kind of provider. It is data: a provider that needs code of its
// own has no preset.
type Preset struct {
	// BaseURL is where all its customers go; empty: each has an address of their own.
	BaseURL string
	// Token and UserInfo are paths below the base, or whole addresses. Without them OpenID Connect
	// Discovery is asked.
	Token, UserInfo string
	// Subject is the member of the profile that names the user; empty: "sub" (OpenID Connect Core
	// section 5.3.2).
	Subject string
	// ClientAuth is the way of client authentication that is tried first, where the settings name
	// none and discovery does not decide it; empty: AuthBasic.
	ClientAuth ClientAuth
	// Profile says where members of the profile are, see Config.
	Profile map[string]string
	// Volatile are members of the profile that move by themselves at this provider, see
	// grant.Policy.
	Volatile []string
	Rules    []Rule
}

// ordinary are providers that "oidc" fits as they are; docs/providers says what to switch on there.
var ordinary = []string{"cognito", "entra", "glewlwyd", "okta"}

// Presets are the kinds of providers, by name.
func Presets() map[string]Preset {
	return map[string]Preset{
		// See also tokens.go for the shapes of its answers.
		"propelauth": {Token: "/propelauth/oauth/token", UserInfo: "/propelauth/oauth/userinfo", Subject: "user_id", ClientAuth: AuthPost},
		"oidc":       {},
		"auth0": {
			// As ever: what it answers to the other way is not documented.
			ClientAuth: AuthPost,
			// A 500 that means 429.
			Rules: []Rule{{Status: 500, Code: "access_denied", Body: "Global limit has been reached", Class: grant.Throttled}},
		},
		"authelia": {Rules: []Rule{
			{Status: 400, Code: "invalid_request", Body: "multiple concurrent requests using the same token", Class: grant.Ambiguous}, // rolled back
		}},
		"dex": {Rules: []Rule{
			{Status: 400, Code: "invalid_request", Body: "Refresh token is invalid or has already been claimed", Class: grant.Permanent, Reason: schema.ReasonRevoked},
			{Status: 400, Code: "invalid_request", Body: "Refresh token expired", Class: grant.Permanent, Reason: schema.ReasonExpired},
			{Status: 400, Code: "invalid_grant", Body: "Connector not allowed for this client", Class: grant.Config},
			{UserInfo: true, Status: 403, Code: "access_denied", Class: Refused},
		}},
		"google": {
			BaseURL: "https://accounts.google.com",
			Rules:   []Rule{{Status: 400, Code: "invalid_grant", Body: "invalid_rapt", Class: grant.Permanent, Reason: schema.ReasonExpired}},
		},
		"gitlab": {BaseURL: "https://gitlab.com"},
		"hydra": {Rules: []Rule{
			{Status: 400, Code: "invalid_request", Body: "Please retry the request", Class: grant.Ambiguous}, // rolled back
			{Status: 400, Code: "invalid_grant", Body: "The refresh token expired", Class: grant.Permanent, Reason: schema.ReasonExpired},
		}},
		"keycloak": {Rules: []Rule{
			{Status: 400, Code: "invalid_scope", Body: "Client no longer has requested consent from user", Class: grant.Permanent, Reason: schema.ReasonRevoked},
			{Status: 400, Code: "invalid_grant", Body: "User disabled", Class: grant.Permanent, Reason: schema.ReasonAccountDisabled},
			{Status: 400, Code: "invalid_grant", Body: "Token is not active", Class: grant.Permanent, Reason: schema.ReasonExpired},
		}},
		"github": {
			BaseURL: "https://github.com", Token: "/login/oauth/access_token", UserInfo: "https://api.github.com/user", Subject: "id", ClientAuth: AuthPost,
			// Its profile counts what the user does.
			Volatile: []string{
				"updated_at", "public_repos", "public_gists", "followers", "following", "private_gists", "total_private_repos", "owned_private_repos",
				"disk_usage", "collaborators",
			},
			Rules: []Rule{
				{Status: 200, Code: "bad_verification_code", Class: grant.Config},
				{UserInfo: true, Status: 403, Body: "rate limit", Class: grant.Throttled},
			},
		},
		"slack": {
			BaseURL: "https://slack.com",
			// Their own words: "possible some aspect of the operation succeeded".
			Rules: []Rule{{Code: "internal_error", Class: grant.Ambiguous}, {Code: "fatal_error", Class: grant.Ambiguous}},
		},
		"twitch": {
			BaseURL: "https://id.twitch.tv/oauth2", ClientAuth: AuthPost,
			Rules: []Rule{
				{Status: 400, Body: "Invalid refresh token", Class: grant.Permanent, Reason: schema.ReasonRevoked},                      // no code
				{Status: 400, Code: "Bad Request", Body: "Invalid refresh token", Class: grant.Permanent, Reason: schema.ReasonRevoked}, // the status in words
				{Status: 400, Body: "invalid client", Class: grant.Config},
			},
		},
		"zitadel": {Profile: map[string]string{"roles": "/urn:zitadel:iam:org:project:roles"}, Rules: []Rule{
			{Status: 400, Code: "invalid_request", Body: "Errors.OIDCSession.RefreshTokenInvalid", Class: grant.Permanent, Reason: schema.ReasonRevoked},
			{Status: 400, Code: "invalid_request", Body: "Errors.User.RefreshToken.Invalid", Class: grant.Permanent, Reason: schema.ReasonRevoked},
			{UserInfo: true, Status: 403, Class: Refused},
		}},
	}
}

// Refused is the class of an answer of userinfo that does not take the access token, as a 401 does: a
// refresh is next. It is about no user, so no Fault has it.
const Refused grant.Class = "refused"

// Rule moves answers of one provider to another class, before the table is asked. It never touches
// a success, and never makes a verdict of a 5xx.
type Rule struct {
	UserInfo bool        // of the userinfo endpoint; else of the token endpoint
	Status   int         // 0: any
	Code     string      // exactly; empty: the answer has none
	Body     string      // what its body contains, in any case; empty: anything
	Empty    bool        // it has no body at all
	Class    grant.Class // Refused only of userinfo, grant.Permanent only of the token endpoint
	Reason   string      // of user.reauth_required, for grant.Permanent
}

func (r Rule) matches(a Answer) bool {
	if r.UserInfo != a.UserInfo || r.Class == grant.Permanent && a.Status >= http.StatusInternalServerError || r.Empty && !a.Empty {
		return false
	}
	return !a.Usable && (r.Status == 0 || r.Status == a.Status) && r.Code == a.Code &&
		(r.Body == "" || strings.Contains(strings.ToLower(a.Body), strings.ToLower(r.Body)))
}

// validate refuses what no class can be, and what could sign out everybody at once.
func (r Rule) validate() error {
	switch {
	case r.Status != 0 && (r.Status < 100 || r.Status > 599):
		return fmt.Errorf("status: %d: want 100 to 599, or 0 for any", r.Status)
	case r.UserInfo && r.Class == grant.Permanent, !r.UserInfo && r.Class == Refused:
		return fmt.Errorf("class: %q: a refusal of a refresh token is %q, one of an access token by userinfo %q", r.Class, grant.Permanent, Refused)
	case r.Class == Refused:
		return nil
	case !slices.Contains(grant.Classes(), r.Class) || r.Class == grant.Unsent:
		return fmt.Errorf("class: %q: want one of %q", r.Class, slices.DeleteFunc(grant.Classes(), func(c grant.Class) bool { return c == grant.Unsent }))
	case r.Empty && (r.Code != "" || r.Body != ""):
		return errors.New("empty: an answer without a body has neither a code nor a text")
	case r.Class != grant.Permanent:
		return nil
	case r.Status >= http.StatusInternalServerError:
		return fmt.Errorf("status: %d: a provider that is out of order signs nobody out", r.Status)
	case strings.Trim(r.Reason, "abcdefghijklmnopqrstuvwxyz_") != "" || len(r.Reason) > 64:
		return fmt.Errorf("reason: want a word like %q, of a-z and _", schema.ReasonRevoked)
	case r.Reason == "":
		return fmt.Errorf("reason: missing: a permanent answer signs the user out, say why (%q for instance)", schema.ReasonRevoked)
	case r.Code == "" && r.Body == "":
		return errors.New("code: missing: a permanent answer signs the user out, so name its code or a part of its body")
	}
	return nil
}
