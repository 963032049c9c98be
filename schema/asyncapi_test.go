package schema_test

import (
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/renewd/renewd/schema"
)

type ref struct {
	Ref string `yaml:"$ref"`
}

type asyncAPI struct {
	Version  string `yaml:"asyncapi"`
	Channels map[string]struct {
		Address     string         `yaml:"address"`
		Description string         `yaml:"description"`
		Messages    map[string]ref `yaml:"messages"`
		Parameters  map[string]ref `yaml:"parameters"`
		JetStream   struct {
			Stream string `yaml:"stream"`
		} `yaml:"x-jetstream"`
	} `yaml:"channels"`
	Operations map[string]struct {
		Action   string `yaml:"action"`
		Channel  ref    `yaml:"channel"`
		Messages []ref  `yaml:"messages"`
	} `yaml:"operations"`
	Components struct {
		Messages map[string]struct {
			Name    string `yaml:"name"`
			Headers ref    `yaml:"headers"`
			Payload struct {
				Format string `yaml:"schemaFormat"`
				Schema ref    `yaml:"schema"`
			} `yaml:"payload"`
		} `yaml:"messages"`
		Schemas struct {
			Headers struct {
				Properties map[string]any `yaml:"properties"`
			} `yaml:"headers"`
		} `yaml:"schemas"`
	} `yaml:"components"`
	JetStream struct {
		Streams map[string]struct {
			Subjects []string `yaml:"subjects"`
		} `yaml:"streams"`
	} `yaml:"x-jetstream"`
}

func readAsyncAPI(t *testing.T) (doc asyncAPI, tree any) {
	t.Helper()
	text, err := fs.ReadFile(schema.Files(), "asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	return doc, tree
}

// Types, channels, operations and messages of the document are the same set, with the subjects that
// the code writes.
func TestAsyncAPIMatchesTheCode(t *testing.T) {
	doc, _ := readAsyncAPI(t)
	if !strings.HasPrefix(doc.Version, "3.") {
		t.Errorf("AsyncAPI %q", doc.Version)
	}
	types := allTypes()
	const asked, told = 1, 3 // beside events: token.get, and that with its two answers
	if len(doc.Channels) != len(types)+2 || len(doc.Operations) != len(types)+asked ||
		len(doc.Components.Messages) != len(types)+told {
		t.Errorf("%d types, %d channels, %d operations, %d messages", len(types), len(doc.Channels),
			len(doc.Operations), len(doc.Components.Messages))
	}
	for _, typ := range types {
		name := string(typ)
		channel, ok := doc.Channels[name]
		if !ok {
			t.Errorf("%s has no channel", name)
			continue
		}
		user := strings.Contains(channel.Address, "{user}")
		subject := strings.NewReplacer("{provider}", "propelauth", "{user}",
			schema.EscapeUser("jane@example.com")).Replace(channel.Address)
		if a, err := (schema.Subjects{}).Parse(subject); err != nil || a.Type != typ ||
			(a.User != "") != user {
			t.Errorf("%s: address %q: %+v %v", name, channel.Address, a, err)
		}
		for parameter, r := range channel.Parameters {
			if !strings.Contains(channel.Address, "{"+parameter+"}") ||
				r.Ref != "#/components/parameters/"+parameter {
				t.Errorf("%s: parameter %s: %q", name, parameter, r.Ref)
			}
		}
		if len(channel.Parameters) != strings.Count(channel.Address, "{") {
			t.Errorf("%s: parameters %v", name, channel.Parameters)
		}
		if len(channel.Messages) != 1 ||
			channel.Messages[name].Ref != "#/components/messages/"+name {
			t.Errorf("%s: messages %v", name, channel.Messages)
		}
		action := "send"
		if slices.Contains(schema.Commands(), typ) {
			action = "receive"
		}
		if op := doc.Operations[action+"."+
			name]; op.Action != action || op.Channel.Ref != "#/channels/"+name ||
			!slices.Equal(op.Messages, []ref{{"#/channels/" + name + "/messages/" + name}}) {
			t.Errorf("%s: operation %+v", name, op)
		}
		message := doc.Components.Messages[name]
		if message.Name != name || message.Payload.Schema.Ref != "./jsonschema/"+name+".json" ||
			message.Payload.Format != "application/schema+json;version=draft-07" ||
			message.Headers.Ref != "#/components/schemas/headers" {
			t.Errorf("%s: message %+v", name, message)
		}
	}
}

// Every type has its stream, whose subjects are the filters that the code makes.
func TestAsyncAPIStreams(t *testing.T) {
	doc, _ := readAsyncAPI(t)
	want := map[string][]string{}
	for _, typ := range allTypes() {
		filters := []string{schema.Subjects{}.Filter(typ, "", "")}
		// Malformed subjects too, so that these commands are rejected, and seen.
		if slices.Contains(schema.Commands(), typ) {
			filters = []string{
				schema.Subjects{}.Commands(typ, ""),
				schema.Subjects{}.Commands(typ, schema.AnySender),
			}
		}
		stream := doc.Channels[string(typ)].JetStream.Stream
		want[stream] = append(want[stream], filters...)
	}
	for name, stream := range doc.JetStream.Streams {
		got := slices.Clone(stream.Subjects)
		slices.Sort(got)
		slices.Sort(want[name])
		if !slices.Equal(got, want[name]) {
			t.Errorf("%s: subjects %q, want %q", name, got, want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("streams that are not described: %v", want)
	}
}

// The headers described are those that Encode writes, and the two of W3C trace context.
func TestAsyncAPIHeaders(t *testing.T) {
	doc, _ := readAsyncAPI(t)
	want := map[string]bool{"traceparent": true, "tracestate": true}
	h, _ := schema.Encode(schema.Event{
		ID:     "1",
		Source: "/a",
		Type:   schema.UserSynced,
		User:   "u",
		Time:   instant,
		Data:   []byte("{}"),
	})
	for _, name := range h.Keys() {
		want[name] = name != "content-type" // said twice, once is enough
	}
	delete(want, "content-type")
	for name := range doc.Components.Schemas.Headers.Properties {
		if !want[name] {
			t.Errorf("%s is described, not written", name)
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("%s is not described", name)
	}
}

// No reference leads nowhere, and no schema file is left out.
func TestAsyncAPIReferences(t *testing.T) {
	_, tree := readAsyncAPI(t)
	files := map[string]bool{}
	count := 0
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if target, ok := v["$ref"].(string); ok {
				count++
				if file, ok := strings.CutPrefix(target, "./"); ok {
					files[path.Base(file)] = true
					if _, err := fs.Stat(schema.Files(), file); err != nil {
						t.Error(err)
					}
				} else if !pointsInto(tree, target) {
					t.Errorf("%s leads nowhere", target)
				}
			}
			for _, child := range v {
				walk(child)
			}
		case []any:
			for _, child := range v {
				walk(child)
			}
		}
	}
	walk(tree)
	if count == 0 {
		t.Fatal("no reference found")
	}
	entries, err := fs.ReadDir(schema.Files(), "jsonschema")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !files[e.Name()] {
			t.Errorf("nothing refers to %s", e.Name())
		}
	}
}

func pointsInto(tree any, target string) bool {
	rest, ok := strings.CutPrefix(target, "#/")
	for name := range strings.SplitSeq(rest, "/") {
		m, isMap := tree.(map[string]any)
		if !isMap {
			return false
		}
		tree, isMap = m[name]
		ok = ok && isMap
	}
	return ok
}
