package main

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"go.yaml.in/yaml/v3"
)

// ruleSettings is one of a provider's rules: idp.Rule in the settings file.
type ruleSettings struct {
	On     string `key:"on" oneof:",token,userinfo" doc:"the endpoint whose answers are meant; empty: token"`
	Status int    `key:"status" default:"0" min:"0" max:"599" doc:"HTTP status of the answers that are meant; 0: any"`
	Code   string `key:"code" doc:"their error code, exactly; empty: answers without one"`
	Body   string `key:"body" doc:"a text in their body, in upper or lower case; empty: any"`
	Empty  bool   `key:"empty" default:"false" doc:"only answers without a body"`
	Class  string `key:"class" oneof:"ambiguous,throttled,config,permanent,unknown,refused" doc:"what they are taken for (permanent signs the user out once it is confirmed, and needs a code or a body; refused, of userinfo only: the access token is not taken, so it is refreshed)"`
	Reason string `key:"reason" doc:"of user.reauth_required, with class permanent: revoked, expired, account_disabled, account_deleted"`
}

func (r ruleSettings) rule() idp.Rule {
	return idp.Rule{UserInfo: r.On == "userinfo", Status: r.Status, Code: r.Code, Body: r.Body, Empty: r.Empty, Class: grant.Class(r.Class), Reason: r.Reason}
}

// structure applies a list or a mapping, the value of the setting name, to a field of that kind.
func (l *loader) structure(n *yaml.Node, into any, name string) {
	switch v := into.(type) {
	case *[]string:
		*v = l.texts(n, name)
	case *command:
		if *v = l.texts(n, name); n.Kind == yaml.ScalarNode {
			if err := v.parse(n.Value); err != nil {
				l.mistake(l.line(n), "%s: %w", name, err)
			}
		}
	case *map[string]string:
		*v = map[string]string{}
		l.entries(n, name, func(key, name string, value *yaml.Node) { (*v)[key] = l.oneText(value, name) })
	case *map[string][]string:
		*v = map[string][]string{}
		l.entries(n, name, func(key, name string, value *yaml.Node) { (*v)[key] = l.texts(value, name) })
	case *map[string]grant.Secret:
		*v = map[string]grant.Secret{}
		l.entries(n, name, func(key, name string, value *yaml.Node) { l.namedSecret(*v, key, name, value) })
	case *map[string]senderSettings:
		*v = map[string]senderSettings{}
		l.entries(n, name, func(key, name string, value *yaml.Node) {
			var s senderSettings
			l.mapping(value, reflect.ValueOf(&s).Elem(), senderTable(), name+".", nil)
			(*v)[key] = s
		})
	case *[]ruleSettings:
		l.items(n, name, func(name string, item *yaml.Node) {
			var r ruleSettings
			l.mapping(item, reflect.ValueOf(&r).Elem(), ruleTable(), name+".", nil)
			*v = append(*v, r)
		})
	default:
		panic("settings: " + name + ": a field of a type nobody parses")
	}
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

// texts are the values of a list, or of one value alone.
func (l *loader) texts(n *yaml.Node, name string) (out []string) {
	switch n.Kind {
	case yaml.ScalarNode:
		return []string{n.Value}
	case yaml.SequenceNode:
		l.items(n, name, func(name string, item *yaml.Node) { out = append(out, l.oneText(item, name)) })
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
// file that it is in.
func (l *loader) namedSecret(into map[string]grant.Secret, key, name string, value *yaml.Node) {
	text := l.oneText(value, name)
	if base, ok := strings.CutSuffix(key, "_file"); ok {
		var err error
		if text, err = secretFile(text); err != nil {
			l.mistake(l.line(value), "%s: %w", name, err)
		}
		key = base
	}
	if _, there := into[key]; there {
		l.mistake(l.line(value), "%s: set either it or %s_file", strings.TrimSuffix(name, "_file"), key)
	}
	into[key] = grant.NewSecret(text)
}

// structured is a list or a mapping as YAML on one line, without secrets.
func structured(value any) string {
	switch v := value.(type) {
	case []string:
		return "[" + strings.Join(quoted(v), ", ") + "]"
	case command:
		if len(v) > 1 {
			v = command{v[0], hidden} // an argument may be a password
		}
		return "[" + strings.Join(quoted(v), ", ") + "]"
	case map[string]string:
		return flow(v, strconv.Quote)
	case map[string][]string:
		return flow(v, func(list []string) string { return "[" + strings.Join(quoted(list), ", ") + "]" })
	case map[string]grant.Secret:
		return flow(v, func(s grant.Secret) string { return strconv.Quote(s.String()) })
	case map[string]senderSettings:
		return flow(v, func(s senderSettings) string {
			return members(reflect.ValueOf(s), senderTable())
		})
	case []ruleSettings:
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
