// Package golden holds what is stored or sent against files of what was: each is a form that some
// version wrote, kept in a package's testdata. A file is added when a form grows, and none is ever
// edited or removed, so that data of every version stays readable.
//
// It owns no form itself, and only tests import it.
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

var update = flag.Bool("update", false, "add what is written today to the golden files, where no file has it yet")

// Check holds one form against the files of a folder: 01.json is the oldest. again reads a file as
// the program reads what is stored, and writes it as the program does. Nothing that the file says
// may be lost or changed by that, but what is added is fine. today is what the program writes with
// every field set, as JSON: the newest file must say all of it.
func Check(t *testing.T, folder string, today []byte, again func(t *testing.T, kept []byte) []byte) {
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

// missing names what was says and is does not. Objects may have more members than they had.
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
