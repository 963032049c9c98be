package settings

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/internal/sink/mail"
	"github.com/renewd/renewd/internal/sink/redis"
	"github.com/renewd/renewd/internal/sink/sql"
	"github.com/renewd/renewd/internal/sink/webhook"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// Sink is a place outside renewd to take outcomes to: an entry of sinks in the settings file.
type Sink struct {
	// kind of the sink.
	Kind string `key:"kind" oneof:"webhook,sql,redis,mail"`
	// types of the outcomes the sink gets: a list; empty: all, or for kind mail
	// user.reauth_required alone.
	Types []string `key:"types" env:"-"`
	// ids of the providers whose outcomes the sink gets: a list; empty: all.
	Providers []string `key:"providers" env:"-"`
	// users whose outcomes are delivered at the same time; the outcomes of a user follow one
	// another. 0: 8, and 128 of kind sql.
	Concurrency int `key:"concurrency" default:"0" min:"0" max:"256"`

	// webhook: address to post outcomes to, in the form of Standard Webhooks 1.0.0.
	URL string `key:"url"`
	// webhook: secret to sign outcomes with, whsec_ and 24 to 64 bytes in base64.
	Secret secret.Value `key:"secret"`
	// webhook: a second secret to sign with: set both while the secret changes.
	SecretNext secret.Value `key:"secret_next"`
	// webhook: further headers: a mapping of names to values; under NAME_file a file with the
	// value.
	Headers map[string]secret.Value `key:"headers" env:"-"`
	// webhook, redis, mail: file with the CA certificates to check the receiver's certificate
	// against; empty: the system's.
	CAFile string `key:"ca_file"`
	// webhook: longest time of a delivery; mail: of each step of a delivery.
	Timeout time.Duration `key:"timeout" default:"15s" min:"1s" max:"1m"`
	// webhook: let the endpoint be in a private network, or on this machine.
	AllowPrivate bool `key:"allow_private" default:"false"`
	// webhook: let outcomes cross the network in clear text.
	AllowHTTP bool `key:"allow_http" default:"false"`

	// webhook: event posts the outcome in the form of Standard Webhooks; set posts Security Event
	// Tokens (RFC 8417) with CAEP's events, as RFC 8935 says.
	Format string `key:"format" default:"event" oneof:"event,set"`
	// webhook, format set: the https:// address that names renewd to the receiver.
	SETIssuer string `key:"set_issuer"`
	// webhook, format set: the receiver's name.
	SETAudience string `key:"set_audience"`
	// webhook, format set: private key to sign with, in PEM form, RSA of 2048 bits or P-256; renewd
	// sinks keys NAME prints the public key.
	SETKey secret.Value `key:"set_key"`

	// sql: the app's database: postgres://user:password@host:5432/database?sslmode=verify-full, or
	// mysql://user:password@host:3306/database?tls=true.
	DatabaseURL secret.Value `key:"database_url" show:"url"`
	// sql: the app's table with a row for each user.
	Table string `key:"table"`
	// sql: the column of the table that tells users apart; it needs an index.
	Key string `key:"key"`
	// sql: content of the key column: user (the provider's id), email, username, or raw:/POINTER.
	KeyField string `key:"key_field" default:"user"`
	// sql: a bigint column that may be null, for the version of the record that a row was written
	// from.
	VersionColumn string `key:"version_column" default:"renewd_version"`
	// sql: a mapping of columns to fields; see docs/sinks.md.
	Columns map[string]string `key:"columns" env:"-"`
	// sql, redis: let access tokens be written: every reader of the table, or of the keys, may use
	// the tokens. The refresh token is never written.
	WriteTokens bool `key:"write_tokens" default:"false"`
	// sql: APP_KEY of a Laravel app, for fields with the word encrypted.
	AppKey secret.Value `key:"app_key"`
	// sql: a table that gets a row for each outcome; empty: no history.
	HistoryTable string `key:"history_table"`
	// sql: a mapping of the history table's columns to fields, and row:COLUMN for a column of the
	// user's row.
	History map[string]string `key:"history" env:"-"`

	// sql: a table with a row for each organisation of a user, which renewd inserts and deletes;
	// empty: no such table.
	OrganisationsTable string `key:"organisations_table"`
	// sql: a mapping of the organisations table's columns to org:id, org:name, org:role, org:roles,
	// org:permissions, and row:COLUMN for the row's user.
	Organisations map[string]string `key:"organisations" env:"-"`

	// redis: the app's Redis: rediss://user:password@host:6379/0, or redis:// without TLS.
	RedisURL secret.Value `key:"redis_url" show:"url"`
	// redis: start of every key; the provider's id, a colon and the user's id follow.
	Prefix string `key:"prefix" default:"renewd:"`
	// redis: how long a user's hash is kept after the last write.
	TTL time.Duration `key:"ttl" default:"168h" min:"1m"`

	// mail: the mail server: smtp://user@host:587 (STARTTLS), or smtps://user@host:465.
	SMTPURL string `key:"smtp_url"`
	// mail: password of the user in smtp_url.
	SMTPPassword secret.Value `key:"smtp_password"`
	// mail: the sender's address, with or without a name.
	From string `key:"from"`
	// mail: address of all mails; empty: the address in the user's profile.
	To string `key:"to"`
	// mail: member of the profile with the user's address: email, or raw:/POINTER.
	ToField string `key:"to_field" default:"email"`
	// mail: address for a digest of the mails above cap; empty: to.
	Operator string `key:"operator"`
	// mail: how many mails are sent in an hour.
	Cap int `key:"cap" default:"100" min:"1" max:"100000"`
	// mail: template of the subject; empty: a sober subject.
	Subject string `key:"subject"`
	// mail: template of the text; empty: a sober text.
	Text string `key:"text"`
	// mail: file with the template of the text; its first line may be Subject: and the template of
	// the subject.
	TextFile string `key:"text_file"`
}

// The kinds of sinks: webhook posts outcomes to an endpoint, sql and redis write users into an
// app's table or Redis, mail mails users.
const (
	KindWebhook = "webhook"
	KindSQL     = "sql"
	KindRedis   = "redis"
	KindMail    = "mail"
)

// FormatSET is the format of a webhook that gets Security Event Tokens.
const FormatSET = "set"

func sinkTable() []setting { return table(reflect.TypeFor[Sink](), "") }

// WebhookConfig is s as package webhook takes it, but for the certificates.
func (s Sink) WebhookConfig() webhook.Config {
	c := webhook.Config{
		URL: s.URL, Headers: s.Headers, Timeout: s.Timeout, MaxConns: s.InFlight(),
		AllowPrivate: s.AllowPrivate, AllowHTTP: s.AllowHTTP,
	}
	for _, one := range []secret.Value{s.Secret, s.SecretNext} {
		if !one.IsZero() {
			c.Secrets = append(c.Secrets, one)
		}
	}
	if s.Format == FormatSET {
		c.SET = &webhook.SET{Issuer: s.SETIssuer, Audience: s.SETAudience, Key: s.SETKey}
	}
	return c
}

// RedisConfig is s as package redis takes it, but for the certificates.
func (s Sink) RedisConfig() redis.Config {
	return redis.Config{URL: s.RedisURL, Prefix: s.Prefix, TTL: s.TTL, WriteTokens: s.WriteTokens}
}

// MailConfig is s as package mail takes it, but for the certificates. TLS may be missing on this
// machine, or where allowPlaintext says so.
func (s Sink) MailConfig(allowPlaintext bool) (mail.Config, error) {
	c := mail.Config{
		Server: s.SMTPURL, Password: s.SMTPPassword, Timeout: s.Timeout, From: s.From, To: s.To,
		Field: s.ToField, Operator: s.Operator, Cap: s.Cap, Subject: s.Subject, Text: s.Text,
	}
	c.AllowPlaintext = allowPlaintext || Loopback(c.Host())
	if s.TextFile == "" {
		return c, nil
	}
	if s.Text != "" {
		return c, errors.New("text_file: set either it or text")
	}
	file, err := os.ReadFile(s.TextFile)
	if err != nil {
		return c, fmt.Errorf("text_file: %w", err)
	}
	subject, text := mail.Templates(string(file))
	c.Subject, c.Text = cmp.Or(c.Subject, subject), text
	return c, nil
}

// InFlight is the number of users s delivers for at a time.
func (s Sink) InFlight() int {
	switch {
	case s.Concurrency > 0:
		return s.Concurrency
	case s.Kind == KindSQL:
		return 128
	}
	return 8
}

// SQLConfig is s as package sql takes it.
func (s Sink) SQLConfig() sql.Config {
	return sql.Config{
		URL: s.DatabaseURL, Table: s.Table, Key: s.Key, KeyField: s.KeyField,
		Version: s.VersionColumn, Columns: s.Columns, History: s.HistoryTable,
		HistoryColumns: s.History, WriteTokens: s.WriteTokens, AppKey: s.AppKey,
		Organisations: s.OrganisationsTable, OrganisationColumns: s.Organisations,
	}
}

// Target is the place s takes its outcomes to, without the secret parts of its address.
func (s Sink) Target() string {
	switch s.Kind {
	case KindSQL:
		return s.SQLConfig().Host() + " " + s.Table
	case KindRedis:
		host, _ := s.RedisConfig().Host()
		return host + " " + s.Prefix
	case KindMail:
		return mail.Config{Server: s.SMTPURL}.Host()
	}
	return HostOf(s.URL)
}

// check holds s against its kind. The error begins with the name of the wrong setting.
func (s Sink) check() error {
	switch s.Kind {
	case KindWebhook:
		return s.WebhookConfig().Check()
	case KindSQL:
		return s.SQLConfig().Check()
	case KindRedis:
		return s.RedisConfig().Check()
	case KindMail:
		c, err := s.MailConfig(false)
		if err != nil {
			return err
		}
		return c.Check()
	}
	return errors.New("kind: missing: want webhook, sql, redis or mail")
}

// inClear is the setting of s, and the host in it, that may get a password without TLS; empty: no
// setting. A mail without TLS is refused.
func (s Sink) inClear() (setting, host string) {
	if s.Kind == KindRedis {
		if host, clear := s.RedisConfig().Host(); clear && !Loopback(host) {
			return "redis_url", host
		}
		return "", ""
	}
	return "database_url", s.databaseInClear()
}

func (s Sink) databaseInClear() string {
	text := s.DatabaseURL.Reveal()
	if !strings.HasPrefix(text, "mysql:") && !strings.HasPrefix(text, "mariadb:") {
		return DatabaseInClear(text)
	}
	u, err := url.Parse(text)
	if err != nil || u.Query().Get("tls") == "true" || u.Query().Has("socket") ||
		Loopback(net.JoinHostPort(u.Hostname(), "0")) {
		return ""
	}
	return u.Host
}

// OutcomeTypes are the types of the outcomes s gets; empty: all. A mail is sent by default when a
// session ended without the user's doing.
func (s Sink) OutcomeTypes() (types []schema.Type) {
	for _, t := range s.Types {
		types = append(types, schema.Type(t))
	}
	if s.Kind == KindMail && len(types) == 0 {
		return []schema.Type{schema.UserReauthRequired}
	}
	return types
}

// SinkNames are the names of all sinks, sorted.
func (c *Settings) SinkNames() []string { return slices.Sorted(maps.Keys(c.Sinks)) }

// checkSinks requires the settings of each kind, and providers and types that exist.
func (c *Settings) checkSinks() (found []misfit) {
	known := c.ProviderIDs()
	var types []string
	for _, t := range schema.Outcomes() {
		types = append(types, string(t))
	}
	for _, name := range c.SinkNames() {
		path := "sinks." + name
		say := func(key string, err error) {
			if err != nil {
				found = append(found, misfit{path + key, err})
			}
		}
		s := c.Sinks[name]
		say("", senders.CheckName(name))
		if _, taken := c.Senders[topology.SinkPrefix+name]; taken {
			say("", fmt.Errorf("the sender %s%s could read its outcomes: give one of the two "+
				"another name", topology.SinkPrefix, name))
		}
		for _, id := range s.Providers {
			if !slices.Contains(known, id) {
				say(".providers", fmt.Errorf("%q is not the id of a provider in the settings%s",
					id, DidYouMean(id, known)))
			}
		}
		for _, t := range s.Types {
			if !slices.Contains(types, t) {
				say(".types", fmt.Errorf("%q is no outcome%s", t, DidYouMean(t, types)))
			}
		}
		if len(s.Providers) > 0 && slices.Equal(s.Types, []string{string(schema.OperatorActed)}) {
			say(".types", fmt.Errorf("%s is about no provider: leave providers empty",
				schema.OperatorActed))
		}
		say(".ca_file", readable(s.CAFile))
		if err := s.check(); err != nil {
			key, rest, _ := strings.Cut(err.Error(), ": ")
			say("."+key, errors.New(rest))
		}
	}
	return found
}
