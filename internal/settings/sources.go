package settings

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/internal/source/hook"
)

// Source is a place outside renewd to take commands from: an entry of sources in the settings file.
type Source struct {
	// kind of the source: propelauth, standard-webhooks, backchannel-logout, set or sql.
	Kind string `key:"kind"`
	// id of the provider whose users the source is about.
	Provider string `key:"provider"`

	// propelauth, standard-webhooks: secret that signs messages, whsec_ and 24 to 64 bytes in
	// base64. set: the bearer token of the transmitter; empty: the transmitter shows no token.
	Secret secret.Value `key:"secret"`
	// a second secret: set both while the secret changes.
	SecretNext secret.Value `key:"secret_next"`

	// standard-webhooks: JSON pointer to the type of a message.
	TypeAt string `key:"type_at" default:"/type"`
	// standard-webhooks: JSON pointer to the user's id at the provider.
	UserAt string `key:"user_at" default:"/data/user_id"`
	// standard-webhooks: action for each type: a mapping of types to sync, ask, sign_out, forget or
	// ignore; "*" is for all other types.
	Actions map[string]string `key:"actions" env:"-"`

	// backchannel-logout, set: end sessions ended at the provider, without asking the provider.
	SignOut bool `key:"sign_out" default:"false"`
	// propelauth, set: erase users deleted at the provider.
	Forget bool `key:"forget" default:"false"`

	// backchannel-logout, set: issuer of the tokens; empty: the provider's auth_url.
	Issuer string `key:"issuer"`
	// backchannel-logout, set: receivers that the tokens may name: a list; empty: the provider's
	// client_id.
	Audience []string `key:"audience" env:"-"`
	// backchannel-logout, set: address of the issuer's keys; empty: as the discovery document says.
	JWKSURL string `key:"jwks_url"`

	// sql: with observe no login is taken from the table, while another program still renews; with
	// live renewd serve takes each new login from the table.
	Mode string `key:"mode" default:"observe" oneof:"observe,live"`
	// sql: the app's database: postgres://user:password@host:5432/database?sslmode=verify-full, or
	// mysql://user:password@host:3306/database?tls=true; select on the table is enough.
	DatabaseURL secret.Value `key:"database_url" show:"url"`
	// sql: the app's table.
	Table string `key:"table" default:"users"`
	// sql: the column that names a row: unique, and with an index.
	ID string `key:"id" default:"id"`
	// sql: the column with the provider's id of the user; it needs an index.
	User string `key:"user"`
	// sql: the column with the access token.
	AccessToken string `key:"access_token"`
	// sql: the column with the refresh token.
	RefreshToken string `key:"refresh_token"`
	// sql: the column with the end of the access token: a time in UTC, or seconds since 1970;
	// empty: the token's own exp, or the provider's default.
	ExpiresAt string `key:"expires_at"`
	// sql: the column with the time of a row's last change, which the app sets with each change; it
	// needs an index. Empty: the whole table is read again and again.
	UpdatedAt string `key:"updated_at"`
	// sql: the column with the time of the user's last sign-in. With this column renewd sees a
	// refresh token change without a sign-in: another program still renews.
	SignedInAt string `key:"signed_in_at"`
	// sql: the tokens are as Laravel's encrypted cast writes them; needs app_key.
	Encrypted bool `key:"encrypted" default:"false"`
	// sql: APP_KEY of the Laravel app.
	AppKey secret.Value `key:"app_key"`
	// sql: for PostgreSQL, the channel notified by the trigger of renewd adopt plan; empty: renewd_
	// and the source's name.
	Channel string `key:"channel"`
	// sql: how often the table is looked at.
	Poll time.Duration `key:"poll" default:"1s" min:"100ms" max:"1m"`
}

func sourceTable() []setting { return table(reflect.TypeFor[Source](), "") }

// HookConfig is s as package hook takes it. The provider's settings stand in for the values s
// leaves out.
func (s Source) HookConfig(name string, of Provider) hook.Config {
	c := hook.Config{
		Name: name, Kind: hook.Kind(s.Kind), Provider: s.Provider, Type: s.TypeAt, User: s.UserAt,
		Actions: s.Actions, SignOut: s.SignOut, Forget: s.Forget, Issuer: s.Issuer,
		Audience: s.Audience, JWKS: s.JWKSURL, AllowHTTP: of.AllowHTTP,
	}
	for _, one := range []secret.Value{s.Secret, s.SecretNext} {
		if !one.IsZero() {
			c.Secrets = append(c.Secrets, one)
		}
	}
	if c.Kind != hook.Logout && c.Kind != hook.SET {
		return c
	}
	c.Subjects = of.ClientConfig().Issuer()
	if c.Issuer == "" {
		c.Issuer = c.Subjects
	}
	if len(c.Audience) == 0 && of.ClientID != "" {
		c.Audience = []string{of.ClientID}
	}
	return c
}

// Hooks are the sources that services post to, sorted by name.
func (c *Settings) Hooks() (all []hook.Config) {
	for _, name := range c.SourceNames() {
		s := c.Sources[name]
		if slices.Contains(hook.Kinds(), hook.Kind(s.Kind)) {
			of, _ := c.Provider(s.Provider)
			all = append(all, s.HookConfig(name, of))
		}
	}
	return all
}

// SourceNames are the names of all sources, sorted.
func (c *Settings) SourceNames() []string { return slices.Sorted(maps.Keys(c.Sources)) }

// checkSources requires the settings of each kind, and providers that exist.
func (c *Settings) checkSources() (found []misfit) {
	kinds := []string{KindSQL}
	for _, k := range hook.Kinds() {
		kinds = append(kinds, string(k))
	}
	for _, name := range c.SourceNames() {
		path, s := "sources."+name, c.Sources[name]
		say := func(key string, err error) {
			if err != nil {
				found = append(found, misfit{path + key, err})
			}
		}
		say("", senders.CheckName(name))
		if !slices.Contains(kinds, s.Kind) {
			say(".kind", fmt.Errorf("%q: want one of %s%s", s.Kind, strings.Join(kinds, ", "),
				DidYouMean(s.Kind, kinds)))
			continue
		}
		of, known := c.Provider(s.Provider)
		if !known {
			say(".provider", fmt.Errorf("%q is not the id of a provider in the settings%s",
				s.Provider, DidYouMean(s.Provider, c.ProviderIDs())))
			continue
		}
		err := s.HookConfig(name, of).Check()
		if s.Kind == KindSQL {
			err = c.AppTable(name).Check()
		}
		if err != nil {
			key, rest, _ := strings.Cut(err.Error(), ": ")
			say("."+key, errors.New(rest))
		}
	}
	return found
}
