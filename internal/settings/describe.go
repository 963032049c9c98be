package settings

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/renewd/renewd/internal/secret"
)

func (c *Settings) DescribeNATS() string {
	switch {
	case c.NATSContext != "":
		return "NATS context " + c.NATSContext
	case c.NATSURL != "":
		return "NATS at " + HostOf(c.NATSURL)
	default:
		return "embedded NATS in " + c.DataDir
	}
}

func (c *Settings) DescribeStore() string {
	if c.DatabaseURL.IsZero() {
		return "grants in NATS KV"
	}
	return "grants in PostgreSQL at " + DatabaseHost(c.DatabaseURL)
}

// redactURL is text without a possible password: an address whose user part is cut down to a name,
// or hidden entirely. A NATS address with a user and no password holds a token as user.
func redactURL(text string) string {
	if text == "" {
		return ""
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Opaque != "" {
		if strings.ContainsAny(text, "@= ") {
			return hidden
		}
		return text
	}
	user := ""
	if u.User != nil {
		user = hidden + "@"
		if _, ok := u.User.Password(); ok {
			user = url.User(u.User.Username()).String() + ":" + user
		}
	}
	for name := range u.Query() {
		if strings.Contains(strings.ToLower(name), "pass") {
			return u.Scheme + "://" + user + u.Host + u.Path + "?" + hidden
		}
	}
	rest := u.Path
	if u.RawQuery != "" {
		rest += "?" + u.RawQuery
	}
	return u.Scheme + "://" + user + u.Host + rest
}

// HostOf names the hosts of an address for a log line, and nothing else.
func HostOf(text string) string {
	var hosts []string
	for part := range strings.SplitSeq(text, ",") {
		u, err := url.Parse(strings.TrimSpace(part))
		if err != nil || u.Host == "" {
			if _, after, ok := strings.Cut(part, "@"); ok {
				part = after
			}
			hosts = append(hosts, strings.TrimSpace(part))
			continue
		}
		hosts = append(hosts, u.Host)
	}
	return strings.Join(hosts, ",")
}

// DatabaseHost names the server and database of an address, and nothing else.
func DatabaseHost(address secret.Value) string {
	c, err := pgxpool.ParseConfig(address.Reveal())
	if err != nil {
		return hidden
	}
	return fmt.Sprintf("%s:%d/%s", c.ConnConfig.Host, c.ConnConfig.Port, c.ConnConfig.Database)
}
