package schema_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/renewd/renewd/schema"
)

// payloads pairs each type with the Go type of its data.
var payloads = map[schema.Type]any{
	schema.UserLogin:          schema.Login{},
	schema.UserRefreshDue:     schema.RefreshDue{},
	schema.UserSynced:         schema.Synced{},
	schema.UserReauthRequired: schema.ReauthRequired{},
	schema.UserRefreshFailed:  schema.RefreshFailed{},
	schema.UserLogout:         schema.Logout{},
	schema.UserSignedOut:      schema.SignedOut{},
	schema.UserSuspend:        schema.Suspend{},
	schema.UserResume:         schema.Resume{},
	schema.UserSuspended:      schema.Suspended{},
	schema.UserForgotten:      schema.Forgotten{},
	schema.MessageRejected:    schema.Rejected{},
	schema.ProviderDegraded:   schema.ProviderState{},
	schema.ProviderRecovered:  schema.ProviderState{},
	schema.OperatorActed:      schema.Acted{},
	schema.TokenRead:          schema.Reading{},
}

// readers pairs each type with what reads its data.
var readers = map[schema.Type]func(schema.Event) error{
	schema.UserLogin:          read[schema.Login],
	schema.UserRefreshDue:     read[schema.RefreshDue],
	schema.UserSynced:         read[schema.Synced],
	schema.UserReauthRequired: read[schema.ReauthRequired],
	schema.UserRefreshFailed:  read[schema.RefreshFailed],
	schema.UserLogout:         read[schema.Logout],
	schema.UserSignedOut:      read[schema.SignedOut],
	schema.UserSuspend:        read[schema.Suspend],
	schema.UserResume:         read[schema.Resume],
	schema.UserSuspended:      read[schema.Suspended],
	schema.UserForgotten:      read[schema.Forgotten],
	schema.MessageRejected:    read[schema.Rejected],
	schema.ProviderDegraded:   read[schema.ProviderState],
	schema.ProviderRecovered:  read[schema.ProviderState],
	schema.OperatorActed:      read[schema.Acted],
	schema.TokenRead:          read[schema.Reading],
}

func read[T any](e schema.Event) error {
	_, err := schema.Data[T](e)
	return err
}

// The data of another event signs no user out: each struct takes only data of the types it is for.
func TestDataIsOfItsType(t *testing.T) {
	for _, of := range append(allTypes(), "", "user.unheard_of") {
		e := schema.Event{
			Type: of,
			Data: json.RawMessage(`{"tokens":"t","version":7,"reason":"revoked"}`),
		}
		for _, as := range allTypes() {
			reader := readers[as]
			if reader == nil {
				t.Fatalf("%s has no reader in this test", as)
			}
			own := payloads[of] != nil &&
				reflect.TypeOf(payloads[of]) == reflect.TypeOf(payloads[as])
			err := reader(e)
			if own != (err == nil) {
				t.Errorf("%s read as that of %s: %v", of, as, err)
			}
			if bad, ok := errors.AsType[*schema.Malformed](err); err != nil &&
				(!ok || bad.Field != "type" || !strings.Contains(bad.Message, string(of))) {
				t.Errorf("%s read as that of %s: %v", of, as, err)
			}
		}
		if err := read[map[string]any](e); err != nil {
			t.Errorf("%s read as anything: %v", of, err)
		}
	}
}

// drafts are the versions of JSON Schema that the files must mean the same in.
var drafts = map[string]*jsonschema.Draft{
	"http://json-schema.org/draft-07/schema#":      jsonschema.Draft7,
	"https://json-schema.org/draft/2020-12/schema": jsonschema.Draft2020,
}

func allTypes() []schema.Type { return append(schema.Commands(), schema.Outcomes()...) }

// parse reads JSON as the validator wants it.
func parse(t testing.TB, text []byte) any {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("parse %.80s: %v", text, err)
	}
	return doc
}

// compile makes a validator of the schema text under one draft, with formats asserted.
func compile(t testing.TB, doc any, draft string) *jsonschema.Schema {
	t.Helper()
	m := maps.Clone(doc.(map[string]any))
	m["$schema"] = draft
	c := jsonschema.NewCompiler()
	c.DefaultDraft(drafts[draft])
	c.AssertFormat()
	id := m["$id"].(string)
	if err := c.AddResource(id, m); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(id)
	if err != nil {
		t.Fatalf("compile %s: %v", id, err)
	}
	return s
}

// validators compiles one schema file under every draft.
func validators(t testing.TB, text []byte) []*jsonschema.Schema {
	t.Helper()
	var all []*jsonschema.Schema
	for draft := range drafts {
		all = append(all, compile(t, parse(t, text), draft))
	}
	return all
}

// objects calls visit for every schema inside doc that describes an object's members.
func objects(doc any, visit func(map[string]any)) {
	switch v := doc.(type) {
	case map[string]any:
		if _, ok := v["properties"].(map[string]any); ok {
			visit(v)
		}
		for _, name := range slices.Sorted(maps.Keys(v)) {
			objects(v[name], visit)
		}
	case []any:
		for _, e := range v {
			objects(e, visit)
		}
	}
}

func memberNames(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }

// The list of types is the list of constants: read from the source, so that a new constant cannot
// be left out.
func TestTypesAreComplete(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "subject.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var declared []schema.Type
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); ok && id.Name == "Type" {
			text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			declared = append(declared, schema.Type(text))
		}
		return true
	})
	listed := allTypes()
	slices.Sort(declared)
	slices.Sort(listed)
	if len(declared) == 0 || !slices.Equal(declared, listed) {
		t.Errorf("constants %q, listed %q", declared, listed)
	}
	for _, typ := range listed {
		if !typ.Known() {
			t.Errorf("%s is not Known", typ)
		}
		if payloads[typ] == nil {
			t.Errorf("%s has no payload in this test", typ)
		}
	}
	for _, typ := range []schema.Type{
		"", "user", "user.synced.", "USER.LOGIN", schema.CauseTimer, schema.CauseRepair,
	} {
		if typ.Known() || schema.JSONSchema(typ) != nil || schema.DataSchema(typ) != "" {
			t.Errorf("%q passes for a type", typ)
		}
	}
}

func TestFilesAndTypesMatch(t *testing.T) {
	var want []string
	for _, typ := range allTypes() {
		want = append(want, string(typ)+".json")
		var head struct {
			ID    string `json:"$id"`
			Draft string `json:"$schema"`
		}
		if err := json.Unmarshal(schema.JSONSchema(typ), &head); err != nil {
			t.Fatalf("%s: %v", typ, err)
		}
		if head.ID != schema.DataSchema(typ) {
			t.Errorf("%s: $id %q, DataSchema %q", typ, head.ID, schema.DataSchema(typ))
		}
		if drafts[head.Draft] == nil {
			t.Errorf("%s: $schema %q", typ, head.Draft)
		}
	}
	want = append(want, "envelope.json")
	slices.Sort(want)
	var got []string
	entries, err := fs.ReadDir(schema.Files(), "jsonschema")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
}

// The keywords that mean the same in draft-07 and in 2020-12. A $ref stands alone, because draft-07
// ignores its neighbours.
var keywords = []string{
	"$schema", "$id", "$ref", "$defs", "title", "description", "type", "format", "properties",
	"required", "additionalProperties",
	"items", "const", "pattern", "minimum", "maximum", "minLength", "maxLength",
}

func TestSchemasStayInTheCommonSubsetAndLax(t *testing.T) {
	defs := map[string][]byte{}
	var check func(t *testing.T, at string, node map[string]any)
	check = func(t *testing.T, at string, node map[string]any) {
		for name := range node {
			if !slices.Contains(keywords, name) {
				t.Errorf("%s: keyword %q", at, name)
			}
		}
		if _, ok := node["$ref"]; ok && len(node) != 1 {
			t.Errorf("%s: $ref with neighbours", at)
		}
		if node["$ref"] == nil && node["description"] == nil {
			if _, ok := node["title"]; !ok && !strings.HasSuffix(at, "/items") {
				t.Errorf("%s: no description", at)
			}
		}
		properties, _ := node["properties"].(map[string]any)
		if properties != nil && node["additionalProperties"] != true {
			t.Errorf("%s: not lax", at)
		}
		for _, group := range []string{"properties", "$defs"} {
			children, _ := node[group].(map[string]any)
			for name, child := range children {
				check(t, at+"/"+group+"/"+name, child.(map[string]any))
			}
			if group != "$defs" {
				continue
			}
			for name, child := range children {
				text, _ := json.Marshal(child)
				if old, seen := defs[name]; seen && !bytes.Equal(old, text) {
					t.Errorf("%s: definition %s differs from that of another file", at, name)
				}
				defs[name] = text
			}
		}
		if items, ok := node["items"].(map[string]any); ok {
			check(t, at+"/items", items)
		}
	}
	files, err := fs.Glob(schema.Files(), "jsonschema/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no schema found", err)
	}
	for _, name := range files {
		text, err := fs.ReadFile(schema.Files(), name)
		if err != nil {
			t.Fatal(err)
		}
		check(t, path.Base(name), parse(t, text).(map[string]any))
		validators(t, text)
	}
}

// Struct and schema say the same: a value with every field set has every member of the schema, and
// no other.
func TestStructsMatchSchemas(t *testing.T) {
	for _, typ := range allTypes() {
		t.Run(string(typ), func(t *testing.T) {
			v := reflect.New(reflect.TypeOf(payloads[typ])).Elem()
			fill(t, string(typ), v)
			if typ == schema.UserLogin {
				v.FieldByName("Tokens").SetString("aGVhZA..aXY.Ym9keQ.dGFn")
			}
			full, err := json.Marshal(v.Interface())
			if err != nil {
				t.Fatal(err)
			}
			strict := parse(t, schema.JSONSchema(typ))
			objects(strict, func(o map[string]any) {
				o["additionalProperties"] = false
				var all []any
				for _, name := range memberNames(o["properties"].(map[string]any)) {
					all = append(all, name)
				}
				o["required"] = all
			})
			for draft := range drafts {
				if err := compile(t, strict, draft).Validate(parse(t, full)); err != nil {
					t.Errorf("%s: %v\n%s", draft, err, full)
				}
			}
		})
	}
}

// fill sets every field below v to something, and fails on a kind it does not know.
func fill(t *testing.T, at string, v reflect.Value) {
	t.Helper()
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = time.Date(2026, 11, 2, 8, 30, 0, 5e8, time.UTC)
		return
	case *json.RawMessage:
		*x = json.RawMessage(`{"any":1}`)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, at+"."+v.Type().Field(i).Name, v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, at, v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(t, at+"[0]", v.Index(0))
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	default:
		t.Fatalf("%s: teach this test to fill a %s", at, v.Kind())
	}
	if v.IsZero() {
		t.Fatalf("%s was left zero", at)
	}
}

// A member is required if and only if the struct always writes it.
func TestRequiredIsWhatIsAlwaysWritten(t *testing.T) {
	for _, typ := range allTypes() {
		empty, err := json.Marshal(payloads[typ])
		if err != nil {
			t.Fatal(err)
		}
		var written map[string]any
		if err := json.Unmarshal(empty, &written); err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Required []string `json:"required"`
		}
		if err := json.Unmarshal(schema.JSONSchema(typ), &doc); err != nil {
			t.Fatal(err)
		}
		slices.Sort(doc.Required)
		if !slices.Equal(doc.Required, memberNames(written)) {
			t.Errorf("%s: required %q, always written %q", typ, doc.Required, memberNames(written))
		}
	}
}

// No outcome has a place for a token, sealed or not.
func TestOutcomesHaveNoPlaceForTokens(t *testing.T) {
	secret := regexp.MustCompile(`token|secret|password|credential|key`)
	seen := 0
	for _, typ := range schema.Outcomes() {
		objects(parse(t, schema.JSONSchema(typ)), func(o map[string]any) {
			for _, name := range memberNames(o["properties"].(map[string]any)) {
				seen++
				if secret.MatchString(name) && name != "has_password" {
					t.Errorf("%s: %s", typ, name)
				}
			}
		})
	}
	if seen == 0 {
		t.Error("no member found")
	}
}

// Every known value of an open list stands in the text of the schema that has it.
func TestDescriptionsNameTheKnownReasons(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "event.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var text string
	for _, typ := range allTypes() {
		text += string(schema.JSONSchema(typ))
	}
	found := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		if lit, ok := spec.Values[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
			found++
			value, _ := strconv.Unquote(lit.Value)
			if !regexp.MustCompile(`\b` + regexp.QuoteMeta(value) + `\b`).MatchString(text) {
				t.Errorf("%s = %q stands in no description", spec.Names[0], value)
			}
		}
		return true
	})
	if found < 20 {
		t.Errorf("found %d constants only", found)
	}
}
