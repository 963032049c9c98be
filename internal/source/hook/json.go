package hook

import (
	"bytes"
	"encoding/json"
	"io"
	"strconv"
	"strings"
)

// tree is a JSON value, numbers as they were written.
type tree struct{ value any }

// parse reads one JSON value and nothing after it.
func parse(body []byte) (tree, error) {
	var t tree
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := d.Decode(&t.value); err != nil {
		return t, refuse(Malformed, "the body is no JSON")
	}
	if _, err := d.Token(); err != io.EOF {
		return t, refuse(Malformed, "the body is more than one JSON value")
	}
	return t, nil
}

var unescape = strings.NewReplacer("~1", "/", "~0", "~")

// at follows a JSON pointer (RFC 6901).
func (t tree) at(pointer string) tree {
	for step := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
		switch v := t.value.(type) {
		case map[string]any:
			t.value = v[unescape.Replace(step)]
		case []any:
			n, err := strconv.Atoi(step)
			if err != nil || n < 0 || n >= len(v) {
				return tree{}
			}
			t.value = v[n]
		default:
			return tree{}
		}
	}
	return t
}

// text is the text or number at a JSON pointer; empty: no text or number.
func (t tree) text(pointer string) string {
	switch v := t.at(pointer).value.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	}
	return ""
}
