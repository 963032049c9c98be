package main

import (
	"path/filepath"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/guard"
	"github.com/renewd/renewd/internal/senders"
)

// settings is all that can be set. A setting is key in the settings file and RENEWD_KEY in the
// environment, which wins; one that holds a secret can also come from a file, named by key_file or
// RENEWD_KEY_FILE.
//
// The tags are the reference: key, its default, what it means, the values it may have (oneof) or
// the range (min, max). show:"url" prints a secret as the address it is, without its password.
// env:"-" is a list or a mapping, which only a file can hold.
type settings struct {
	NATSURL      string       `key:"nats_url" doc:"NATS servers to use, separated by commas; empty runs one inside this process"`
	NATSListen   string       `key:"nats_listen" doc:"host:port on which the embedded NATS server listens for other services; empty: nowhere. Beyond loopback it needs nats_accounts, nats_user and nats_password, or nats_token, of 16 bytes at least"`
	NATSAccounts string       `key:"nats_accounts" doc:"for the embedded NATS server: file with an account for renewd and one for each service, as renewd nats config prints it; what else is in it does not count. RENEWD_NATS_NAME_PASSWORD in the environment is the password of the user NAME there; nats_user and nats_password are then what the commands connect with. Empty: nats_user, nats_password and nats_token are what everybody shows"`
	NATSContext  string       `key:"nats_context" doc:"context of the nats CLI to connect with: its name, or the path of its file"`
	NATSCreds    string       `key:"nats_creds" doc:"NATS credentials file (user JWT and seed)"`
	NATSNKey     string       `key:"nats_nkey" doc:"file with the seed of a NATS nkey"`
	NATSUser     string       `key:"nats_user" doc:"NATS user"`
	NATSPassword grant.Secret `key:"nats_password" doc:"NATS password"`
	NATSToken    grant.Secret `key:"nats_token" doc:"NATS token"`
	NATSCA       string       `key:"nats_ca" doc:"file with the CA certificates that the NATS servers' certificates are checked against; empty: the system's"`
	NATSCert     string       `key:"nats_cert" doc:"file with the TLS certificate to show to NATS; where NATS is embedded, that its listener shows"`
	NATSKey      string       `key:"nats_key" doc:"file with the private key of nats_cert"`
	NATSInbox    string       `key:"nats_inbox_prefix" doc:"prefix of the inboxes that answers come to; empty: _INBOX"`
	NATSAPI      string       `key:"nats_api_prefix" doc:"for commands that publish or subscribe from a NATS account of their own: the name under which JetStream's API is imported there, $JS.renewd.API as renewd nats config has it; empty: $JS.API"`
	NATSPrefix   string       `key:"nats_prefix" doc:"put before the name of every stream and subject, to keep installations apart on one NATS account"`
	NATSReplicas int          `key:"nats_replicas" default:"1" min:"1" max:"3" doc:"copies of every stream; 3 needs a cluster of three servers"`

	StreamsApply bool          `key:"streams_apply" default:"false" doc:"create and update the streams at start also on NATS servers that are not embedded"`
	OutcomeAge   time.Duration `key:"outcome_age" default:"400d" min:"1h" doc:"how long outcomes are kept for replay"`
	SyncedAge    time.Duration `key:"synced_age" default:"7d" min:"1m" doc:"how long user.synced is kept, the most frequent outcome by far; never longer than outcome_age"`
	RejectedAge  time.Duration `key:"rejected_age" default:"1d" min:"1h" doc:"how long message.rejected is kept, and user.refresh_failed of users of whom nothing is stored: whoever may publish can make as many as they like; never longer than outcome_age"`

	OutcomeBytes byteSize `key:"outcome_bytes" default:"4GiB" doc:"room for outcomes on disk, for each replica, or none for no limit; once it is full the oldest go, with an alarm from three quarters on. Streams that are there get it by: renewd streams apply"`
	CommandBytes byteSize `key:"command_bytes" default:"512MiB" doc:"room on disk for logins, and as much for requests, that no worker has looked at yet, or none for no limit; once it is full their publishers get an error"`

	DataDir         string       `key:"data_dir" default:"renewd-data" doc:"folder of the embedded NATS server, and of keys_file"`
	DatabaseURL     grant.Secret `key:"database_url" show:"url" doc:"PostgreSQL that stores the grants; empty: they are stored in NATS KV"`
	DatabaseMigrate bool         `key:"database_migrate" default:"true" doc:"make and change renewd's tables at start; false: only check them, for a role that may not, and leave the rest to renewd migrate"`
	SealProfiles    bool         `key:"seal_profiles" default:"false" doc:"keep profiles encrypted in PostgreSQL and NATS KV, as tokens are; what is stored otherwise is written so with each user's next renewal. What user.synced shows is policy.show_profile"`
	KeysFile        string       `key:"keys_file" doc:"the keyring; empty: keys.json in data_dir. Made at the first start if NATS is embedded, else by: renewd keys new"`

	KeysUnwrap command `key:"keys_unwrap" doc:"command that decrypts keys_file, its content on standard input, the keyring on standard output: a list of the program and its arguments, in the environment a JSON list or words between blanks; no shell. Empty: keys_file is not encrypted"`
	KeysWrap   command `key:"keys_wrap" doc:"its inverse, for renewd keys new, rotate, promote and retire"`

	HTTPAddr  string       `key:"http_addr" default:"127.0.0.1:7460" doc:"host:port of /livez, /readyz, /metrics, /.well-known/jwks.json and /schemas/"`
	HTTPCert  string       `key:"http_cert" doc:"file with the TLS certificate of http_addr, read again when it changes; empty: plain HTTP"`
	HTTPKey   string       `key:"http_key" doc:"file with the private key of http_cert"`
	HTTPToken grant.Secret `key:"http_token" doc:"bearer token for all but /livez and /readyz, 16 bytes at least. Without one they are served on loopback only"`

	AllowPlaintext bool `key:"allow_plaintext" default:"false" doc:"let passwords and tokens of NATS, PostgreSQL and HTTP cross a network without TLS: for one that is encrypted itself, or is one machine's"`

	LoginMaxAge time.Duration `key:"login_max_age" default:"5m" min:"1m" max:"168h" doc:"how long before it was published a login's tokens may have been sealed; longer where publishers send logins from an outbox"`

	Senders map[string]senderSettings `key:"senders" env:"-" doc:"which services may publish commands, for which providers, by the name that their NATS account's import has (renewd nats config): a mapping of names to login and ask; empty: whoever may publish. Commands of others, and commands without a sender, are rejected"`

	Workers      int           `key:"workers" default:"32" min:"1" max:"1024" doc:"logins, and requests, handled at the same time"`
	StartTimeout time.Duration `key:"start_timeout" default:"60s" min:"0s" doc:"how long NATS and the database are waited for at start"`
	DrainTimeout time.Duration `key:"drain_timeout" default:"25s" min:"1s" doc:"how long work in hand may take to end at a stop"`
	LogLevel     string        `key:"log_level" default:"info" oneof:"debug,info,warn,error" doc:"what is logged"`
	LogFormat    string        `key:"log_format" default:"text" oneof:"text,json" doc:"how it is logged, on standard error"`
	UserIDs      string        `key:"user_ids" default:"plain" oneof:"plain,hashed" doc:"how user ids stand in logs and traces; hashed: a keyed hash in their place, which renewd user hash prints for an id"`

	// Providers come from the file's list. One of them can be described, or have settings replaced,
	// by the environment.
	Providers []providerSettings
}

// senderSettings is what one sender may do: senders.Rights in the settings file.
type senderSettings struct {
	Login []string `key:"login" env:"-" doc:"ids of the providers whose users this sender may sign in (user.login): a list"`
	Ask   []string `key:"ask" env:"-" doc:"ids of the providers whose users it may have renewed (user.refresh_due): a list"`
}

// providerSettings is one provider: an entry of providers in the settings file, or the env names
// for the one that the environment describes.
type providerSettings struct {
	ID           string        `key:"id" env:"RENEWD_PROVIDER_ID" default:"propelauth" doc:"the provider's name in subjects and stored records: a-z, 0-9 and -; never change it"`
	Preset       string        `key:"preset" env:"RENEWD_PROVIDER_PRESET" default:"propelauth" doc:"which provider this is: propelauth, auth0, authelia, dex, github, gitlab, google, hydra, keycloak, slack, twitch, zitadel, or oidc for any other with a discovery document; docs/providers has a page on each"`
	AuthURL      string        `key:"auth_url" env:"RENEWD_AUTH_URL" doc:"the provider's address: PropelAuth's auth URL, or the OIDC issuer"`
	ClientID     string        `key:"client_id" env:"RENEWD_CLIENT_ID" doc:"OAuth client id: the one that the users sign in with"`
	ClientSecret grant.Secret  `key:"client_secret" env:"RENEWD_CLIENT_SECRET" doc:"OAuth client secret; empty for a public client"`
	ClientKey    grant.Secret  `key:"client_key" env:"RENEWD_CLIENT_KEY" doc:"private key that the client signs with in place of a secret (private_key_jwt, RFC 7523): PEM or a JSON Web Key"`
	ClientKeyID  string        `key:"client_key_id" env:"RENEWD_CLIENT_KEY_ID" doc:"the key's id at the provider; empty: the JSON Web Key's own, else its thumbprint (RFC 7638)"`
	ClientAuth   string        `key:"client_auth" env:"RENEWD_CLIENT_AUTH" oneof:",basic,post,none,private_key_jwt" doc:"how the client names itself: basic or post with its secret, private_key_jwt with its key, or none; empty: private_key_jwt where there is a client_key, else as the provider offers, basic first (the preset may want post first), and once the other way where it answers invalid_client"`
	TokenURL     string        `key:"token_url" env:"RENEWD_TOKEN_URL" doc:"token endpoint; empty: the preset's, or the discovered one"`
	RevokeURL    string        `key:"revoke_url" env:"RENEWD_REVOKE_URL" doc:"revocation endpoint (RFC 7009); empty: the preset's, or the discovered one"`
	UserinfoURL  string        `key:"userinfo_url" env:"RENEWD_USERINFO_URL" doc:"userinfo endpoint; empty: the preset's, or the discovered one"`
	CAFile       string        `key:"ca_file" env:"RENEWD_PROVIDER_CA_FILE" doc:"file with the CA certificates the provider's certificate is checked against; empty: the system's"`
	AllowHTTP    bool          `key:"allow_http_loopback" env:"RENEWD_ALLOW_HTTP_LOOPBACK" default:"false" doc:"allow plain HTTP to a provider on loopback, for development"`
	Timeout      time.Duration `key:"timeout" env:"RENEWD_PROVIDER_TIMEOUT" default:"20s" min:"1s" max:"2m" doc:"of one call; keep it longer than the provider's own, since an answer that is not read may cost the user a login"`
	Concurrency  int           `key:"concurrency" env:"RENEWD_PROVIDER_CONCURRENCY" default:"64" min:"1" max:"10000" doc:"renewals at the same time, over all processes"`
	Rate         float64       `key:"rate" env:"RENEWD_PROVIDER_RATE" default:"0" min:"0" doc:"calls a second over all workers, each call counted: refreshes and userinfo; 0: no limit"`

	ClientSecretNext grant.Secret            `key:"client_secret_next" env:"RENEWD_CLIENT_SECRET_NEXT" doc:"a second secret, tried where the provider answers invalid_client to the first, and the other way round: set both while it changes"`
	Scope            string                  `key:"scope" env:"RENEWD_PROVIDER_SCOPE" doc:"scopes to ask for with each refresh, separated by spaces; empty: none, and the grant keeps what it has"`
	Subject          string                  `key:"subject" env:"RENEWD_PROVIDER_SUBJECT" doc:"member of the profile that holds the user's id; empty: the preset's, or sub"`
	Params           map[string][]string     `key:"params" env:"-" doc:"further parameters of each refresh, such as audience or resource: a mapping of names to values or lists of them"`
	Headers          map[string]grant.Secret `key:"headers" env:"-" doc:"further headers of each call: a mapping of names to values; under NAME_file a file with the value"`
	ProxyURL         grant.Secret            `key:"proxy_url" env:"RENEWD_PROVIDER_PROXY_URL" show:"url" doc:"HTTP proxy to reach the provider through: http://user:password@host:port; empty: none, whatever HTTPS_PROXY says"`
	Rules            []ruleSettings          `key:"rules" env:"-" doc:"what answers to a refresh mean at this provider, where the built-in table does not know it: a list; the first that fits counts"`

	Userinfo string            `key:"userinfo" env:"RENEWD_PROVIDER_USERINFO" oneof:",none" doc:"none where the provider has no userinfo endpoint: the profile is taken from the ID token, checked against the provider's keys and, by its at_hash, the access token; logins bring theirs"`
	Profile  map[string]string `key:"profile" env:"-" doc:"where members of the profile are in the userinfo, if not at their usual place: a mapping such as {roles: /realm_access/roles} to JSON pointers (RFC 6901), for email, email_verified, name, first_name, last_name, username, picture, enabled, locked, mfa_enabled, has_password, groups, roles, locale, zoneinfo"`
	Volatile []string          `key:"volatile" env:"-" doc:"members of the userinfo that move by themselves and are no change of the user, beside the claims of tokens and what the preset knows: a list of names"`

	RevokeReplaced bool `key:"revoke_replaced" default:"false" doc:"revoke the refresh token that a newer login replaces; not at a provider that ends other sessions of the user by it"`

	Policy policySettings
	Guard  guardSettings
}

// policySettings is when and how one provider's grants are renewed: grant.Policy in the settings
// file, under policy.
type policySettings struct {
	Lifetime     time.Duration `key:"lifetime" default:"30m" min:"1s" doc:"of an access token whose provider does not say"`
	MaxLifetime  time.Duration `key:"max_lifetime" default:"24h" min:"1m" doc:"longest life of an access token that a provider or a publisher is believed"`
	Margin       time.Duration `key:"margin" default:"5m" min:"1ms" doc:"how long before its expiry a token is renewed"`
	MarginShare  float64       `key:"margin_share" default:"0.2" min:"0.001" max:"0.9" doc:"the margin's largest share of the lifetime"`
	JitterShare  float64       `key:"jitter_share" default:"0.1" min:"0.001" max:"0.5" doc:"share of the lifetime that renewals are spread over, before the margin"`
	Floor        time.Duration `key:"floor" default:"2s" min:"1ms" doc:"least time between two renewals of one user"`
	ProfileEvery time.Duration `key:"profile_every" default:"0s" min:"0s" doc:"how often profiles are synced between renewals; 0: with each renewal only"`
	Tries        int           `key:"tries" default:"5" min:"1" max:"100" doc:"failures of one user's own before user.refresh_failed"`
	RetryMin     time.Duration `key:"retry_min" default:"2s" min:"1ms" doc:"least wait before another try; it doubles with each"`
	RetryMax     time.Duration `key:"retry_max" default:"5m" min:"1ms" doc:"longest wait before another try"`
	RetryLater   time.Duration `key:"retry_later" default:"1h" min:"1ms" doc:"wait after user.refresh_failed"`
	ConfirmMin   time.Duration `key:"confirm_min" default:"30s" min:"1ms" doc:"least wait before a refused refresh token is presented once more, to be sure; a third of it later it is presented for the last time"`
	ConfirmMax   time.Duration `key:"confirm_max" default:"60s" min:"1ms" doc:"longest wait before that"`

	ConfirmUnknown time.Duration `key:"confirm_unknown" default:"1h" min:"1s" doc:"least wait between two refusals in words that renewd does not know; three of them end a session, while others are renewed"`

	ShowProfile string `key:"show_profile" default:"mapped" oneof:"none,mapped,raw" doc:"how much of a profile user.synced shows to everybody who may subscribe: none, the members that renewd maps, or raw, the provider's own JSON, too"`
}

// guardSettings is when a provider is not believed, and when it is left alone: guard.Rules in the
// settings file, under guard.
type guardSettings struct {
	Window     time.Duration `key:"window" default:"10m" min:"1s" max:"1h" doc:"in which refused users are weighed against renewed ones"`
	DeadMin    int           `key:"dead_min" default:"10" min:"1" doc:"refused users in it from which on the provider may be in doubt"`
	DeadShare  float64       `key:"dead_share" default:"0.5" min:"0.01" doc:"share of refused users in it that puts the provider in doubt: nobody is signed out, everybody else is renewed; above 1: never"`
	Release    time.Duration `key:"release" default:"1m" min:"1s" doc:"longest wait before the next try while a provider is in doubt and nobody at all is renewed; it grows from open_min"`
	Hold       time.Duration `key:"hold" default:"24h" min:"1s" doc:"how long a refusal is held back at most: while no renewal has ever succeeded with this client_id, and while most users are refused but others are renewed"`
	Alone      time.Duration `key:"alone" default:"2m" min:"1ms" doc:"how long a refusal is held back while nobody at all was renewed since"`
	FailMin    int           `key:"fail_min" default:"10" min:"1" doc:"failed calls in fail_window from which on the provider may be down"`
	FailWindow time.Duration `key:"fail_window" default:"15s" min:"1s" doc:"in which failed calls are weighed against all"`
	FailShare  float64       `key:"fail_share" default:"0.8" min:"0.01" doc:"share of failed calls in it from which on the provider is down and its renewals pause; above 1: never"`
	OpenMin    time.Duration `key:"open_min" default:"1s" min:"100ms" doc:"first such pause; it doubles while the provider stays down"`
	OpenMax    time.Duration `key:"open_max" default:"4s" min:"100ms" doc:"longest such pause"`
}

// rules is g as package guard takes it.
func (g guardSettings) rules() guard.Rules {
	return guard.Rules{
		Window: g.Window, DeadMin: g.DeadMin, DeadShare: g.DeadShare, Release: g.Release, Hold: g.Hold, Alone: g.Alone, FailMin: g.FailMin,
		FailWindow: g.FailWindow, FailShare: g.FailShare, OpenMin: g.OpenMin, OpenMax: g.OpenMax,
	}
}

// policy is p as package grant takes it.
func (p policySettings) policy() grant.Policy {
	return grant.Policy{
		Lifetime: p.Lifetime, MaxLifetime: p.MaxLifetime, Margin: p.Margin, MarginShare: p.MarginShare, JitterShare: p.JitterShare, Floor: p.Floor,
		ProfileEvery: p.ProfileEvery, Tries: p.Tries, RetryMin: p.RetryMin, RetryMax: p.RetryMax, RetryLater: p.RetryLater,
		ConfirmMin: p.ConfirmMin, ConfirmMax: p.ConfirmMax, ConfirmUnknown: p.ConfirmUnknown, Shown: grant.Shown(p.ShowProfile),
	}
}

// senders are the rights of the senders as package senders takes them.
func (s *settings) senders() senders.List {
	list := senders.List{}
	for name, may := range s.Senders {
		list[name] = senders.Rights{Login: may.Login, Ask: may.Ask}
	}
	return list
}

// embedded reports whether NATS runs inside this process.
func (s *settings) embedded() bool { return s.NATSURL == "" && s.NATSContext == "" }

// alone reports whether NATS runs inside this process and is reached by nothing else.
func (s *settings) alone() bool { return s.embedded() && s.NATSListen == "" }

// keysFile is where the keyring is.
func (s *settings) keysFile() string {
	if s.KeysFile != "" {
		return s.KeysFile
	}
	return filepath.Join(s.DataDir, "keys.json")
}

// provider returns the provider with this id.
func (s *settings) provider(id string) (providerSettings, bool) {
	for _, p := range s.Providers {
		if p.ID == id {
			return p, true
		}
	}
	return providerSettings{}, false
}
