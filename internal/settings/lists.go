package settings

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/renewd/renewd/internal/secret"
)

// structure applies a list or a mapping, the value of the setting name, to a field of the same
// kind.
func (l *loader) structure(n *yaml.Node, into any, name string) {
	switch v := into.(type) {
	case *[]string:
		*v = l.texts(n, name)
	case *Command:
		if *v = l.texts(n, name); n.Kind == yaml.ScalarNode {
			if err := v.parse(n.Value); err != nil {
				l.mistake(l.line(n), "%s: %w", name, err)
			}
		}
	case *map[string]string:
		*v = map[string]string{}
		l.entries(n, name, func(key, name string, value *yaml.Node) {
			(*v)[key] = l.oneText(value, name)
		})
	case *map[string][]string:
		*v = map[string][]string{}
		l.entries(n, name, func(key, name string, value *yaml.Node) {
			(*v)[key] = l.texts(value, name)
		})
	case *map[string]secret.Value:
		*v = map[string]secret.Value{}
		l.entries(n, name, func(key, name string, value *yaml.Node) {
			l.namedSecret(*v, key, name, value)
		})
	case *map[string]Sender:
		*v = listed[Sender](l, n, name, senderTable())
	case *map[string]HTTPClient:
		*v = listed[HTTPClient](l, n, name, clientTable())
	case *map[string]Sink:
		*v = listed[Sink](l, n, name, sinkTable())
	case *map[string]Source:
		*v = listed[Source](l, n, name, sourceTable())
	case *[]Rule:
		l.items(n, name, func(name string, item *yaml.Node) {
			var r Rule
			l.mapping(item, reflect.ValueOf(&r).Elem(), ruleTable(), name+".", nil)
			*v = append(*v, r)
		})
	default:
		panic("settings: " + name + ": a field of a type that has no parser")
	}
}

// listed reads a mapping of names to entries, each with the settings of the table.
func listed[T any](l *loader, n *yaml.Node, name string, table []setting) map[string]T {
	all := map[string]T{}
	l.entries(n, name, func(key, name string, value *yaml.Node) {
		var one T
		into := reflect.ValueOf(&one).Elem()
		l.defaults(into, table)
		l.mapping(value, into, table, name+".", nil)
		all[key] = one
	})
	return all
}

// entries calls each for the entries of a mapping.
func (l *loader) entries(n *yaml.Node, name string, each func(key, name string, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		l.mistake(l.line(n), "%s: want a mapping of names to values", name)
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if seen[key.Value] {
			l.mistake(l.line(key), "%s.%s: set twice", name, key.Value)
		}
		seen[key.Value] = true
		each(key.Value, name+"."+key.Value, unalias(n.Content[i+1]))
	}
}

// items calls each for the items of a list.
func (l *loader) items(n *yaml.Node, name string, each func(name string, item *yaml.Node)) {
	if n.Kind != yaml.SequenceNode {
		l.mistake(l.line(n), "%s: want a list", name)
		return
	}
	for i, item := range n.Content {
		each(fmt.Sprintf("%s[%d]", name, i), unalias(item))
	}
}

func unalias(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// texts are the values of a list, or a single value.
func (l *loader) texts(n *yaml.Node, name string) (out []string) {
	switch n.Kind {
	case yaml.ScalarNode:
		return []string{n.Value}
	case yaml.SequenceNode:
		l.items(n, name, func(name string, item *yaml.Node) {
			out = append(out, l.oneText(item, name))
		})
	default:
		l.mistake(l.line(n), "%s: want one value, or a list", name)
	}
	return out
}

func (l *loader) oneText(n *yaml.Node, name string) string {
	if n.Kind != yaml.ScalarNode {
		l.mistake(l.line(n), "%s: want one value", name)
		return ""
	}
	return n.Value
}

// namedSecret reads an entry of a mapping of secrets: the secret, or under key_file the name of the
// secret's file.
func (l *loader) namedSecret(into map[string]secret.Value, key, name string, value *yaml.Node) {
	text := l.oneText(value, name)
	if base, ok := strings.CutSuffix(key, "_file"); ok {
		var err error
		if text, err = ReadSecret(text); err != nil {
			l.mistake(l.line(value), "%s: %w", name, err)
		}
		key = base
	}
	if _, there := into[key]; there {
		l.mistake(l.line(value), "%s: set either it or %s_file",
			strings.TrimSuffix(name, "_file"), key)
	}
	into[key] = secret.New(text)
}

// structured is a list or a mapping as YAML on one line, without secrets.
func structured(value any) string {
	switch v := value.(type) {
	case []string:
		return "[" + strings.Join(quoted(v), ", ") + "]"
	case Command:
		if len(v) > 1 {
			v = Command{v[0], hidden} // an argument may be a password
		}
		return "[" + strings.Join(quoted(v), ", ") + "]"
	case map[string]string:
		return flow(v, strconv.Quote)
	case map[string][]string:
		return flow(v, func(list []string) string {
			return "[" + strings.Join(quoted(list), ", ") + "]"
		})
	case map[string]secret.Value:
		return flow(v, func(s secret.Value) string { return strconv.Quote(s.String()) })
	case map[string]Sender:
		return flow(v, func(s Sender) string {
			return members(reflect.ValueOf(s), senderTable())
		})
	case map[string]HTTPClient:
		return flow(v, func(c HTTPClient) string {
			return members(reflect.ValueOf(c), clientTable())
		})
	case map[string]Sink:
		return flow(v, func(s Sink) string { return members(reflect.ValueOf(s), sinkTable()) })
	case map[string]Source:
		return flow(v, func(s Source) string { return members(reflect.ValueOf(s), sourceTable()) })
	case []Rule:
		var all []string
		for _, rule := range v {
			all = append(all, members(reflect.ValueOf(rule), ruleTable()))
		}
		return "[" + strings.Join(all, ", ") + "]"
	}
	return fmt.Sprint(value)
}

// members is a struct of settings as a mapping.
func members(from reflect.Value, rows []setting) string {
	var all []string
	for _, r := range rows {
		all = append(all, r.key+": "+r.text(from))
	}
	return "{" + strings.Join(all, ", ") + "}"
}

func flow[T any](m map[string]T, text func(T) string) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		all = append(all, strconv.Quote(name)+": "+text(m[name]))
	}
	return "{" + strings.Join(all, ", ") + "}"
}

func quoted(list []string) (out []string) {
	for _, s := range list {
		out = append(out, strconv.Quote(s))
	}
	return out
}
