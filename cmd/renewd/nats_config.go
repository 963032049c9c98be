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

	"github.com/renewd/renewd/internal/audit"
	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// natsCommand is about NATS servers: settings for a server, and the files of the embedded server.
type natsCommand struct {
	Config  natsConfig  `cmd:"" help:"Print a server's settings with an account for renewd and one for each service."`
	Encrypt natsEncrypt `cmd:"" help:"Encrypt the files of the embedded server, while renewd is stopped."`
}

type natsConfig struct {
	Audit      bool     `help:"Add an account with a copy of the outcomes, out of the reach of renewd's own users: see renewd audit."`
	Publisher  []string `placeholder:"NAME" help:"A service that publishes logins and requests; may be repeated."`
	Reader     []string `placeholder:"NAME" help:"A service that reads users' access tokens; may be repeated. Where the setting senders is used, give it the right read there."`
	NSC        bool     `name:"nsc" help:"Print commands for nsc instead: for servers in operator mode, where accounts are JWTs."`
	Subscriber []string `sep:"none" placeholder:"NAME[=TYPE,…]" help:"A service that receives outcomes, all or of some types; may be repeated. Make its durable with renewd subscribers add NAME."`
}

// Run prints the settings.
func (n natsConfig) Run(a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	config, err := n.config(daemon.Topology(conf), conf.SenderRights())
	if err != nil {
		return settings.Mistake(err)
	}
	if n.NSC {
		return config.print(a.stdout, "nats_config_nsc.tmpl")
	}
	return config.print(a.stdout, "nats_config.tmpl")
}

// accountsConfig is the data for the template.
type accountsConfig struct {
	Streams  []boundary
	Services []service
	Exports  []export
	Keys     string   // the stream of the bucket of public keys
	Outcomes string   // the stream of outcomes
	Own      []string // the subjects that renewd itself publishes
	Requests []string // the subjects that the workers answer; empty: no service reads tokens
	Relays   []string // the subjects of commands that workers publish for clients over HTTP
	// Holds are the subjects under which the operator suspends and resumes users.
	Holds []string
	Types []schema.Type
	API   string
	// Copy is the account of the audit; nil without an audit.
	Copy *service
}

// boundary is a stream as renewd's own user may use it.
type boundary struct {
	Name   string
	Bucket bool
	Direct bool
	Audit  bool // the stream of outcomes: only the operator may take any out
}

// service is a NATS account beside renewd's.
type service struct {
	Name      string // of its user, its durable and, as a sender, in its commands' subjects
	Publishes bool
	Suspends  bool     // the setting senders lets it suspend users, and resume them
	Reads     bool     // access tokens
	Live      []string // subjects of the outcomes for the service; empty: not a subscriber
}

// Account names the service's account.
func (s service) Account() string { return accountName(s.Name) }

func accountName(name string) string { return strings.ToUpper(strings.ReplaceAll(name, "-", "_")) }

// export is a subject that is open to the named accounts alone.
type export struct {
	Kind, Subject string
	As            string // the subject's name there; empty: the same
	Many          bool   // one request has many answers
	Accounts      []string
}

// takenNames are the names of renewd's own users and account, of the audit's if there is an audit,
// of the server's, and the senders of commands over HTTP and of sources.
func (n natsConfig) takenNames() []string {
	taken := []string{"renewd", senders.Operator, "sys", senders.HTTP, senders.Source}
	if n.Audit {
		taken = append(taken, "audit", "auditor")
	}
	return taken
}

const (
	// importedAPI is the name of JetStream's API in a service's account: $JS.API is taken by the
	// service's own account.
	importedAPI = "$JS.renewd.API"
)

var serviceName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// config sorts out which subjects are open to which account.
func (n natsConfig) config(t topology.Topology, rights senders.List) (accountsConfig, error) {
	c := accountsConfig{
		API:      importedAPI,
		Types:    schema.Outcomes(),
		Outcomes: t.Subjects.Name(topology.Outcomes),
		Keys:     "KV_" + t.Subjects.Name(topology.BucketKeys),
	}
	t.Grants = true
	for _, s := range t.WithDefaults().Streams() {
		c.Streams = append(c.Streams, boundary{
			Name:   s.Name,
			Bucket: strings.HasPrefix(s.Name, "KV_"),
			Direct: s.AllowDirect,
			Audit:  s.Name == c.Outcomes,
		})
		if s.Name != t.Subjects.Name(topology.Logins) &&
			s.Name != t.Subjects.Name(topology.Requests) {
			c.Own = append(c.Own, s.Subjects...)
		}
	}
	if t.Sources {
		c.Relays = append(c.Relays, t.Subjects.Commands(schema.UserLogin, senders.Source))
	}
	for _, of := range schema.Commands() {
		c.Relays = append(c.Relays, t.Subjects.Commands(of, senders.HTTP))
		if senders.IsOperators(of) {
			c.Holds = append(c.Holds, t.Subjects.Commands(of, senders.Operator))
		}
	}
	if err := n.services(&c, t.Subjects, rights); err != nil {
		return c, err
	}
	if n.Audit {
		c.Copy = &service{Name: "audit"}
	}
	if slices.ContainsFunc(c.Services, func(s service) bool { return s.Reads }) {
		gets := []string{t.Subjects.TokenGets(""), t.Subjects.TokenGets(schema.AnySender)}
		c.Requests = append(gets, "$SRV.>")
	}
	c.export(t.Subjects)
	return c, nil
}

// services reads the flags, and lets each service hear what it may read.
func (n natsConfig) services(
	c *accountsConfig, subjects schema.Subjects, rights senders.List,
) error {
	add := func(flag, name string) (*service, error) {
		if !serviceName.MatchString(name) || slices.Contains(n.takenNames(), name) {
			return nil, fmt.Errorf("--%s %q: want 1 to 32 of a-z, 0-9 and -, and none of %s",
				flag, name, strings.Join(n.takenNames(), ", "))
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
		s.Publishes, s.Suspends = true, len(rights[name].Suspend) > 0
	}
	for _, name := range n.Reader {
		s, err := add("reader", name)
		if err != nil {
			return err
		}
		s.Reads = true
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
		if s.Live, err = live(subjects, name, types, rights); err != nil {
			return fmt.Errorf("--subscriber %s: %w", given, err)
		}
	}
	if len(c.Services) == 0 {
		return errors.New("name the services that are to use renewd: " +
			"--publisher, --subscriber and --reader")
	}
	return nil
}

// live are the subjects of the outcomes that a service may hear.
func live(
	subjects schema.Subjects, name string, types []schema.Type, rights senders.List,
) (all []string, err error) {
	providers := []string{""}
	if !rights.MayReadAll(name) {
		providers = rights.Readable(name)
	}
	for _, provider := range providers {
		for _, of := range types {
			if provider == "" || of != schema.OperatorActed { // operator.acted is about no provider
				all = append(all, subjects.Filter(of, provider, ""))
			}
		}
	}
	if len(all) == 0 {
		err = fmt.Errorf("the setting senders.%s.read lets it hear nothing of %v", name, types)
	}
	return all, err
}

// export opens the subjects that the services need, to the services alone.
func (c *accountsConfig) export(subjects schema.Subjects) {
	open := func(kind, subject, as string, many bool, to string) {
		for i := range c.Exports {
			if e := &c.Exports[i]; e.Kind == kind && e.Subject == subject {
				e.Accounts = append(e.Accounts, to)
				return
			}
		}
		c.Exports = append(c.Exports, export{
			Kind:     kind,
			Subject:  subject,
			As:       as,
			Many:     many,
			Accounts: []string{to},
		})
	}
	api := func(what string, many bool, to string) {
		open("service", "$JS.API."+what, c.API+"."+what, many, to)
	}
	for _, s := range c.Services {
		if s.Publishes {
			for _, of := range schema.Commands() {
				if senders.IsOperators(of) && !s.Suspends {
					continue
				}
				// The import writes the sender into the subject: the service cannot.
				open("service", subjects.Commands(of, s.Name), subjects.Commands(of, ""), false,
					s.Account())
			}
			api("STREAM.INFO."+c.Keys, false, s.Account())
			api("STREAM.MSG.GET."+c.Keys, false, s.Account())
		}
		if s.Reads {
			gets := subjects.TokenGets("")
			open("service", subjects.TokenGets(s.Name), gets, false, s.Account())
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
	if c.Copy != nil {
		// Enough to fill the copy, and to see how it is filled: the audit's account makes no
		// consumer here.
		api("CONSUMER.INFO."+c.Outcomes+"."+audit.Durable, false, c.Copy.Account())
		api("CONSUMER.RESET."+c.Outcomes+"."+audit.Durable, false, c.Copy.Account())
		open("service", "$JS.FC."+c.Outcomes+"."+audit.Durable+".>", "", false, c.Copy.Account())
		open("stream", audit.Subject(subjects), "", false, c.Copy.Account())
	}
}

// Reads are the subjects where the auditor may publish, to read the copy.
func (c accountsConfig) Reads() []string {
	var may []string
	for _, subject := range []string{
		"STREAM.INFO.%s", "STREAM.MSG.GET.%s", "DIRECT.GET.%s",
		"CONSUMER.CREATE.%s.>", "CONSUMER.CREATE.%s",
		"CONSUMER.INFO.%s.*", "CONSUMER.DELETE.%s.*", "CONSUMER.MSG.NEXT.%s.*",
	} {
		may = append(may, "$JS.API."+fmt.Sprintf(subject, c.Outcomes))
	}
	return may
}

// Imports are the exports open to a service.
func (c accountsConfig) Imports(s service) []export {
	return slices.DeleteFunc(slices.Clone(c.Exports), func(e export) bool {
		return !slices.Contains(e.Accounts, s.Account())
	})
}

// Operates are the subjects where the operator may publish: of commands only suspend and resume.
// Backups and restores of streams run on $JS.SNAPSHOT.
func (c accountsConfig) Operates() []string {
	return append(append(slices.Clone(c.Own), c.Holds...), "$JS.API.>", "$JS.ACK.>", "$JS.FC.>",
		"$JS.SNAPSHOT.>")
}

// Keeps are the subjects where the user audit may publish: it makes the copy and looks at it.
func (c accountsConfig) Keeps() []string {
	return append(c.Reads(), "$JS.API.INFO", "$JS.API.STREAM.CREATE."+c.Outcomes,
		c.API+".CONSUMER.INFO."+c.Outcomes+"."+audit.Durable)
}

// Publishes are the subjects where the workers' user may publish.
func (c accountsConfig) Publishes() []string {
	may := append(slices.Clone(c.Own), c.Relays...)
	may = append(may, "$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST")
	for _, s := range c.Streams {
		may = append(may, s.publishes()...)
	}
	return may
}

// publishes are the subjects of JetStream's API that the workers' user needs for a stream. No
// subject deletes the stream, or takes anything out of the outcomes.
func (b boundary) publishes() []string {
	subjects := []string{
		"$JS.API.STREAM.CREATE.%s", "$JS.API.STREAM.INFO.%s", "$JS.API.STREAM.MSG.GET.%s",
	}
	if !b.Audit {
		subjects = append(subjects,
			"$JS.API.STREAM.UPDATE.%s", "$JS.API.STREAM.PURGE.%s", "$JS.API.STREAM.MSG.DELETE.%s")
	}
	subjects = append(subjects,
		"$JS.API.CONSUMER.CREATE.%s.>", "$JS.API.CONSUMER.INFO.%s.*",
		"$JS.API.CONSUMER.DELETE.%s.*", "$JS.API.CONSUMER.MSG.NEXT.%s.*")
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
