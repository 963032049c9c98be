package main

import (
	"fmt"
	"io"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/renewd/renewd/internal/grant"
)

// print writes the settings as a settings file, each with where its value comes from. Secrets are
// not in it.
func (c *configuration) print(w io.Writer) {
	c.printRows(w, reflect.ValueOf(c.settings), mainTable(), "", "")
	if len(c.Providers) == 0 {
		fmt.Fprintln(w, "providers: []")
		return
	}
	fmt.Fprintln(w, "providers:")
	for i, p := range c.Providers {
		path := fmt.Sprintf("providers[%d].", i)
		fmt.Fprintln(w, "  -")
		c.printRows(w, reflect.ValueOf(p), providerTable(), path, "    ")
		fmt.Fprintln(w, "    policy:")
		c.printRows(w, reflect.ValueOf(p.Policy), policyTable(), path+"policy.", "      ")
		fmt.Fprintln(w, "    guard:")
		c.printRows(w, reflect.ValueOf(p.Guard), guardTable(), path+"guard.", "      ")
	}
}

func (c *configuration) printRows(w io.Writer, from reflect.Value, rows []setting, path, indent string) {
	for _, r := range rows {
		origin := c.origins[path+r.key]
		if origin == "" {
			origin = "default"
		}
		fmt.Fprintf(w, "%s%-48s # %s\n", indent, r.key+": "+r.text(from), origin)
	}
}

// text is the value of the row's field in from, fit for a YAML file and without secrets.
func (r setting) text(from reflect.Value) string {
	switch v := from.Field(r.index).Interface().(type) {
	case grant.Secret:
		switch {
		case v.IsZero():
			return `""`
		case r.show == "url":
			return strconv.Quote(redactURL(v.Reveal()))
		default:
			return strconv.Quote(v.String())
		}
	case time.Duration:
		return formatDuration(v)
	case byteSize:
		return v.String()
	case string:
		if r.key == "nats_url" {
			parts := strings.Split(v, ",")
			for i, part := range parts {
				parts[i] = redactURL(part)
			}
			v = strings.Join(parts, ",")
		}
		return strconv.Quote(v)
	default:
		return structured(v)
	}
}

const hidden = "[redacted]"

// redactURL is text without what could be a password: an address whose user part is cut down to a
// name, or hidden altogether. A NATS address with nothing but a user holds a token there.
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

// hostOf names the hosts of an address for a log line, and nothing else of it.
func hostOf(text string) string {
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

// settingsTable is the reference of all settings in Markdown, for the README.
func settingsTable(w io.Writer) {
	fmt.Fprintln(w, "| environment | settings file | default | meaning |\n|---|---|---|---|")
	fmt.Fprintf(w, "| `%s` | | | the settings file (YAML); the environment wins over it |\n", configEnv)
	rows := func(rows []setting, path string) {
		for _, r := range rows {
			def := ""
			if r.def != "" {
				def = "`" + r.def + "`"
			}
			env := "`" + r.env + "`"
			if r.env == "" {
				env = ""
			}
			if r.secret {
				env += ", `…_FILE`"
			}
			doc := r.doc
			if r.oneof != nil && r.oneof[0] != "" {
				doc += ": " + strings.Join(r.oneof, ", ")
			}
			fmt.Fprintf(w, "| %s | `%s%s` | %s | %s |\n", env, path, r.key, def, doc)
		}
	}
	rows(mainTable(), "")
	rows(senderTable(), "senders.NAME.")
	rows(providerTable(), "providers[].")
	rows(ruleTable(), "providers[].rules[].")
	rows(policyTable(), "providers[].policy.")
	rows(guardTable(), "providers[].guard.")
}

// databaseHost names the server and database of an address, and nothing else of it.
func databaseHost(address grant.Secret) string {
	c, err := pgxpool.ParseConfig(address.Reveal())
	if err != nil {
		return hidden
	}
	return fmt.Sprintf("%s:%d/%s", c.ConnConfig.Host, c.ConnConfig.Port, c.ConnConfig.Database)
}
