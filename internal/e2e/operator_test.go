package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// operator does what nsc does with the commands of `renewd nats config --nsc`: accounts, users,
// exports, activations and imports, as claims signed by their keys. It knows no command and no flag
// except those.
type operator struct {
	t        *testing.T
	key      nkeys.KeyPair
	accounts map[string]*account
	users    map[string]nats.Option // how each connects
	token    string                 // the activation made last
}

type account struct {
	key    nkeys.KeyPair
	claims *jwt.AccountClaims
}

// startNATSOperator starts a nats-server in operator mode, with the accounts that the command
// prints with these additional flags.
func startNATSOperator(t *testing.T, more ...string) natsAccounts {
	t.Helper()
	script := must(printedNATS(t, append(more, "--nsc")...))(t)
	o := operator{
		t:        t,
		key:      must(nkeys.CreateOperator())(t),
		accounts: map[string]*account{},
		users:    map[string]nats.Option{},
	}
	o.add("SYS")
	for line := range strings.SplitSeq(strings.ReplaceAll(script, " \\\n", " "), "\n") {
		if command, ok := strings.CutPrefix(line, "nsc "); ok {
			o.run(words(command))
		}
	}
	ports, conf := t.TempDir(), filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(conf, []byte(o.settings(t.TempDir())), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(must(natsServer())(t),
		append([]string{"--config", conf}, onFreePort(ports)...)...)
	n := startNATS(t, cmd, ports)
	n.users = o.users
	return n
}

// printedNATS is what `renewd nats config` prints for signin and shop, with additional flags.
func printedNATS(t *testing.T, flags ...string) (string, error) {
	t.Helper()
	args := append([]string{"nats", "config", "--publisher", "signin", "--subscriber", "shop"},
		flags...)
	cmd := command(t, nil, args...)
	cmd.Stdout = nil
	out, err := cmd.Output()
	return string(out), err
}

// words splits a shell command that has nothing but quotes in it.
func words(command string) (all []string) {
	for command = strings.TrimSpace(command); command != ""; command = strings.TrimSpace(command) {
		end := " "
		if quote := command[:1]; quote == "'" || quote == `"` {
			command, end = command[1:], quote
		}
		word, rest, _ := strings.Cut(command, end)
		all, command = append(all, word), rest
	}
	return all
}

func (o *operator) run(args []string) {
	o.t.Helper()
	flags := map[string][]string{}
	for i := 2; i < len(args); i++ {
		name, ok := strings.CutPrefix(args[i], "--")
		if !ok {
			o.t.Fatalf("nsc %q: %q is no flag", args, args[i])
		}
		flags[name] = append(flags[name], "")
		if i+1 < len(args) && !strings.HasPrefix(args[i+1], "--") {
			i++
			flags[name][len(flags[name])-1] = args[i]
		}
	}
	one := func(name string) string { return strings.Join(flags[name], " ") }
	switch command := strings.Join(args[:2], " "); command {
	case "add account":
		o.add(one("name"))
	case "edit account":
		claims := o.accounts[one("name")].claims
		if flags["js-disk-storage"] != nil {
			claims.Limits.JetStreamLimits = jwt.JetStreamLimits{
				MemoryStorage: -1,
				DiskStorage:   -1,
				Streams:       -1,
				Consumer:      -1,
			}
		}
		claims.DefaultPermissions.Pub.Allow.Add(flags["allow-pub"]...)
		claims.DefaultPermissions.Sub.Allow.Add(flags["allow-sub"]...)
	case "add user":
		o.user(o.accounts[one("account")], one("name"), flags["allow-pub"], flags["allow-sub"])
	case "add export":
		e := &jwt.Export{
			Name:     one("name"),
			Subject:  jwt.Subject(one("subject")),
			Type:     jwt.Stream,
			TokenReq: flags["private"] != nil,
		}
		if flags["service"] != nil {
			e.Type, e.ResponseType = jwt.Service, jwt.ResponseType(one("response-type"))
		}
		o.accounts[one("account")].claims.Exports.Add(e)
	case "generate activation":
		o.activate(o.accounts[one("account")], o.accounts[one("target-account")],
			jwt.Subject(one("subject")))
	case "add import":
		o.into(o.accounts[one("account")], one("name"), one("local-subject"))
	default:
		o.t.Fatalf("nsc %s: no such command here", command)
	}
}

func (o *operator) add(name string) {
	a := &account{key: must(nkeys.CreateAccount())(o.t)}
	a.claims = jwt.NewAccountClaims(must(a.key.PublicKey())(o.t))
	a.claims.Name = name
	o.accounts[name] = a
}

// user adds a user of an account. Without rights of its own it has those of the account.
func (o *operator) user(of *account, name string, publish, subscribe []string) {
	o.t.Helper()
	key := must(nkeys.CreateUser())(o.t)
	claims := jwt.NewUserClaims(must(key.PublicKey())(o.t))
	claims.Name = name
	claims.Pub.Allow.Add(publish...)
	claims.Sub.Allow.Add(subscribe...)
	signed, seed := must(claims.Encode(of.key))(o.t), must(key.Seed())(o.t)
	o.users[name] = nats.UserJWTAndSeed(signed, string(seed))
}

// activate lets one account import what another exports privately.
func (o *operator) activate(from, to *account, subject jwt.Subject) {
	o.t.Helper()
	for _, e := range from.claims.Exports {
		if e.Subject == subject && e.TokenReq {
			claims := jwt.NewActivationClaims(to.claims.Subject)
			claims.ImportSubject, claims.ImportType = subject, e.Type
			o.token = must(claims.Encode(from.key))(o.t)
			return
		}
	}
	o.t.Fatalf("no private export of %s", subject)
}

// into adds the import that was activated last.
func (o *operator) into(a *account, name, local string) {
	o.t.Helper()
	activation := must(jwt.DecodeActivationClaims(o.token))(o.t)
	if activation.Subject != a.claims.Subject {
		o.t.Fatalf("import %s: the activation is another account's", name)
	}
	a.claims.Imports.Add(&jwt.Import{
		Name:         name,
		Subject:      activation.ImportSubject,
		LocalSubject: jwt.RenamingSubject(local),
		Account:      activation.Issuer,
		Type:         activation.ImportType,
		Token:        o.token,
	})
}

// settings are a server's, with all accounts in them.
func (o *operator) settings(folder string) string {
	o.t.Helper()
	claims := jwt.NewOperatorClaims(must(o.key.PublicKey())(o.t))
	claims.SystemAccount = o.accounts["SYS"].claims.Subject
	var preload strings.Builder
	for _, a := range o.accounts {
		var found jwt.ValidationResults
		if a.claims.Validate(&found); found.IsBlocking(true) {
			o.t.Fatalf("account %s: %v", a.claims.Name, found.Errors())
		}
		fmt.Fprintf(&preload, "  %s: %s\n", a.claims.Subject, must(a.claims.Encode(o.key))(o.t))
	}
	return fmt.Sprintf("operator: %s\nresolver: MEMORY\n"+
		"resolver_preload {\n%s}\njetstream { store_dir: %q }\n",
		must(claims.Encode(o.key))(o.t), preload.String(), folder)
}
