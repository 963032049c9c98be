package hook

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/renewd/renewd/internal/secret"
)

// Kind is the kind of a source's messages.
type Kind string

// The kinds.
const (
	// PropelAuth: webhooks of PropelAuth, which Svix sends.
	PropelAuth Kind = "propelauth"
	// Webhooks: any Standard Webhooks, whose types are mapped to actions by the settings.
	Webhooks Kind = "standard-webhooks"
	// Logout: OpenID Connect Back-Channel Logout 1.0.
	Logout Kind = "backchannel-logout"
	// SET: security event tokens of CAEP and RISC, pushed as RFC 8935 has it.
	SET Kind = "set"
)

// Kinds are all kinds.
func Kinds() []Kind { return []Kind{PropelAuth, Webhooks, Logout, SET} }

// Action is what a message asks for.
type Action string

// The actions, the weakest first.
const (
	// Ignore: nothing is done.
	Ignore Action = "ignore"
	// Sync: the profile is read again (user.refresh_due).
	Sync Action = "sync"
	// Ask: the tokens are renewed, so that the provider tells whether the session still lives
	// (user.refresh_due, want tokens).
	Ask Action = "ask"
	// SignOut: the session ends here (user.logout).
	SignOut Action = "sign_out"
	// Forget: everything stored of the user is erased.
	Forget Action = "forget"
)

// Actions are all actions, the weakest first.
func Actions() []Action { return []Action{Ignore, Sync, Ask, SignOut, Forget} }

// stronger is the stronger of two actions.
func stronger(a, b Action) Action {
	all := Actions()
	if slices.Index(all, a) > slices.Index(all, b) {
		return a
	}
	return b
}

// Config is one source.
type Config struct {
	// Name is the source's: 1 to 32 of a-z, 0-9 and -.
	Name string
	Kind Kind
	// Provider is renewd's id of the provider whose users the messages are about.
	Provider string

	// Secrets verify signatures, each whsec_ and 24 to 64 bytes in base64: of kinds PropelAuth and
	// Webhooks at least one, and two while one replaces the other. Of kind SET they are bearer
	// tokens, one of which the transmitter must show; empty: the transmitter shows no token.
	Secrets []secret.Value

	// Type and User are JSON pointers (RFC 6901) into the body of kind Webhooks, to the type of the
	// message and to the user's id at the provider. Default /type and /data/user_id.
	Type, User string
	// Actions maps types of kind Webhooks to actions; "*" is for all other types. A type without an
	// action is ignored.
	Actions map[string]string

	// SignOut has a message of kind Logout or SET about the end of a session end the session here
	// too. Without SignOut the provider is asked.
	SignOut bool
	// Forget has a message of kind PropelAuth or SET about the deletion of a user erase the user
	// here too. Without Forget the provider is asked, or for kind SET with SignOut the session ends
	// here.
	Forget bool

	// Issuer signs the tokens of kinds Logout and SET, and Audience is the receivers that the
	// tokens may name. Both are required for these kinds.
	Issuer   string
	Audience []string
	// Subjects is a further issuer, beside Issuer, whose subjects in a SET are the provider's
	// users.
	Subjects string
	// JWKS is the address of the issuer's keys; empty: its discovery document says.
	JWKS string
	// AllowHTTP allows plain HTTP to loopback for Issuer and JWKS.
	AllowHTTP bool
}

// withDefaults fills in c's defaults.
func (c Config) withDefaults() Config {
	if c.Type == "" {
		c.Type = "/type"
	}
	if c.User == "" {
		c.User = "/data/user_id"
	}
	return c
}

// Check returns the first mistake in c for its kind. Its error begins with the name of the setting.
func (c Config) Check() error {
	signed := c.Kind == PropelAuth || c.Kind == Webhooks
	for _, s := range c.Secrets {
		if _, err := signingKey(s); signed && err != nil {
			return fmt.Errorf("secret: %w", err)
		}
		if n := len(s.Reveal()); c.Kind == SET && n < 16 {
			return fmt.Errorf("secret: %d bytes: want 16 or more, random", n)
		}
	}
	tokens := c.Kind == Logout || c.Kind == SET
	switch {
	case signed && len(c.Secrets) == 0:
		return errors.New("secret: missing: what the sender signs with, from its page of the " +
			"endpoint; secret_file names a file that holds it")
	case c.Kind == Logout && len(c.Secrets) > 0:
		return errors.New("secret: a logout token is signed with the provider's keys: leave it out")
	case c.Kind != Webhooks && len(c.Actions) > 0:
		return errors.New("actions: are for kind standard-webhooks")
	case c.Kind == Webhooks && len(c.Actions) == 0:
		return errors.New("actions: missing: want a mapping of types to sync, ask, sign_out, " +
			"forget or ignore")
	case c.SignOut && !tokens:
		return errors.New("sign_out: is for kinds backchannel-logout and set")
	case c.Forget && c.Kind != PropelAuth && c.Kind != SET:
		return errors.New("forget: is for kinds propelauth and set")
	case !tokens && (c.Issuer != "" || c.JWKS != "" || len(c.Audience) > 0):
		return errors.New("issuer: is for kinds backchannel-logout and set, and so are audience " +
			"and jwks_url")
	}
	if tokens {
		return c.checkIssuer()
	}
	return c.checkMapping()
}

func (c Config) checkIssuer() error {
	if c.Issuer == "" {
		return errors.New("issuer: missing: who signs the tokens; it is the provider's auth_url " +
			"where that is an OpenID issuer")
	}
	if len(c.Audience) == 0 || slices.Contains(c.Audience, "") {
		return errors.New("audience: missing: whom the tokens are for")
	}
	for key, raw := range map[string]string{"issuer": c.Issuer, "jwks_url": c.JWKS} {
		if raw == "" {
			continue
		}
		if err := checkURL(raw, c.AllowHTTP); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

func (c Config) checkMapping() error {
	c = c.withDefaults()
	for key, at := range map[string]string{"type_at": c.Type, "user_at": c.User} {
		if !strings.HasPrefix(at, "/") {
			return fmt.Errorf("%s: want a JSON pointer such as /data/user_id", key)
		}
	}
	for _, of := range slices.Sorted(maps.Keys(c.Actions)) {
		if !slices.Contains(Actions(), Action(c.Actions[of])) {
			return fmt.Errorf("actions.%s: %q: want sync, ask, sign_out, forget or ignore", of,
				c.Actions[of])
		}
	}
	return nil
}

// forgets reports whether a message may have a user erased.
func (c Config) forgets() bool {
	return c.Forget || slices.Contains(slices.Collect(maps.Values(c.Actions)), string(Forget))
}

// checkURL lets https through, and plain http to loopback where the settings allow it.
func checkURL(raw string, allowHTTP bool) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "":
		return errors.New("want an https:// address without user, password and fragment")
	case u.Scheme == "https", u.Scheme == "http" && allowHTTP && loopback(u.Hostname()):
		return nil
	}
	return errors.New("want https://: keys that come in clear text prove nothing")
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// Result is what became of a message.
type Result string

// The results.
const (
	// Accepted: the message became a command.
	Accepted Result = "accepted"
	// Replayed: the message was accepted before.
	Replayed Result = "replayed"
	// Ignored: the message's type asks for nothing.
	Ignored Result = "ignored"
	// UnknownUser: nothing is stored of the user.
	UnknownUser Result = "unknown_user"

	// Malformed: the message cannot be read.
	Malformed Result = "malformed"
	// Forged: the message has no valid signature of the sender.
	Forged Result = "forged"
	// Stale: the message is too old, or from the future.
	Stale Result = "stale"
	// Foreign: the message is signed, but by another issuer or for another audience.
	Foreign Result = "foreign"
	// Failed: renewd could not take the message, and the sender is to send it again.
	Failed Result = "failed"
)

// Results are all results.
func Results() []Result {
	return []Result{
		Accepted, Replayed, Ignored, UnknownUser, Malformed, Forged, Stale, Foreign, Failed,
	}
}

// Refused reports whether the fault is the message's.
func (r Result) Refused() bool {
	return r == Malformed || r == Forged || r == Stale || r == Foreign
}

// refusal is why a message is not taken. Its words quote nothing of the message.
type refusal struct {
	result Result
	words  string
	code   string // of RFC 8935, section 2.4; empty: by the result
	again  bool   // the sender is to send the message again, though it is not believed now
}

func (r *refusal) Error() string { return r.words }

func refuse(result Result, words string) error { return &refusal{result: result, words: words} }
