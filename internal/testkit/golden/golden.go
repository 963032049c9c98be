// Package golden compares stored or sent forms with files of earlier forms. Each file is a form
// some version wrote, kept in a package's testdata. A file is added when a form grows. No file is
// ever edited or removed, so that data of every version stays readable.
//
// The package owns no form itself, and only tests import it.
package golden

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

var update = flag.Bool("update", false,
	"add what is written today to the golden files, where no file has it yet")

// Check compares one form with the files of a folder, of which 01.json is the oldest. again reads a
// file and writes it again, as the program does with stored data. again may add to the file's
// content, but must not lose or change any of it. today is the program's output with every field
// set, as JSON. The newest file must hold all of today.
func Check(
	t *testing.T, folder string, today []byte, again func(t *testing.T, kept []byte) []byte,
) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	var newest any
	for _, file := range files {
		kept, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		newest = parse(t, file, kept)
		for _, lost := range missing("", newest, parse(t, "as written today", again(t, kept))) {
			t.Errorf("%s: %s", file, lost)
		}
	}
	added := missing("", parse(t, "today's form", today), newest)
	if len(added) == 0 {
		return
	}
	next := filepath.Join(folder, fmt.Sprintf("%02d.json", len(files)+1))
	if !*update {
		t.Fatalf("%s lacks what is written today: %v; see the flag -update", folder, added)
	}
	var text bytes.Buffer
	if err := json.Indent(&text, today, "", "  "); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(next, append(text.Bytes(), '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

func parse(t *testing.T, name string, text []byte) (v any) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

// missing names the parts of was that is lacks. Objects may have more members than before.
func missing(at string, was, is any) (lost []string) {
	members, ok := was.(map[string]any)
	now, same := is.(map[string]any)
	if !ok || !same {
		if !reflect.DeepEqual(was, is) {
			return []string{fmt.Sprintf("%s was %v, and is %v", at, was, is)}
		}
		return nil
	}
	for name, value := range members {
		other, there := now[name]
		if !there {
			lost = append(lost, fmt.Sprintf("%s.%s is gone", at, name))
			continue
		}
		lost = append(lost, missing(at+"."+name, value, other)...)
	}
	return lost
}

// Filled fails for an empty field, since a golden file does not hold a field that a form leaves
// out.
func Filled(t *testing.T, form any, but ...string) {
	t.Helper()
	v := reflect.ValueOf(form)
	empty := map[string]bool{}
	for i := range v.NumField() {
		empty[v.Type().Field(i).Name] = v.Field(i).IsZero()
	}
	for _, name := range but {
		delete(empty, name)
	}
	for name, is := range empty {
		if is {
			t.Errorf("%s of %T is empty: set it here", name, form)
		}
	}
}

// Encode is a form as JSON.
func Encode(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Decode reads a form back.
func Decode[T any](t *testing.T, raw []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}
