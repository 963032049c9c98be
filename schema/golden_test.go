package schema_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/schema"
)

// goldens is the folder of released examples, one message a file. Files are added, never edited or
// removed: streams hold events for years, and each one must be readable for as long.
const goldens = "testdata/events/v1"

// golden is a message as it is on the wire; the body is kept readable.
type golden struct {
	Subject string            `json:"subject"`
	Header  map[string]string `json:"header"`
	Body    json.RawMessage   `json:"body"`
}

func (g golden) header() schema.Header {
	h := schema.Header{}
	for name, v := range g.Header {
		h[name] = []string{v}
	}
	return h
}

func (g golden) decode() (schema.Event, error) {
	return schema.Subjects{}.Decode(g.header(), g.Body, schema.Arrival{
		Subject:  g.Subject,
		Stream:   "REQUESTS",
		Sequence: 4711,
		Time:     time.Date(2026, 11, 2, 8, 30, 0, 0, time.UTC),
	})
}

func readGoldens(t testing.TB) map[string]golden {
	t.Helper()
	found := map[string]golden{}
	files, err := fs.Glob(os.DirFS(goldens), "*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no released example found in", goldens, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(filepath.Join(goldens, name))
		if err != nil {
			t.Fatal(err)
		}
		var g golden
		dec := json.NewDecoder(bytes.NewReader(text))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&g); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		found[strings.TrimSuffix(name, ".json")] = g
	}
	return found
}

// Each released example validates, decodes and comes out again as it was, now and in every later
// version.
func TestReleasedExamples(t *testing.T) {
	seen := map[schema.Type]int{}
	for name, g := range readGoldens(t) {
		t.Run(name, func(t *testing.T) {
			e, err := g.decode()
			if err != nil {
				t.Fatal(err)
			}
			seen[e.Type]++
			if !strings.HasPrefix(name, string(e.Type)) {
				t.Errorf("the file's name does not start with %s", e.Type)
			}
			for _, s := range validators(t, schema.JSONSchema(e.Type)) {
				if err := s.Validate(parse(t, e.Data)); err != nil {
					t.Error(err)
				}
			}
			throughGo(t, e)
			encodedAgain(t, g, e)
		})
	}
	for _, typ := range allTypes() {
		if seen[typ] == 0 {
			t.Errorf("%s has no released example", typ)
		}
	}
}

// throughGo reads the data into its struct and writes it again: nothing may be lost.
func throughGo(t *testing.T, e schema.Event) {
	t.Helper()
	v := reflect.New(reflect.TypeOf(payloads[e.Type])).Interface()
	if err := json.Unmarshal(e.Data, v); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if !sameJSON(t, text, e.Data) {
		t.Errorf("through %T:\n%s\nwant\n%s", v, text, e.Data)
	}
}

// encodedAgain holds Encode against the example: the same headers in binary mode, the same event in
// every mode. The Nats-Msg-Id is the publisher's own affair, so examples from before MessageID have
// the ce-id there.
func encodedAgain(t *testing.T, g golden, e schema.Event) {
	t.Helper()
	h, body := schema.Encode(e)
	if g.Header["ce-id"] != "" {
		want := g.header()
		if want.Get("Nats-Msg-Id") == want.Get("ce-id") {
			want.Set("Nats-Msg-Id", schema.MessageID(e))
		}
		if !reflect.DeepEqual(h, want) {
			t.Errorf("headers\n%v\nwant\n%v", h, want)
		}
		if !sameJSON(t, body, g.Body) {
			t.Errorf("body %s", body)
		}
	}
	again, err := schema.Subjects{}.Decode(h, body, schema.Arrival{Subject: g.Subject})
	if err != nil {
		t.Fatal(err)
	}
	e.DataSchema = schema.DataSchema(e.Type)
	if !reflect.DeepEqual(again, e) {
		t.Errorf("again\n%+v\nwant\n%+v", again, e)
	}
}

func sameJSON(t *testing.T, a, b []byte) bool {
	t.Helper()
	return reflect.DeepEqual(parse(t, a), parse(t, b))
}

// The envelope's schema takes what is sent in structured mode.
func TestEnvelopeSchema(t *testing.T) {
	text, err := fs.ReadFile(schema.Files(), "jsonschema/envelope.json")
	if err != nil {
		t.Fatal(err)
	}
	all := validators(t, text)
	structured := 0
	for name, g := range readGoldens(t) {
		e, err := g.decode()
		if err != nil {
			t.Fatal(err)
		}
		doc, err := json.Marshal(envelope(e))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "-structured") {
			structured++
			doc = g.Body
		}
		for _, s := range all {
			if err := s.Validate(parse(t, doc)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if structured == 0 {
		t.Error("no released example is structured")
	}
	for _, bad := range []string{
		`{}`, `[]`, `{"specversion":"1.0","id":"","source":"/a","type":"user.login"}`,
		`{"specversion":"0.3","id":"1","source":"/a","type":"user.login"}`,
		`{"specversion":"1.0","id":"1","source":"/a","type":"user.login","data":"x"}`,
	} {
		for _, s := range all {
			if s.Validate(parse(t, []byte(bad))) == nil {
				t.Errorf("%s passes", bad)
			}
		}
	}
}

// envelope is e in structured mode.
func envelope(e schema.Event) map[string]any {
	doc := map[string]any{
		"specversion":     "1.0",
		"id":              e.ID,
		"source":          e.Source,
		"type":            e.Type,
		"time":            e.Time,
		"data":            e.Data,
		"datacontenttype": "application/json",
		"dataschema":      schema.DataSchema(e.Type),
	}
	if e.User != "" {
		doc["subject"] = e.User
	}
	return doc
}
