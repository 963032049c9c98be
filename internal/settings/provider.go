package settings

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/health"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/secret"
)

// Provider is one provider: an entry of providers in the settings file, or the provider described
// by the environment, under the names in env.
type Provider struct {
	// the provider's name in subjects and stored records: a-z, 0-9 and -; never change it.
	ID string `key:"id" env:"RENEWD_PROVIDER_ID" default:"propelauth"`
	// which provider this is: propelauth, auth0, authelia, dex, github, gitlab, google, hydra,
	// keycloak, slack, twitch, zitadel, or oidc for any other provider with a discovery document;
	// docs/providers has a page on each.
	Preset string `key:"preset" env:"RENEWD_PROVIDER_PRESET" default:"propelauth"`
	// the provider's address: PropelAuth's auth URL, or the OIDC issuer.
	AuthURL string `key:"auth_url" env:"RENEWD_AUTH_URL"`
	// OAuth client id: the client that the users sign in with.
	ClientID string `key:"client_id" env:"RENEWD_CLIENT_ID"`
	// OAuth client secret; empty for a public client.
	ClientSecret secret.Value `key:"client_secret" env:"RENEWD_CLIENT_SECRET"`
	// private key for the client to sign with in place of a secret (private_key_jwt, RFC 7523): PEM
	// or a JSON Web Key.
	ClientKey secret.Value `key:"client_key" env:"RENEWD_CLIENT_KEY"`
	// the key's id at the provider; empty: the JSON Web Key's own, else its thumbprint (RFC 7638).
	ClientKeyID string `key:"client_key_id" env:"RENEWD_CLIENT_KEY_ID"`
	// how the client authenticates: basic or post with its secret, private_key_jwt with its key, or
	// none; empty: private_key_jwt where client_key is set, else as the provider offers, basic
	// first (the preset may want post first), and once the other way after an invalid_client.
	ClientAuth string `key:"client_auth" env:"RENEWD_CLIENT_AUTH" oneof:",basic,post,none,private_key_jwt"`
	// token endpoint; empty: the preset's, or the discovered endpoint.
	TokenURL string `key:"token_url" env:"RENEWD_TOKEN_URL"`
	// revocation endpoint (RFC 7009); empty: the preset's, or the discovered endpoint.
	RevokeURL string `key:"revoke_url" env:"RENEWD_REVOKE_URL"`
	// userinfo endpoint; empty: the preset's, or the discovered endpoint.
	UserinfoURL string `key:"userinfo_url" env:"RENEWD_USERINFO_URL"`
	// file with the CA certificates to check the provider's certificate against; empty: the
	// system's.
	CAFile string `key:"ca_file" env:"RENEWD_PROVIDER_CA_FILE"`
	// allow plain HTTP to a provider on loopback, for development.
	AllowHTTP bool `key:"allow_http_loopback" env:"RENEWD_ALLOW_HTTP_LOOPBACK" default:"false"`
	// longest time of a call; set more than the provider's own timeout, since an unread answer may
	// cost the user a login.
	Timeout time.Duration `key:"timeout" env:"RENEWD_PROVIDER_TIMEOUT" default:"20s" min:"1s" max:"2m"`
	// renewals at the same time, over all processes.
	Concurrency int `key:"concurrency" env:"RENEWD_PROVIDER_CONCURRENCY" default:"64" min:"1" max:"10000"`
	// calls a second over all workers, each call counted: refreshes and userinfo; 0: no limit.
	Rate float64 `key:"rate" env:"RENEWD_PROVIDER_RATE" default:"0" min:"0"`

	// a second client secret: set both while the secret changes. Where the provider answers
	// invalid_client to a secret, the other secret is tried.
	ClientSecretNext secret.Value `key:"client_secret_next" env:"RENEWD_CLIENT_SECRET_NEXT"`
	// scopes to ask for with each refresh, separated by spaces; empty: no scope is asked for, and
	// the grant keeps its scopes.
	Scope string `key:"scope" env:"RENEWD_PROVIDER_SCOPE"`
	// member of the profile with the user's id; empty: the preset's, or sub.
	Subject string `key:"subject" env:"RENEWD_PROVIDER_SUBJECT"`
	// further parameters of each refresh, such as audience or resource: a mapping of names to
	// values or lists of values.
	Params map[string][]string `key:"params" env:"-"`
	// further headers of each call: a mapping of names to values; under NAME_file a file with the
	// value.
	Headers map[string]secret.Value `key:"headers" env:"-"`
	// HTTP proxy to reach the provider through: http://user:password@host:port; empty: no proxy,
	// whatever HTTPS_PROXY says.
	ProxyURL secret.Value `key:"proxy_url" env:"RENEWD_PROVIDER_PROXY_URL" show:"url"`
	// meaning of this provider's answers to a refresh or at userinfo, before the preset's rules and
	// the built-in table: a list; the first rule that fits counts.
	Rules []Rule `key:"rules" env:"-"`

	// none where the provider has no userinfo endpoint: the profile is taken from the ID token,
	// checked against the provider's keys and, by its at_hash, the access token; each login brings
	// its ID token.
	Userinfo string `key:"userinfo" env:"RENEWD_PROVIDER_USERINFO" oneof:",none"`
	// where members of the profile are in the userinfo, if not at their usual place: a mapping such
	// as {roles: /realm_access/roles} to JSON pointers (RFC 6901), for email, email_verified, name,
	// first_name, last_name, username, picture, enabled, locked, mfa_enabled, has_password, groups,
	// roles, locale, zoneinfo.
	Profile map[string]string `key:"profile" env:"-"`
	// members of the userinfo that change by themselves and are no change of the user, beside the
	// claims of tokens and the preset's members: a list of names.
	Volatile []string `key:"volatile" env:"-"`

	// hosts that the discovery document may name beside the issuer's own, separated by spaces, with
	// the port if it is not 443; no other host is accepted then. Empty: the preset's hosts, or the
	// hosts of the first document that is read, until renewd provider accept.
	EndpointHosts string `key:"endpoint_hosts" env:"RENEWD_ENDPOINT_HOSTS"`

	// revoke the refresh token that a newer login replaces; not at a provider where a revocation
	// ends other sessions of the user.
	RevokeReplaced bool `key:"revoke_replaced" default:"false"`

	Policy Policy
	Guard  Guard
}

// Policy is when and how one provider's grants are renewed: grant.Policy in the settings
// file, under policy.
type Policy struct {
	// lifetime of an access token where the provider states no lifetime.
	Lifetime time.Duration `key:"lifetime" default:"30m" min:"1s"`
	// longest lifetime of an access token, whatever a provider or a publisher states.
	MaxLifetime time.Duration `key:"max_lifetime" default:"24h" min:"1m"`
	// how long before its expiry a token is renewed.
	Margin time.Duration `key:"margin" default:"5m" min:"1ms"`
	// the margin's largest share of the lifetime.
	MarginShare float64 `key:"margin_share" default:"0.2" min:"0.001" max:"0.9"`
	// share of the lifetime that renewals are spread over, before the margin.
	JitterShare float64 `key:"jitter_share" default:"0.1" min:"0.001" max:"0.5"`
	// least time between two renewals of one user.
	Floor time.Duration `key:"floor" default:"2s" min:"1ms"`
	// how often profiles are synced between renewals; 0: with each renewal only.
	ProfileEvery time.Duration `key:"profile_every" default:"0s" min:"0s"`
	// a user's own failures before user.refresh_failed.
	Tries int `key:"tries" default:"5" min:"1" max:"100"`
	// least wait before another try; the wait doubles with each try.
	RetryMin time.Duration `key:"retry_min" default:"2s" min:"1ms"`
	// longest wait before another try.
	RetryMax time.Duration `key:"retry_max" default:"5m" min:"1ms"`
	// wait after user.refresh_failed.
	RetryLater time.Duration `key:"retry_later" default:"1h" min:"1ms"`
	// least wait before a refused refresh token is presented once more, to be sure; after a third
	// of confirm_min the token is presented for the last time.
	ConfirmMin time.Duration `key:"confirm_min" default:"30s" min:"1ms"`
	// longest wait before a refused refresh token is presented once more.
	ConfirmMax time.Duration `key:"confirm_max" default:"60s" min:"1ms"`

	// least wait between two refusals in words that renewd does not know; three such refusals end a
	// session, while other users are renewed.
	ConfirmUnknown time.Duration `key:"confirm_unknown" default:"1h" min:"1s"`

	// how long a user is renewed without a login, a command or a token read; then the user is
	// dormant until the next. 0: always; else 10m at least.
	Idle time.Duration `key:"idle" default:"0s" min:"0s"`
	// longest time between two uses of a refresh token, for a provider where an unused refresh
	// token dies before the access token; not of dormant users. 0: as often as access tokens are
	// renewed; else 1m at least.
	Keepalive time.Duration `key:"keepalive" default:"0s" min:"0s"`
	// how long after its login a session ends (user.signed_out, reason session_max), however much
	// the session is used. 0: never; else 1m at least.
	SessionMax time.Duration `key:"session_max" default:"0s" min:"0s"`
	// when users are renewed without a command, as in Mon-Fri 09:00-17:00 Europe/Berlin; several
	// windows are separated by semicolons. A renewal due outside the windows waits for the next
	// opening; a service's command is done at once. Empty: at any time.
	Windows string `key:"windows"`

	// how much of a profile user.synced shows to all subscribers: nothing, the members that renewd
	// maps, or the provider's own JSON (raw) too.
	ShowProfile string `key:"show_profile" default:"mapped" oneof:"none,mapped,raw"`
}

// Guard is when a provider's refusals are not believed, and when its calls stop: health.Rules in
// the settings file, under guard.
type Guard struct {
	// time in which refused users are weighed against renewed users.
	Window time.Duration `key:"window" default:"10m" min:"1s" max:"1h"`
	// refused users in window from which on the provider may be in doubt.
	DeadMin int `key:"dead_min" default:"10" min:"1"`
	// share of refused users in window from which on the provider is in doubt: no user is signed
	// out, all other users are renewed; above 1: never.
	DeadShare float64 `key:"dead_share" default:"0.5" min:"0.01"`
	// longest wait before the next try while a provider is in doubt and no user at all is renewed;
	// the wait grows from open_min.
	Release time.Duration `key:"release" default:"1m" min:"1s"`
	// how long a refusal is held back at most: while no renewal has ever succeeded with this
	// client_id, and while most users are refused but other users are renewed.
	Hold time.Duration `key:"hold" default:"24h" min:"1s"`
	// how long a refusal is held back while no user at all was renewed since.
	Alone time.Duration `key:"alone" default:"2m" min:"1ms"`
	// failed calls in fail_window from which on the provider may be down.
	FailMin int `key:"fail_min" default:"10" min:"1"`
	// time in which failed calls are weighed against all calls.
	FailWindow time.Duration `key:"fail_window" default:"15s" min:"1s"`
	// share of failed calls in fail_window from which on the provider is down and its renewals
	// pause; above 1: never.
	FailShare float64 `key:"fail_share" default:"0.8" min:"0.01"`
	// first pause while the provider is down; each next pause is twice as long.
	OpenMin time.Duration `key:"open_min" default:"1s" min:"100ms"`
	// longest pause while the provider is down.
	OpenMax time.Duration `key:"open_max" default:"4s" min:"100ms"`
}

// Rules is g as package health takes it.
func (g Guard) Rules() health.Rules {
	return health.Rules{
		Window:     g.Window,
		DeadMin:    g.DeadMin,
		DeadShare:  g.DeadShare,
		Release:    g.Release,
		Hold:       g.Hold,
		Alone:      g.Alone,
		FailMin:    g.FailMin,
		FailWindow: g.FailWindow,
		FailShare:  g.FailShare,
		OpenMin:    g.OpenMin,
		OpenMax:    g.OpenMax,
	}
}

// policy is p as package grant takes it.
func (p Policy) policy() grant.Policy {
	return grant.Policy{
		Lifetime:       p.Lifetime,
		MaxLifetime:    p.MaxLifetime,
		Margin:         p.Margin,
		MarginShare:    p.MarginShare,
		JitterShare:    p.JitterShare,
		Floor:          p.Floor,
		ProfileEvery:   p.ProfileEvery,
		Tries:          p.Tries,
		RetryMin:       p.RetryMin,
		RetryMax:       p.RetryMax,
		RetryLater:     p.RetryLater,
		ConfirmMin:     p.ConfirmMin,
		ConfirmMax:     p.ConfirmMax,
		ConfirmUnknown: p.ConfirmUnknown,
		Shown:          grant.Shown(p.ShowProfile),
		Idle:           p.Idle,
		Keepalive:      p.Keepalive,
		SessionMax:     p.SessionMax,
		Windows:        p.windows(),
	}
}

// windows are the windows of the setting, which was checked before.
func (p Policy) windows() []grant.Window {
	all, err := grant.ParseWindows(p.Windows)
	if err != nil {
		return nil
	}
	return all
}

// check refuses a senseless value that grant.Policy would accept.
func (p Policy) check() error {
	for _, d := range []struct {
		key   string
		value time.Duration
		least time.Duration
	}{
		{"idle", p.Idle, 10 * time.Minute}, {"keepalive", p.Keepalive, time.Minute},
		{"session_max", p.SessionMax, time.Minute},
	} {
		if d.value != 0 && d.value < d.least {
			return fmt.Errorf("%s: %s: want %s or more, or 0", d.key,
				FormatDuration(d.value), FormatDuration(d.least))
		}
	}
	if _, err := grant.ParseWindows(p.Windows); err != nil {
		return fmt.Errorf("windows: %w", err)
	}
	return nil
}

// Rule is a rule of a provider: idp.Rule in the settings file.
type Rule struct {
	// endpoint of the answers, token or userinfo; empty: token.
	On string `key:"on" oneof:",token,userinfo"`
	// HTTP status of the answers; 0: any.
	Status int `key:"status" default:"0" min:"0" max:"599"`
	// exact error code of the answers; empty: answers without an error code.
	Code string `key:"code"`
	// a text in the body of the answers, in upper or lower case; empty: any.
	Body string `key:"body"`
	// only answers without a body.
	Empty bool `key:"empty" default:"false"`
	// what the answers are taken for (permanent signs the user out once confirmed, and needs a code
	// or a body; refused, of userinfo only: the access token is not accepted, so the token is
	// refreshed).
	Class string `key:"class" oneof:"ambiguous,throttled,config,permanent,unknown,refused"`
	// reason of user.reauth_required, with class permanent: revoked, expired, account_disabled,
	// account_deleted.
	Reason string `key:"reason"`
}

func (r Rule) rule() idp.Rule {
	return idp.Rule{
		UserInfo: r.On == "userinfo",
		Status:   r.Status,
		Code:     r.Code,
		Body:     r.Body,
		Empty:    r.Empty,
		Class:    grant.Class(r.Class),
		Reason:   r.Reason,
	}
}

// GrantPolicy is when and how p's grants are renewed, with the volatile members of its preset.
func (p Provider) GrantPolicy() grant.Policy {
	policy := p.Policy.policy()
	policy.Volatile = slices.Concat(idp.Presets()[p.Preset].Volatile, p.Volatile)
	return policy
}

// ClientConfig is p as package idp takes it, but for the certificates.
func (p Provider) ClientConfig() idp.Config {
	var rules []idp.Rule
	for _, r := range p.Rules {
		rules = append(rules, r.rule())
	}
	return idp.Config{
		ID:                p.ID,
		Preset:            p.Preset,
		BaseURL:           p.AuthURL,
		TokenURL:          p.TokenURL,
		UserInfoURL:       p.UserinfoURL,
		RevokeURL:         p.RevokeURL,
		ClientID:          p.ClientID,
		ClientSecret:      p.ClientSecret,
		ClientAuth:        idp.ClientAuth(p.ClientAuth),
		Timeout:           p.Timeout,
		AllowHTTPLoopback: p.AllowHTTP,
		MaxConns:          p.Concurrency,
		NextSecret:        p.ClientSecretNext,
		ClientKey:         p.ClientKey,
		ClientKeyID:       p.ClientKeyID,
		Scope:             p.Scope,
		Subject:           p.Subject,
		Params:            p.Params,
		Headers:           p.Headers,
		ProxyURL:          p.ProxyURL,
		Rules:             rules,
		Profile:           p.Profile,
		NoUserInfo:        p.Userinfo == "none",
		EndpointHosts:     strings.Fields(p.EndpointHosts),
	}
}
