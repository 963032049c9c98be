package golden

import (
	"encoding/json"
	"slices"
	"testing"
)

func TestMissing(t *testing.T) {
	for name, c := range map[string]struct {
		was, is string
		lost    []string
	}{
		"the same":          {`{"a":1,"b":{"c":[1,2]}}`, `{"b":{"c":[1,2]},"a":1}`, nil},
		"a member more":     {`{"a":{"b":1}}`, `{"a":{"b":1,"c":2},"d":3}`, nil},
		"a member less":     {`{"a":{"b":1,"c":2}}`, `{"a":{"b":1}}`, []string{".a.c is gone"}},
		"another value":     {`{"a":{"b":1}}`, `{"a":{"b":2}}`, []string{".a.b was 1, and is 2"}},
		"another in a list": {`{"a":[1,2]}`, `{"a":[1,3]}`, []string{".a was [1 2], and is [1 3]"}},
		"a number, exactly": {`{"a":1.50}`, `{"a":1.5}`, []string{".a was 1.50, and is 1.5"}},
		"null is a value":   {`{"a":null}`, `{}`, []string{".a is gone"}},
		"another kind":      {`{"a":{}}`, `{"a":"x"}`, []string{".a was map[], and is x"}},
	} {
		if lost := missing(
			"", parse(t, name, []byte(c.was)), parse(t, name, []byte(c.is)),
		); !slices.Equal(lost, c.lost) {
			t.Errorf("%s: %q, want %q", name, lost, c.lost)
		}
	}
}

func TestCheckTakesWhatIsKept(t *testing.T) {
	again := func(t *testing.T, kept []byte) []byte {
		var v map[string]any
		if err := json.Unmarshal(kept, &v); err != nil {
			t.Fatal(err)
		}
		v["new"] = true
		out, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	Check(t, "testdata/form", []byte(`{"a":2,"b":{"c":"x"}}`), again)
}
