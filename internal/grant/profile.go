package grant

import (
	"bytes"
	"encoding/json"
	"reflect"

	"github.com/renewd/renewd/schema"
)

// volatile names members of the raw profile that move by themselves, with every refresh at some providers: no change.
var volatile = map[string]bool{"last_active_at": true}

// Changed names the fields of the profile that differ, in the order of schema.Profile: mapped fields by their JSON name,
// and "raw" if only something that is not mapped differs. Everything in now is a change from nil. What moves by itself
// (last_active_at) is left out.
func Changed(old, now *schema.Profile) []string {
	if old == nil {
		old = &schema.Profile{}
	}
	var changed []string
	a, b := reflect.ValueOf(*old), reflect.ValueOf(*now)
	for i := range a.NumField() {
		name := jsonName(a.Type().Field(i))
		if name != "raw" && !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			changed = append(changed, name)
		}
	}
	if len(changed) == 0 && !sameRaw(old.Raw, now.Raw) {
		changed = append(changed, "raw")
	}
	return changed
}

func jsonName(f reflect.StructField) string {
	name, _, _ := bytes.Cut([]byte(f.Tag.Get("json")), []byte(","))
	return string(name)
}

func sameRaw(a, b json.RawMessage) bool {
	if bytes.Equal(a, b) || sameBut(a, b) {
		return true
	}
	return reflect.DeepEqual(steady(a), steady(b))
}

// sameBut reports whether a and b, compact JSON, are the same bytes but for one number: the volatile member's. Nearly every
// profile that did not change is, and decoding both costs more than all the rest of a renewal.
func sameBut(a, b []byte) bool {
	const member = `"last_active_at":`
	i := bytes.Index(a, []byte(member))
	if i < 0 || bytes.Count(a, []byte("last_active_at")) != 1 || !bytes.HasPrefix(b, a[:i+len(member)]) || !outermost(a[:i]) {
		return false
	}
	digits := func(raw []byte) []byte { return bytes.TrimLeft(raw[i+len(member):], "0123456789") }
	x, y := digits(a), digits(b)
	return len(x) > 0 && (x[0] == ',' || x[0] == '}') && bytes.Equal(x, y)
}

// outermost reports whether what follows front is a member of the whole, by its braces. One in a text only makes the slow way
// be taken.
func outermost(front []byte) bool {
	return bytes.Count(front, []byte("{"))-bytes.Count(front, []byte("}")) == 1 && bytes.Count(front, []byte("[")) == bytes.Count(front, []byte("]"))
}

// steady decodes raw without its volatile members.
func steady(raw json.RawMessage) any {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil {
		return string(raw)
	}
	if m, ok := v.(map[string]any); ok {
		for name := range volatile {
			delete(m, name)
		}
	}
	return v
}
