package settings

import (
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/secret"
)

// Print writes the settings as a settings file, each with the origin of its value. Secrets are left
// out.
func (c *Settings) Print(w io.Writer) {
	c.printRows(w, reflect.ValueOf(*c), mainTable(), "", "")
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

func (c *Settings) printRows(w io.Writer, from reflect.Value, rows []setting, path, indent string) {
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
	case secret.Value:
		switch {
		case v.IsZero():
			return `""`
		case r.show == "url":
			return strconv.Quote(redactURL(v.Reveal()))
		default:
			return strconv.Quote(v.String())
		}
	case time.Duration:
		return FormatDuration(v)
	case ByteSize:
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

// Table is the reference of all settings in Markdown, for the README.
func Table(w io.Writer) {
	fmt.Fprintln(w, "| environment | settings file | default | meaning |\n|---|---|---|---|")
	fmt.Fprintf(w, "| `%s` | | | the settings file (YAML); the environment wins over it |\n",
		configEnv)
	means := meanings()
	rows := func(rows []setting, path string) {
		for _, r := range rows {
			def := ""
			if r.def != "" {
				def = "`" + r.def + "`"
			}
			env := "`" + r.env + "`"
			key := "`" + path + r.key + "`"
			switch {
			case r.env == "":
				if env = ""; r.secret {
					key += ", `…_file`"
				}
			case r.secret:
				env += ", `…_FILE`"
			}
			doc := means[r.field]
			if r.oneof != nil && r.oneof[0] != "" {
				doc += ": " + strings.Join(r.oneof, ", ")
			}
			fmt.Fprintf(w, "| %s | %s | %s | %s |\n", env, key, def, doc)
		}
	}
	rows(mainTable(), "")
	rows(senderTable(), "senders.NAME.")
	rows(sinkTable(), "sinks.NAME.")
	rows(sourceTable(), "sources.NAME.")
	rows(providerTable(), "providers[].")
	rows(ruleTable(), "providers[].rules[].")
	rows(policyTable(), "providers[].policy.")
	rows(guardTable(), "providers[].guard.")
}
