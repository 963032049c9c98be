package main

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

// natsCommand is about NATS servers that renewd does not run itself.
type natsCommand struct {
	Config natsConfig `cmd:"" help:"Print a server's settings with an account for renewd and one for each service."`
}

type natsConfig struct {
	Publisher  []string `placeholder:"NAME" help:"A service that publishes logins and requests; may be repeated."`
	NSC        bool     `name:"nsc" help:"Print commands for nsc instead: for servers in operator mode, where accounts are JWTs."`
	Subscriber []string `placeholder:"NAME[=TYPE,…]" help:"A service that receives outcomes, all or of some types; may be repeated. Make its durable with renewd subscribers add NAME."`
}

// Run prints the settings.
func (n natsConfig) Run(a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	config, err := n.config(conf.topology())
	if err != nil {
		return usageError{err}
	}
	if n.NSC {
		return config.print(a.stdout, "nats_config_nsc.tmpl")
	}
	return config.print(a.stdout, "nats_config.tmpl")
}

// accountsConfig is what the template is filled with.
type accountsConfig struct {
	Streams  []boundary
	Services []service
	Exports  []export
	Keys     string   // the stream of the bucket of public keys
	Outcomes string   // the stream of outcomes
	Own      []string // the subjects that renewd itself publishes
	Types    []schema.Type
	API      string
}

// boundary is a stream as renewd's own user may use it.
type boundary struct {
	Name   string
	Bucket bool
	Direct bool
	Audit  bool // it holds the outcomes: only the operator may take any of them out
}

// service is a NATS account beside renewd's.
type service struct {
	Name      string // of its user, its durable and, as a sender, in its commands' subjects
	Publishes bool
	Live      []string // subjects of the outcomes that it receives; none: it is no subscriber
}

// Account names the service's account.
func (s service) Account() string { return accountName(s.Name) }

func accountName(name string) string { return strings.ToUpper(strings.ReplaceAll(name, "-", "_")) }

// export is a subject that is open to the named accounts alone.
type export struct {
	Kind, Subject string
	As            string // the name that it has there; empty: its own
	Many          bool   // one request has many answers
	Accounts      []string
}

// takenNames are those of renewd's own users and account, and of the server's.
func takenNames() []string { return []string{"renewd", "operator", "sys"} }

const (
	// importedAPI is the name of JetStream's API in a service's account: $JS.API is taken by the
	// service's own account.
	importedAPI = "$JS.renewd.API"
)

var serviceName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// config sorts out what is open to whom.
func (n natsConfig) config(t stream.Topology) (accountsConfig, error) {
	c := accountsConfig{
		API: importedAPI, Types: schema.Outcomes(), Outcomes: t.Subjects.Name(stream.Outcomes), Keys: "KV_" + t.Subjects.Name(stream.BucketKeys),
	}
	t.Grants = true
	for _, s := range t.WithDefaults().Streams() {
		c.Streams = append(c.Streams, boundary{
			Name: s.Name, Bucket: strings.HasPrefix(s.Name, "KV_"), Direct: s.AllowDirect, Audit: s.Name == c.Outcomes,
		})
		if s.Name != t.Subjects.Name(stream.Logins) && s.Name != t.Subjects.Name(stream.Requests) {
			c.Own = append(c.Own, s.Subjects...)
		}
	}
	if err := n.services(&c, t.Subjects); err != nil {
		return c, err
	}
	c.export(t.Subjects)
	return c, nil
}

// services reads the flags.
func (n natsConfig) services(c *accountsConfig, subjects schema.Subjects) error {
	add := func(flag, name string) (*service, error) {
		if !serviceName.MatchString(name) || slices.Contains(takenNames(), name) {
			return nil, fmt.Errorf("--%s %q: want 1 to 32 of a-z, 0-9 and -, and none of %s",
				flag, name, strings.Join(takenNames(), ", "))
		}
		for i := range c.Services {
			if c.Services[i].Name == name {
				return &c.Services[i], nil
			}
		}
		c.Services = append(c.Services, service{Name: name})
		return &c.Services[len(c.Services)-1], nil
	}
	for _, name := range n.Publisher {
		s, err := add("publisher", name)
		if err != nil {
			return err
		}
		s.Publishes = true
	}
	for _, given := range n.Subscriber {
		name, list, some := strings.Cut(given, "=")
		s, err := add("subscriber", name)
		if err != nil {
			return err
		}
		var f eventFlags
		if some {
			f.Type = strings.Split(list, ",")
		}
		types, err := f.types()
		if err != nil {
			return fmt.Errorf("--subscriber %s: %w", given, err)
		}
		if !some {
			types = c.Types
		}
		for _, of := range types {
			s.Live = append(s.Live, subjects.Filter(of, "", ""))
		}
	}
	if len(c.Services) == 0 {
		return errors.New("name the services that are to use renewd: --publisher and --subscriber")
	}
	return nil
}

// export opens what the services need, to them alone.
func (c *accountsConfig) export(subjects schema.Subjects) {
	open := func(kind, subject, as string, many bool, to string) {
		for i := range c.Exports {
			if e := &c.Exports[i]; e.Kind == kind && e.Subject == subject {
				e.Accounts = append(e.Accounts, to)
				return
			}
		}
		c.Exports = append(c.Exports, export{Kind: kind, Subject: subject, As: as, Many: many, Accounts: []string{to}})
	}
	api := func(what string, many bool, to string) {
		open("service", "$JS.API."+what, c.API+"."+what, many, to)
	}
	for _, s := range c.Services {
		if s.Publishes {
			for _, of := range schema.Commands() {
				// The import writes the sender into the subject: the service cannot.
				open("service", subjects.Commands(of, s.Name), subjects.Commands(of, ""), false, s.Account())
			}
			api("STREAM.INFO."+c.Keys, false, s.Account())
			api("STREAM.MSG.GET."+c.Keys, false, s.Account())
		}
		if len(s.Live) > 0 {
			api("CONSUMER.INFO."+c.Outcomes+"."+s.Name, false, s.Account())
			api("CONSUMER.MSG.NEXT."+c.Outcomes+"."+s.Name, true, s.Account())
			open("service", "$JS.ACK."+c.Outcomes+"."+s.Name+".>", "", false, s.Account())
		}
		for _, subject := range s.Live {
			open("stream", subject, "", false, s.Account())
		}
	}
}

// Imports are what is open to a service.
func (c accountsConfig) Imports(s service) []export {
	return slices.DeleteFunc(slices.Clone(c.Exports), func(e export) bool {
		return !slices.Contains(e.Accounts, s.Account())
	})
}

// Operates are the subjects that the operator may publish to: all but commands.
func (c accountsConfig) Operates() []string {
	return append(slices.Clone(c.Own), "$JS.API.>", "$JS.ACK.>", "$JS.FC.>")
}

// Publishes are the subjects that the workers' user may publish to.
func (c accountsConfig) Publishes() []string {
	may := append(slices.Clone(c.Own), "$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST")
	for _, s := range c.Streams {
		may = append(may, s.publishes()...)
	}
	return may
}

// publishes are the subjects of JetStream's API that the workers' user needs for a stream. None
// deletes the stream, or takes anything out of the outcomes.
func (b boundary) publishes() []string {
	subjects := []string{
		"$JS.API.STREAM.CREATE.%s", "$JS.API.STREAM.INFO.%s", "$JS.API.STREAM.MSG.GET.%s",
	}
	if !b.Audit {
		subjects = append(subjects,
			"$JS.API.STREAM.UPDATE.%s", "$JS.API.STREAM.PURGE.%s", "$JS.API.STREAM.MSG.DELETE.%s")
	}
	subjects = append(subjects,
		"$JS.API.CONSUMER.CREATE.%s.>", "$JS.API.CONSUMER.INFO.%s.*", "$JS.API.CONSUMER.DELETE.%s.*",
		"$JS.API.CONSUMER.MSG.NEXT.%s.*")
	if b.Bucket {
		subjects = append(subjects, "$JS.FC.%s.>")
	} else {
		subjects = append(subjects, "$JS.ACK.%s.>", "$JS.API.CONSUMER.PAUSE.%s.*",
			"$JS.API.CONSUMER.NAMES.%s", "$JS.API.CONSUMER.LIST.%s")
	}
	if b.Direct {
		subjects = append(subjects, "$JS.API.DIRECT.GET.%s", "$JS.API.DIRECT.GET.%s.>")
	}
	for i, subject := range subjects {
		subjects[i] = fmt.Sprintf(subject, b.Name)
	}
	return subjects
}

//go:embed nats_config.tmpl nats_config_nsc.tmpl
var natsConfigTemplates embed.FS

func (c accountsConfig) print(w io.Writer, name string) error {
	t := template.New(name).Funcs(template.FuncMap{"join": strings.Join})
	return template.Must(t.ParseFS(natsConfigTemplates, name)).Execute(w, c)
}
