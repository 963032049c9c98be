package settings

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/renewd/renewd/internal/clients"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/schema"
)

// Settings is everything an operator can set. A setting is key in the settings file and RENEWD_KEY
// in the environment, which wins. A secret can also come from a file, named by key_file or
// RENEWD_KEY_FILE.
//
// Comments and tags of the fields are the reference. The comment is the setting's meaning, in the
// words of the README's table. The tags are key, default, the values allowed (oneof) or the range
// (min, max). show:"url" prints a secret that is an address, without its password. env:"-" is a
// list or a mapping, which only a file can hold.
//
// A command changes Settings only before other code gets them, so there is no lock.
type Settings struct {
	// NATS servers to use, separated by commas; empty, without nats_context: NATS runs inside this
	// process.
	NATSURL string `key:"nats_url"`
	// host:port on which the embedded NATS server listens for other services; empty: the server
	// does not listen. Beyond loopback set nats_accounts, or nats_user and nats_password, or
	// nats_token; the password or token has 16 bytes at least.
	NATSListen string `key:"nats_listen"`
	// for the embedded NATS server: file with an account for renewd and an account for each
	// service, as renewd nats config prints; other content does not count.
	// RENEWD_NATS_NAME_PASSWORD in the environment is the password of the user NAME in the file.
	// Commands connect with nats_user and nats_password then. Empty: all clients show nats_user and
	// nats_password, or nats_token.
	NATSAccounts string `key:"nats_accounts"`
	// context of the nats CLI to connect with: its name, or the path of its file.
	NATSContext string `key:"nats_context"`
	// NATS credentials file (user JWT and seed).
	NATSCreds string `key:"nats_creds"`
	// file with the seed of a NATS nkey.
	NATSNKey string `key:"nats_nkey"`
	// NATS user.
	NATSUser string `key:"nats_user"`
	// NATS password.
	NATSPassword secret.Value `key:"nats_password"`
	// NATS token.
	NATSToken secret.Value `key:"nats_token"`
	// file with the CA certificates to check the NATS servers' certificates against; empty: the
	// system's.
	NATSCA string `key:"nats_ca"`
	// file with the TLS certificate to show to NATS; where NATS is embedded, the certificate of its
	// listener.
	NATSCert string `key:"nats_cert"`
	// file with the private key of nats_cert.
	NATSKey string `key:"nats_key"`
	// prefix of the inboxes for answers; empty: _INBOX.
	NATSInbox string `key:"nats_inbox_prefix"`
	// for commands that publish or subscribe in another NATS account than renewd's: the name under
	// which the account imports JetStream's API, $JS.renewd.API in the file of renewd nats config;
	// empty: $JS.API.
	NATSAPI string `key:"nats_api_prefix"`
	// put before the name of every stream and subject, to keep installations in the same NATS
	// account apart.
	NATSPrefix string `key:"nats_prefix"`
	// copies of every stream; 3 needs a cluster of three servers.
	NATSReplicas int `key:"nats_replicas" default:"1" min:"1" max:"3"`

	// create and update the streams at start on external NATS servers too.
	StreamsApply bool `key:"streams_apply" default:"false"`
	// how long outcomes are kept for replay.
	OutcomeAge time.Duration `key:"outcome_age" default:"400d" min:"1h"`
	// how long user.synced, by far the most frequent outcome, and token.read are kept; never longer
	// than outcome_age.
	SyncedAge time.Duration `key:"synced_age" default:"7d" min:"1m"`
	// how long message.rejected is kept, and user.refresh_failed of users without a record: a
	// publisher can cause any number of such outcomes; never longer than outcome_age.
	RejectedAge time.Duration `key:"rejected_age" default:"1d" min:"1h"`

	// room for outcomes on disk, for each replica, or none for no limit; once full, the oldest
	// outcomes are deleted, with an alarm from three quarters on. Existing streams get a new limit
	// by renewd streams apply.
	OutcomeBytes ByteSize `key:"outcome_bytes" default:"4GiB"`
	// room on disk for logins, and as much for requests, that no worker has looked at yet, or none
	// for no limit; once full, publishers get an error.
	CommandBytes ByteSize `key:"command_bytes" default:"512MiB"`

	// folder of the embedded NATS server, and of keys_file.
	DataDir string `key:"data_dir" default:"renewd-data"`
	// for the embedded NATS server: encrypt the files of a new folder with a key sealed with the
	// keyring. A folder with files stays unchanged until renewd nats encrypt. An encrypted folder
	// always needs the keyring, whatever is set here.
	NATSEncrypt bool `key:"nats_encrypt" default:"false"`
	// PostgreSQL for the grants; empty: grants are stored in NATS KV.
	DatabaseURL secret.Value `key:"database_url" show:"url"`
	// make and change renewd's tables at start; false: only check the tables, for a role without
	// the right to change tables, and leave changes to renewd migrate.
	DatabaseMigrate bool `key:"database_migrate" default:"true"`
	// keep profiles encrypted in PostgreSQL and NATS KV, as tokens are; after a change of this
	// setting each profile is rewritten with its user's next renewal. policy.show_profile sets how
	// much user.synced shows.
	SealProfiles bool `key:"seal_profiles" default:"false"`
	// read only bound records, which renewd alone can have changed. Set this after an upgrade, once
	// renewd doctor names no unbound record; see docs/security.md.
	RequireBound bool `key:"require_bound_records" default:"false"`
	// file with the keyring, or with its store keys alone where login_keys_file is set; empty:
	// keys.json in data_dir. Made at the first start if NATS is embedded, else by renewd keys new.
	KeysFile string `key:"keys_file"`
	// file with the login keys, which open the tokens that publishers seal, apart from the store
	// keys; empty: the login keys are in keys_file too. renewd keys split makes both files from
	// keys_file.
	LoginKeysFile string `key:"login_keys_file"`
	// take logins and logouts; false: leave logins and logouts to other workers, and use no login
	// keys. keys_file then holds store keys alone.
	TakeLogins bool `key:"take_logins" default:"true"`

	// command to decrypt keys_file, with the file's content on standard input and the keyring on
	// standard output: a list of the program and its arguments, in the environment a JSON list or
	// words between blanks; no shell. Empty: keys_file is not encrypted.
	KeysUnwrap Command `key:"keys_unwrap"`
	// inverse of keys_unwrap, for renewd keys new, rotate, promote, retire, split and join.
	KeysWrap Command `key:"keys_wrap"`
	// command to decrypt login_keys_file, as keys_unwrap for keys_file; empty: keys_unwrap and
	// keys_wrap are for both files.
	LoginKeysUnwrap Command `key:"login_keys_unwrap"`
	// inverse of login_keys_unwrap.
	LoginKeysWrap Command `key:"login_keys_wrap"`

	// host:port of /livez, /readyz, /metrics, /.well-known/jwks.json, /.well-known/jwks.jwt,
	// /schemas/ and, for services, /v1/.
	HTTPAddr string `key:"http_addr" default:"127.0.0.1:7460"`
	// file with the TLS certificate of http_addr, read again after each change; empty: plain HTTP.
	HTTPCert string `key:"http_cert"`
	// file with the private key of http_cert.
	HTTPKey string `key:"http_key"`
	// bearer token for all but /livez, /readyz and /v1/, 16 bytes at least. Empty: the guarded
	// paths are served on loopback only.
	HTTPToken secret.Value `key:"http_token"`

	// let passwords and tokens of NATS, PostgreSQL and HTTP cross a network without TLS: for a
	// network that is encrypted itself, or lies within one machine.
	AllowPlaintext bool `key:"allow_plaintext" default:"false"`

	// longest time from the sealing of a login's tokens to the login's publication; longer where
	// publishers send logins from an outbox.
	LoginMaxAge time.Duration `key:"login_max_age" default:"5m" min:"1m" max:"168h"`

	// which services may publish commands, read outcomes and read access tokens, for which
	// providers, each service by its name in the import of its NATS account (renewd nats config): a
	// mapping of names to login, ask, logout, suspend, read, rate and burst; empty: every
	// publisher. Commands of other services, and commands without a sender, are rejected.
	Senders map[string]Sender `key:"senders" env:"-"`

	// the services that may use the HTTP interface: a mapping of names to digest, may and
	// providers, as renewd clients add --settings prints; no other service is let in then, whatever
	// the bucket of clients in NATS says. Empty: the clients in the bucket.
	HTTPClients map[string]HTTPClient `key:"http_clients" env:"-"`

	// publish token.read when a client or sender gets a version of a user's access token for the
	// first time: for each reader about as many events as user.synced, and kept as long
	// (synced_age). false: reads are counted in metrics only.
	TokenAudit bool `key:"token_audit" default:"false"`

	// places outside renewd to take outcomes to: a mapping of names (1-32 of a-z, 0-9 and -) to
	// settings; see docs/sinks.md.
	Sinks map[string]Sink `key:"sinks" env:"-"`

	// places outside renewd to take commands from: a mapping of names (1-32 of a-z, 0-9 and -) to
	// settings; see docs/sources.md.
	Sources map[string]Source `key:"sources" env:"-"`

	// logins, and requests, handled at the same time.
	Workers int `key:"workers" default:"32" min:"1" max:"1024"`
	// how long to wait for NATS and the database at start.
	StartTimeout time.Duration `key:"start_timeout" default:"60s" min:"0s"`
	// how long work under way may take to end at a stop.
	DrainTimeout time.Duration `key:"drain_timeout" default:"25s" min:"1s"`
	// lowest level to log.
	LogLevel string `key:"log_level" default:"info" oneof:"debug,info,warn,error"`
	// format of the log, on standard error.
	LogFormat string `key:"log_format" default:"text" oneof:"text,json"`
	// form of user ids in logs and traces; hashed: a keyed hash, which renewd user hash prints for
	// an id.
	UserIDs string `key:"user_ids" default:"plain" oneof:"plain,hashed"`

	// Providers come from the file's list. The environment can describe one provider, or replace
	// settings of one in the list.
	Providers []Provider

	file string // the settings file; empty without a file
	// origins are where values are from, by path ("nats_url", "providers[0].client_id"). A default
	// has no entry.
	origins map[string]string
}

// Command is a program and its arguments.
type Command []string

// Sender is what one sender may do: senders.Rights in the settings file.
type Sender struct {
	// ids of the providers whose users this sender may sign in (user.login): a list.
	Login []string `key:"login" env:"-"`
	// ids of the providers whose users this sender may have renewed (user.refresh_due): a list.
	Ask []string `key:"ask" env:"-"`
	// ids of the providers whose users this sender may sign out (user.logout): a list.
	Logout []string `key:"logout" env:"-"`
	// ids of the providers whose users this sender may suspend and resume (user.suspend,
	// user.resume): a list.
	Suspend []string `key:"suspend" env:"-"`
	// ids of the providers whose outcomes this sender may read from its durable and live, and whose
	// users' access tokens this sender may read over NATS (token.get): a list; "*": all providers.
	// While no sender has such a list, each sender may read all outcomes; once one has, each may
	// read only the outcomes of its listed providers. Access tokens may be read only of listed
	// providers.
	Read []string `key:"read" env:"-"`
	// logins a second, and as many of each other command, that all workers together take from this
	// sender; 0: no limit. Commands beyond the limit are rejected (sender_rate).
	Rate float64 `key:"rate" default:"0" min:"0" max:"100000"`
	// commands of each type let in at once before rate counts; 0: ten seconds' worth of rate.
	Burst int `key:"burst" default:"0" min:"0" max:"10000000"`
}

// HTTPClient is a service in the settings that may use the HTTP interface.
type HTTPClient struct {
	// SHA-256 of the client's secret, in base64url without padding.
	Digest string `key:"digest"`
	// what the client may do: a list of login, logout, refresh, read, token, admin.
	May []string `key:"may" env:"-"`
	// ids of the providers whose users the client may act for; empty: all.
	Providers []string `key:"providers" env:"-"`
}

func (c HTTPClient) client(name string) (clients.Client, error) {
	var may []clients.Right
	for _, right := range c.May {
		may = append(may, clients.Right(right))
	}
	return clients.Standing(name, may, c.Providers, c.Digest)
}

// Clients are the HTTP clients in the settings, sorted by name; nil: no clients.
func (s *Settings) Clients() (all []clients.Client, err error) {
	for _, name := range slices.Sorted(maps.Keys(s.HTTPClients)) {
		c, err := s.HTTPClients[name].client(name)
		if err != nil {
			return nil, fmt.Errorf("http_clients.%s: %w", name, err)
		}
		all = append(all, c)
	}
	return all, nil
}

// SenderRights are the rights of the senders as package senders takes them.
func (s *Settings) SenderRights() senders.List {
	list := senders.List{}
	for name, may := range s.Senders {
		list[name] = senders.Rights{
			Login: may.Login, Ask: may.Ask, Logout: may.Logout, Suspend: may.Suspend,
			Read: may.Read, Rate: may.Rate, Burst: may.Burst,
		}
	}
	return list
}

// Embedded reports whether NATS runs inside this process.
func (s *Settings) Embedded() bool { return s.NATSURL == "" && s.NATSContext == "" }

// Alone reports whether NATS runs inside this process, and no other process reaches NATS.
func (s *Settings) Alone() bool { return s.Embedded() && s.NATSListen == "" }

// KeysPath is the path of the keyring, or of its store keys where LoginKeysFile has the rest.
func (s *Settings) KeysPath() string {
	if s.KeysFile != "" {
		return s.KeysFile
	}
	return filepath.Join(s.DataDir, "keys.json")
}

// Provider returns the provider with this id.
func (s *Settings) Provider(id string) (Provider, bool) {
	for _, p := range s.Providers {
		if p.ID == id {
			return p, true
		}
	}
	return Provider{}, false
}

// Subjects returns the subjects under the settings' prefix.
func (c *Settings) Subjects() schema.Subjects {
	s, err := schema.NewSubjects(c.NATSPrefix)
	if err != nil {
		panic("settings: nats_prefix was not checked: " + err.Error())
	}
	return s
}

// Reachable reports whether commands reach a NATS server: the settings' server, or the address
// server; empty: no address is given.
func (c *Settings) Reachable(server string) bool {
	return !c.Embedded() || c.NATSListen != "" || server != ""
}

// KnownProvider is the provider's id as given, or the only provider's id.
func (c *Settings) KnownProvider(id string) (string, error) {
	if id == "" && len(c.Providers) > 1 {
		return "", fmt.Errorf("which provider? There is %v", c.ProviderIDs())
	}
	id = cmp.Or(id, c.DefaultProvider())
	if _, ok := c.Provider(id); !ok {
		return "", fmt.Errorf("provider %q is not in the settings: there is %v",
			id, c.ProviderIDs())
	}
	return id, nil
}

// ProviderIDs are the ids of all providers, in the order of the settings.
func (c *Settings) ProviderIDs() (ids []string) {
	for _, p := range c.Providers {
		ids = append(ids, p.ID)
	}
	return ids
}

// DefaultProvider is the provider of a command without --provider.
func (c *Settings) DefaultProvider() string {
	if len(c.Providers) > 0 {
		return c.Providers[0].ID
	}
	return "propelauth"
}
