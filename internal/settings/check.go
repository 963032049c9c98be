package settings

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/schema"
)

// misfit is a wrong setting, and the reason.
type misfit struct {
	setting string
	err     error
}

// check compares the settings with each other and with the form their text must have. All mistakes
// are listed.
func (c *Settings) check() []misfit {
	var found []misfit
	say := func(key string, err error) {
		if err != nil {
			found = append(found, misfit{key, err})
		}
	}
	say("nats_url", CheckNATSURL(c.NATSURL))
	say("nats_listen", c.checkListen())
	say("nats_accounts", c.checkAccounts())
	say("nats_context", alone(c.NATSContext, "nats_url", c.NATSURL))
	say("nats_user", both(c.NATSUser, "nats_password", c.NATSPassword.Reveal()))
	say("nats_token", alone(c.NATSToken.Reveal(), "nats_user", c.NATSUser))
	say("nats_cert", both(c.NATSCert, "nats_key", c.NATSKey))
	for key, path := range map[string]string{
		"nats_creds": c.NATSCreds,
		"nats_ca":    c.NATSCA,
		"nats_cert":  c.NATSCert,
		"nats_key":   c.NATSKey,
		"http_cert":  c.HTTPCert,
		"http_key":   c.HTTPKey,
	} {
		say(key, readable(path))
	}
	if _, err := nats.NkeyOptionFromSeed(c.NATSNKey); c.NATSNKey != "" && err != nil {
		say("nats_nkey", fmt.Errorf("%s holds no nkey seed", c.NATSNKey))
	}
	_, err := schema.NewSubjects(c.NATSPrefix)
	say("nats_prefix", err)
	if c.NATSReplicas%2 == 0 {
		say("nats_replicas",
			fmt.Errorf("%d: want 1 or 3: two copies survive no more than one", c.NATSReplicas))
	}
	if c.Embedded() && c.NATSReplicas > 1 {
		say("nats_replicas", errors.New("more than 1 needs a NATS cluster: set RENEWD_NATS_URL"))
	}
	say("outcome_bytes", checkBytes(c.OutcomeBytes))
	say("command_bytes", checkBytes(c.CommandBytes))
	say("database_url", CheckDatabaseURL(c.DatabaseURL.Reveal()))
	c.checkKeys(say)
	say("http_addr", checkAddr(c.HTTPAddr))
	say("http_cert", both(c.HTTPCert, "http_key", c.HTTPKey))
	c.checkLinks(say)
	say("http_token", guessable(c.HTTPToken))
	if c.NATSListen != "" && !Loopback(c.NATSListen) && c.NATSAccounts == "" {
		say("nats_password", guessable(c.NATSPassword))
		say("nats_token", guessable(c.NATSToken))
	}
	found = append(found, c.checkSenders()...)
	found = append(found, c.checkClients()...)
	found = append(found, c.checkSinks()...)
	found = append(found, c.checkSources()...)
	return append(found, c.checkProviders()...)
}

func (c *Settings) checkKeys(say func(key string, err error)) {
	say("keys_unwrap", c.KeysUnwrap.check())
	say("keys_wrap", c.KeysWrap.check())
	say("login_keys_unwrap", c.LoginKeysUnwrap.check())
	say("login_keys_wrap", c.LoginKeysWrap.check())
	if len(c.KeysWrap) > 0 && len(c.KeysUnwrap) == 0 {
		say("keys_wrap", errors.New("needs keys_unwrap, its inverse"))
	}
	if len(c.LoginKeysWrap) > 0 && len(c.LoginKeysUnwrap) == 0 {
		say("login_keys_wrap", errors.New("needs login_keys_unwrap, its inverse"))
	}
	if c.LoginKeysFile != "" && filepath.Clean(c.LoginKeysFile) == filepath.Clean(c.KeysPath()) {
		say("login_keys_file", errors.New("is keys_file: name another file, or leave it empty"))
	}
	if !c.TakeLogins && c.Alone() {
		say("take_logins",
			errors.New("false: no other worker can take them where the embedded "+
				"NATS server does not listen"))
	}
}

func (c Command) check() error {
	if len(c) > 0 && strings.TrimSpace(c[0]) == "" {
		return errors.New("want the name of a program first")
	}
	return nil
}

// checkClients requires valid clients, and providers that exist.
func (c *Settings) checkClients() (found []misfit) {
	for _, name := range slices.Sorted(maps.Keys(c.HTTPClients)) {
		path, one := "http_clients."+name, c.HTTPClients[name]
		if _, err := one.client(name); err != nil {
			found = append(found, misfit{path, err})
		}
		for _, id := range one.Providers {
			if _, known := c.Provider(id); !known {
				found = append(found, misfit{path + ".providers", fmt.Errorf(
					"%q is not the id of a provider in the settings", id)})
			}
		}
	}
	return found
}

// checkSenders requires names that fit into a subject, and providers that exist.
func (c *Settings) checkSenders() (found []misfit) {
	var known []string
	for _, p := range c.Providers {
		known = append(known, p.ID)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Senders)) {
		path := "senders." + name
		if err := schema.CheckSender(name); err != nil {
			found = append(found, misfit{path, err})
		}
		may := c.Senders[name]
		rights := map[string][]string{
			"login": may.Login, "ask": may.Ask, "logout": may.Logout, "suspend": may.Suspend,
			"read": may.Read,
		}
		for right, providers := range rights {
			for _, id := range providers {
				if right == "read" && id == senders.Everything {
					continue
				}
				if !slices.Contains(known, id) {
					found = append(found, misfit{path + "." + right, fmt.Errorf(
						"%q is not the id of a provider in the settings%s", id,
						DidYouMean(id, known))})
				}
			}
		}
		if may.Burst > 0 && may.Rate == 0 {
			found = append(found, misfit{path + ".burst", errors.New("needs rate")})
		}
	}
	return found
}

// Name is a setting as the operator writes it: the variable, or the key after its file and line.
// For a default in a provider of the file, it is the provider's line.
func (c *Settings) Name(key string) string {
	origin := c.origins[key]
	if provider, _, ok := strings.Cut(key, "."); ok && origin == "" {
		origin = c.origins[provider]
	}
	switch {
	case origin == "":
		return key
	case strings.HasPrefix(origin, "RENEWD_"):
		return origin
	default:
		return origin + ": " + key
	}
}

func (c *Settings) checkProviders() (found []misfit) {
	seen := map[string]bool{}
	for i, p := range c.Providers {
		path := fmt.Sprintf("providers[%d].", i)
		say := func(key string, err error) {
			if err != nil {
				found = append(found, misfit{path + key, err})
			}
		}
		// An error may begin with the name of its setting in the group.
		sayNamed := func(group string, err error) {
			if err == nil {
				return
			}
			key, rest, ok := strings.Cut(err.Error(), ": ")
			if !ok || strings.Contains(key, " ") {
				say(strings.TrimSuffix(group, "."), err)
				return
			}
			say(group+key, errors.New(rest))
		}
		say("id", schema.CheckProvider(p.ID))
		if seen[p.ID] {
			say("id", fmt.Errorf("%q: two providers have this id", p.ID))
		}
		seen[p.ID] = true
		if p.AuthURL == "" && idp.Presets()[p.Preset].BaseURL == "" &&
			(p.TokenURL == "" || p.UserinfoURL == "") {
			say("auth_url",
				errors.New("missing: the provider's address (in the environment: RENEWD_AUTH_URL)"))
		}
		if p.ClientID == "" {
			say("client_id",
				errors.New("missing: the OAuth client id (in the environment: RENEWD_CLIENT_ID)"))
		}
		for key, text := range map[string]string{
			"auth_url":     p.AuthURL,
			"token_url":    p.TokenURL,
			"userinfo_url": p.UserinfoURL,
			"revoke_url":   p.RevokeURL,
		} {
			say(key, checkProviderURL(text, p.AllowHTTP))
		}
		say("ca_file", readable(p.CAFile))
		sayNamed("policy.", cmp.Or(p.Policy.check(), p.Policy.policy().Validate()))
		sayNamed("guard.", p.Guard.Rules().Validate())
		// The client judges the rest: the preset, and how the client shows its secret.
		sayNamed("", p.ClientConfig().Validate())
	}
	return found
}

func alone(value, other, otherValue string) error {
	if value != "" && otherValue != "" {
		return fmt.Errorf("set either it or %s", other)
	}
	return nil
}

func both(value, other, otherValue string) error {
	if (value == "") != (otherValue == "") {
		return fmt.Errorf("set both it and %s, or neither", other)
	}
	return nil
}

func readable(path string) error {
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

func CheckNATSURL(text string) error {
	if text == "" {
		return nil
	}
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		u, err := url.Parse(part)
		if !strings.Contains(part, "://") {
			u, err = url.Parse("nats://" + part)
		}
		if err != nil || u.Host == "" {
			return errors.New("an address in it is no URL: want nats://host:4222, " +
				"several separated by commas")
		}
		switch u.Scheme {
		case "nats", "tls", "ws", "wss":
		default:
			return fmt.Errorf("%s://: want nats://, tls://, ws:// or wss://", u.Scheme)
		}
	}
	return nil
}

// guessable refuses a secret too short to guard a listener that anyone may try.
func guessable(secret secret.Value) error {
	if n := len(secret.Reveal()); n > 0 && n < 16 {
		return fmt.Errorf("%d bytes: want 16 or more, random; "+
			"for instance from: openssl rand -hex 24", n)
	}
	return nil
}

func (c *Settings) checkListen() error {
	if c.NATSListen == "" {
		return nil
	}
	if !c.Embedded() {
		return errors.New("is for the embedded NATS server: unset it or nats_url")
	}
	if err := checkAddr(c.NATSListen); err != nil {
		return err
	}
	if !Loopback(c.NATSListen) && c.NATSUser == "" && c.NATSToken.IsZero() && c.NATSAccounts == "" {
		return fmt.Errorf("%q is beyond loopback: set RENEWD_NATS_ACCOUNTS, "+
			"RENEWD_NATS_USER and RENEWD_NATS_PASSWORD, or RENEWD_NATS_TOKEN, "+
			"for the services to connect with", c.NATSListen)
	}
	return nil
}

func (c *Settings) checkAccounts() error {
	switch {
	case c.NATSAccounts == "":
		return nil
	case !c.Embedded():
		return errors.New("is for the embedded NATS server: unset it or nats_url")
	case !c.NATSToken.IsZero():
		return errors.New("set either it or nats_token: each user of an account has a password")
	}
	return readable(c.NATSAccounts)
}

func checkAddr(text string) error {
	_, port, err := net.SplitHostPort(text)
	if n, perr := strconv.Atoi(port); err != nil || perr != nil || n < 0 || n > 65535 {
		return fmt.Errorf("%q: want host:port", text)
	}
	return nil
}

// Loopback reports whether only this machine reaches a listener on addr.
func Loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// CheckDatabaseURL refuses a wrong database address without repeating it: pgx's own errors quote
// the address.
func CheckDatabaseURL(text string) error {
	if text == "" {
		return nil
	}
	if _, err := pgxpool.ParseConfig(text); err != nil {
		return errors.New("is no PostgreSQL address: want " +
			"postgres://user:password@host:5432/database?sslmode=verify-full, " +
			"with special characters of the password percent-encoded")
	}
	return nil
}

func checkProviderURL(text string, allowHTTP bool) error {
	if text == "" {
		return nil
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.User != nil:
		return errors.New("want an https:// address without user and password")
	case u.Scheme == "https":
		return nil
	case u.Scheme != "http":
		return fmt.Errorf("%s: want https://", cmp.Or(u.Scheme, "no scheme"))
	case !Loopback(net.JoinHostPort(u.Hostname(), "0")):
		return errors.New("plain http would show every token to the network: want https://")
	case !allowHTTP:
		return errors.New("plain http to loopback is for development: set allow_http_loopback " +
			"(RENEWD_ALLOW_HTTP_LOOPBACK) to true if you mean it")
	}
	return nil
}
