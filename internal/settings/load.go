package settings

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// ByEnv names the operator where a script runs the commands.
const ByEnv = "RENEWD_BY"

// loader fills in the settings layer by layer: defaults, file, environment. It gathers every
// mistake, so that an operator sees all of them at once.
type loader struct {
	c        *Settings
	env      map[string]string
	mistakes []error
	wrong    []string // names of the settings with a mistake
}

// Load reads the settings from the file (empty: the file of RENEWD_CONFIG) and the environment. The
// error lists every mistake, each with the name of its setting.
func Load(file string, environ []string) (*Settings, error) {
	l := &loader{c: &Settings{file: file, origins: map[string]string{}}, env: map[string]string{}}
	for _, kv := range environ {
		if name, value, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(name, "RENEWD_") {
			l.env[name] = value
		}
	}
	if file == "" {
		l.c.file = l.env[configEnv]
	}
	l.defaults(reflect.ValueOf(l.c).Elem(), mainTable())
	if l.c.file != "" {
		l.readFile(l.c.file)
	}
	l.fromEnv(reflect.ValueOf(l.c).Elem(), mainTable(), "")
	l.providerFromEnv()
	l.unknownEnv()
	l.check()
	if err := errors.Join(l.mistakes...); err != nil {
		return nil, err
	}
	return l.c, nil
}

// check adds the mistakes between settings. A setting with a mistake has its default here, or the
// file's value, so no second mistake is reported for it.
func (l *loader) check() {
	for _, m := range l.c.check() {
		text := m.err.Error()
		about := func(name string) bool {
			return name == m.setting || strings.Contains(text, unindexed(name))
		}
		if !slices.ContainsFunc(l.wrong, about) {
			l.mistakes = append(l.mistakes, fmt.Errorf("%s: %w", l.c.Name(m.setting), m.err))
			l.wrong = append(l.wrong, m.setting)
		}
	}
}

// unindexed is a setting's name without the path before it.
func unindexed(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// bad is a mistake about one setting.
func (l *loader) bad(where, setting, format string, args ...any) {
	l.wrong = append(l.wrong, setting)
	if where != setting && !strings.HasPrefix(where, "RENEWD_") {
		where += ": " + setting
	}
	l.mistake(where, format, args...)
}

func (l *loader) mistake(where, format string, args ...any) {
	l.mistakes = append(l.mistakes, fmt.Errorf(where+": "+format, args...))
}

func (l *loader) defaults(target reflect.Value, rows []setting) {
	for _, r := range rows {
		if r.def == "" {
			continue
		}
		if err := r.put(target, r.def); err != nil {
			// A test reads every default.
			panic("settings: default of " + r.key + ": " + err.Error())
		}
	}
}

func (l *loader) newProvider() Provider {
	var p Provider
	l.defaults(reflect.ValueOf(&p).Elem(), providerTable())
	l.defaults(reflect.ValueOf(&p.Policy).Elem(), policyTable())
	l.defaults(reflect.ValueOf(&p.Guard).Elem(), guardTable())
	return p
}

// readFile applies the settings file. The document is walked, not decoded, to name the line and the
// nearest known setting of each mistake.
func (l *loader) readFile(path string) {
	f, err := os.Open(path)
	if err != nil {
		hint := "point --config at the settings file, or leave it out"
		if path == l.env[configEnv] {
			hint = "point " + configEnv + " at the settings file, or unset it"
		}
		l.mistakes = append(l.mistakes, fmt.Errorf("%w: %s", err, hint))
		return
	}
	defer f.Close()
	var doc yaml.Node
	if err := yaml.NewDecoder(f).Decode(&doc); err != nil {
		if !errors.Is(err, io.EOF) {
			if strings.Contains(err.Error(), "cannot start any token") {
				err = fmt.Errorf("%w: is there a tab? YAML indents with spaces", err)
			}
			l.mistake(path, "%w", err)
		}
		return
	}
	l.mapping(doc.Content[0], reflect.ValueOf(l.c).Elem(), mainTable(), "",
		map[string]func(*yaml.Node, string){"providers": l.providers})
}

// mapping applies a YAML mapping to target. nested names the keys with more than one value.
func (l *loader) mapping(
	n *yaml.Node, target reflect.Value, rows []setting, path string,
	nested map[string]func(*yaml.Node, string),
) {
	if n.Kind != yaml.MappingNode {
		l.mistake(l.line(n), "%swant a mapping of settings to values", named(path))
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if seen[key.Value] {
			l.mistake(l.line(key), "%s%s: set twice", path, key.Value)
		}
		seen[key.Value] = true
		if f := nested[key.Value]; f != nil {
			f(value, path+key.Value)
			continue
		}
		l.scalar(key, value, target, rows, path, nested)
	}
	for _, r := range rows {
		if r.secret && seen[r.key] && seen[r.key+"_file"] {
			l.mistake(l.line(n), "%s%s: set either it or %s_file", path, r.key, r.key)
		}
	}
}

func (l *loader) scalar(
	key, value *yaml.Node, target reflect.Value, rows []setting, path string,
	nested map[string]func(*yaml.Node, string),
) {
	name := path + key.Value
	i := slices.IndexFunc(rows, func(r setting) bool {
		return r.key == key.Value || r.secret && r.key+"_file" == key.Value
	})
	if i < 0 {
		var known []string
		for _, r := range rows {
			known = append(known, r.key)
		}
		for k := range nested {
			known = append(known, k)
		}
		slices.Sort(known)
		hint := DidYouMean(key.Value, known)
		for group, rows := range map[string][]setting{
			"policy": policyTable(),
			"guard":  guardTable(),
		} {
			if nested[group] != nil &&
				slices.ContainsFunc(rows, func(r setting) bool { return r.key == key.Value }) {
				hint = fmt.Sprintf(" (did you mean %s.%s?)", group, key.Value)
			}
		}
		l.mistake(l.line(key), "%s: no such setting%s", name, hint)
		return
	}
	if value = unalias(value); rows[i].nested && value.Tag != "!!null" {
		l.structure(value, target.Field(rows[i].index).Addr().Interface(), name)
		l.c.origins[name] = l.line(key)
		return
	}
	if value.Kind != yaml.ScalarNode {
		l.mistake(l.line(value), "%s: want one value", name)
		return
	}
	if value.Tag == "!!null" {
		return
	}
	text := value.Value
	if rows[i].key != key.Value {
		var err error
		if text, err = ReadSecret(text); err != nil {
			l.bad(l.line(value), name, "%w", err)
			l.wrong = append(l.wrong, path+rows[i].key)
			return
		}
	}
	if err := rows[i].put(target, text); err != nil {
		l.bad(l.line(value), name, "%w", err)
		return
	}
	l.c.origins[path+rows[i].key] = l.line(value)
}

func (l *loader) line(n *yaml.Node) string { return fmt.Sprintf("%s:%d", l.c.file, n.Line) }

func named(path string) string {
	if path == "" {
		return ""
	}
	return strings.TrimSuffix(path, ".") + ": "
}

func (l *loader) providers(n *yaml.Node, path string) {
	if n.Kind != yaml.SequenceNode {
		l.mistake(l.line(n), "%s: want a list of providers", path)
		return
	}
	for i, item := range n.Content {
		p := l.newProvider()
		l.c.origins[fmt.Sprintf("%s[%d]", path, i)] = l.line(item)
		nested := map[string]func(*yaml.Node, string){
			"policy": func(n *yaml.Node, path string) {
				l.mapping(n, reflect.ValueOf(&p.Policy).Elem(), policyTable(), path+".", nil)
			},
			"guard": func(n *yaml.Node, path string) {
				l.mapping(n, reflect.ValueOf(&p.Guard).Elem(), guardTable(), path+".", nil)
			},
		}
		l.mapping(item, reflect.ValueOf(&p).Elem(), providerTable(),
			fmt.Sprintf("%s[%d].", path, i), nested)
		l.c.Providers = append(l.c.Providers, p)
	}
}

// ReadSecret reads a secret from a file, without the line break that editors put at its end.
func ReadSecret(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	text := strings.TrimRight(string(data), "\r\n")
	if text == "" {
		return "", &fs.PathError{Op: "read", Path: path, Err: errors.New("the file is empty")}
	}
	return text, nil
}

// unknownEnv refuses every RENEWD_ variable that is no setting: a mistyped variable would otherwise
// silently leave the default.
func (l *loader) unknownEnv() {
	known := []string{configEnv, ByEnv}
	for _, r := range allSettings() {
		if r.env == "" {
			continue
		}
		known = append(known, r.env)
		if r.secret {
			known = append(known, r.env+"_FILE")
		}
	}
	var unknown []string
	for name, value := range l.env {
		forAccounts := slices.Contains(ownPasswords, name) ||
			l.c.NATSAccounts != "" && accountPassword.MatchString(name)
		if !slices.Contains(known, name) && !serviceLink(name, value) && !forAccounts {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	for _, name := range unknown {
		l.mistake(name, "no such setting%s", DidYouMean(name, known))
	}
}

// ownPasswords are the passwords of the users of renewd's account. A separate NATS server may read
// the passwords from the same environment.
var ownPasswords = []string{"RENEWD_NATS_RENEWD_PASSWORD", "RENEWD_NATS_OPERATOR_PASSWORD"}

// accountPassword is the name of a password in the file nats_accounts, as nats config prints the
// file.
var accountPassword = regexp.MustCompile(`^RENEWD_NATS_[A-Z0-9_]+_PASSWORD$`)

// serviceLink recognises the variables Kubernetes puts into the environment of every container
// beside a service named renewd.
func serviceLink(name, value string) bool {
	return strings.HasSuffix(name, "_SERVICE_HOST") ||
		strings.Contains(name+"_", "_SERVICE_PORT_") ||
		strings.Contains(name+"_", "_PORT_") &&
			(strings.Contains(value, "://") || strings.Contains(name, "_TCP_") ||
				strings.Contains(name, "_UDP_"))
}

// fromEnv applies the environment to target.
func (l *loader) fromEnv(target reflect.Value, rows []setting, path string) {
	for _, r := range rows {
		text, ok := l.env[r.env]
		file, fromFile := l.env[r.env+"_FILE"]
		fromFile = fromFile && r.secret && file != ""
		// An empty variable counts as not set: compose files pass empty variables on.
		ok = ok && text != ""
		origin := r.env
		switch {
		case ok && fromFile:
			l.mistake(r.env, "set either it or %s_FILE", r.env)
			continue
		case fromFile:
			origin += "_FILE"
			var err error
			if text, err = ReadSecret(file); err != nil {
				l.wrong = append(l.wrong, path+r.key)
				l.mistake(origin, "%w", err)
				continue
			}
		case !ok:
			continue
		}
		if err := r.put(target, text); err != nil {
			l.wrong = append(l.wrong, path+r.key)
			l.mistake(origin, "%w", err)
			continue
		}
		l.c.origins[path+r.key] = origin
	}
}

// providerFromEnv applies the environment's provider settings: to the file's provider with
// RENEWD_PROVIDER_ID, or the file's only provider, else to a new provider.
func (l *loader) providerFromEnv() {
	set := func(r setting) bool {
		return l.env[r.env] != "" || r.secret && l.env[r.env+"_FILE"] != ""
	}
	if !slices.ContainsFunc(slices.Concat(providerTable(), policyTable(), guardTable()), set) {
		return
	}
	id := l.env["RENEWD_PROVIDER_ID"]
	i := slices.IndexFunc(l.c.Providers, func(p Provider) bool { return p.ID == id })
	if id == "" && len(l.c.Providers) == 1 {
		i = 0
	}
	if i < 0 {
		i = len(l.c.Providers)
		l.c.Providers = append(l.c.Providers, l.newProvider())
	}
	path := fmt.Sprintf("providers[%d].", i)
	l.fromEnv(reflect.ValueOf(&l.c.Providers[i]).Elem(), providerTable(), path)
	l.fromEnv(reflect.ValueOf(&l.c.Providers[i].Policy).Elem(), policyTable(), path+"policy.")
	l.fromEnv(reflect.ValueOf(&l.c.Providers[i].Guard).Elem(), guardTable(), path+"guard.")
}

const configEnv = "RENEWD_CONFIG"
