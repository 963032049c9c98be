package grant

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/renewd/renewd/schema"
)

// Profile is a schema.Profile as compact JSON, the form in which profiles are stored, compared and
// published. A Profile is hardly ever decoded, since hardly any profile changes. The zero Profile
// means that no profile is known.
type Profile string

// NewProfile encodes p. The encoding fails if p.Raw is not JSON.
func NewProfile(p schema.Profile) (Profile, error) {
	var text strings.Builder // the builder's text is not copied, as Marshal's would be
	if err := json.NewEncoder(&text).Encode(p); err != nil {
		return "", err
	}
	return Profile(strings.TrimSuffix(text.String(), "\n")), nil
}

// Shown says how much of a profile user.synced shows.
type Shown string

// The shown parts of a profile: nothing, the members known to renewd, or the provider's own JSON
// too.
const (
	ShowNone   Shown = "none"
	ShowMapped Shown = "mapped"
	ShowRaw    Shown = "raw"
)

// Show is p as user.synced shows it.
func (p Profile) Show(how Shown) Profile {
	switch how {
	case ShowNone:
		return ""
	case ShowRaw:
		return p
	}
	return p.withoutRaw()
}

// withoutRaw cuts the raw profile out. No text in JSON holds the member's name in quotes, and
// nothing before the member has the name. So the first match is the member.
func (p Profile) withoutRaw() Profile {
	const name = `,"raw":`
	start := strings.Index(string(p), name)
	if start < 0 {
		return p
	}
	depth, quoted := 0, false
	for i := start + len(name); i < len(p); i++ {
		switch c := p[i]; {
		case quoted && c == '\\':
			i++ // an escaped character ends no text
		case c == '"':
			quoted = !quoted
		case quoted:
		case depth == 0 && (c == ',' || c == '}'):
			return p[:start] + p[i:]
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			depth--
		}
	}
	return "" // damaged
}

// Decode is the inverse of NewProfile; nil for the zero Profile.
func (p Profile) Decode() (*schema.Profile, error) {
	if p == "" {
		return nil, nil
	}
	out := new(schema.Profile)
	if err := json.Unmarshal([]byte(p), out); err != nil {
		return nil, fmt.Errorf("profile is damaged: %w", err)
	}
	return out, nil
}

// MarshalJSON implements json.Marshaler.
func (p Profile) MarshalJSON() ([]byte, error) {
	if p == "" {
		return []byte("null"), nil
	}
	return []byte(p), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *Profile) UnmarshalJSON(raw []byte) error {
	if *p = Profile(raw); string(raw) == "null" {
		*p = ""
	}
	return nil
}

// volatile are members of the raw profile that change by themselves, with every refresh at some
// providers: no change of the user. They are PropelAuth's note of the user's last visit, and the
// claims about a token or a session, not about the user (RFC 7519, OpenID Connect Core sections 2
// and 3.3.2.11; rat is Hydra's). Dex's userinfo is the access token's claims. The issuer is steady,
// and updated_at is about the user: both count.
var volatile = []string{
	"last_active_at", "exp", "iat", "nbf", "jti", "aud", "azp", "at_hash", "c_hash", "s_hash",
	"auth_time", "nonce", "sid", "rat",
}

// Volatile reports whether a member of the raw profile moves by itself at any provider.
func Volatile(member string) bool { return slices.Contains(volatile, member) }

// Changed names the fields of the profile that changed at the provider, in the order of
// schema.Profile: mapped fields by their JSON name, and "raw" if only an unmapped field differs. If
// old is empty or unreadable, everything in now is a change. Members that change by themselves, and
// the members in more, are left out. Where the provider's own JSON is the same, nothing changed,
// even if a newer version or other settings map it differently.
func Changed(old, now Profile, more ...string) []string {
	names, _ := compare(old, now, more)
	return names
}

// compare is Changed, and whether now is worth storing, as also if only the mapping changed.
func compare(old, now Profile, more []string) (names []string, differs bool) {
	if old == now || sameBut(string(old), string(now)) {
		return nil, false
	}
	a, errA := old.Decode()
	b, errB := now.Decode()
	if a == nil || errA != nil {
		a = &schema.Profile{}
	}
	if b == nil || errB != nil {
		b = &schema.Profile{}
	}
	names = mappedChanges(*a, *b)
	both := a.Raw != nil && b.Raw != nil
	switch same := sameRaw(a.Raw, b.Raw, more); {
	case same && both:
		return nil, len(names) > 0
	case len(names) == 0 && !same:
		names = append(names, "raw")
	}
	return names, len(names) > 0
}

// sameRaw reports whether two raw profiles differ at most in volatile members and in more. No
// profile is decoded where there was no profile before, as at each user's first sync.
func sameRaw(a, b json.RawMessage, more []string) bool {
	if a == nil || b == nil {
		return len(a) == len(b)
	}
	return bytes.Equal(a, b) || reflect.DeepEqual(steady(a, more), steady(b, more))
}

// mappedChanges names the fields that differ, without the raw profile.
func mappedChanges(old, now schema.Profile) (names []string) {
	a, b := reflect.ValueOf(old), reflect.ValueOf(now)
	for i := range a.NumField() {
		name := jsonName(a.Type().Field(i))
		if name != "raw" && !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			names = append(names, name)
		}
	}
	return names
}

func jsonName(f reflect.StructField) string {
	name, _, _ := bytes.Cut([]byte(f.Tag.Get("json")), []byte(","))
	return string(name)
}

// sameBut reports whether the profiles a and b are the same bytes except for one number, the user's
// last visit. Nearly every profile that did not change is such a case, and decoding both costs more
// than all the rest of a renewal.
func sameBut(a, b string) bool {
	const member = `"last_active_at":`
	i := strings.Index(a, member)
	if i < 0 || strings.Count(a, "last_active_at") != 1 ||
		!strings.HasPrefix(b, a[:i+len(member)]) || !inRaw(a[:i]) {
		return false
	}
	digits := func(p string) string { return strings.TrimLeft(p[i+len(member):], "0123456789") }
	x, y := digits(a), digits(b)
	return len(x) > 0 && (x[0] == ',' || x[0] == '}') && x == y
}

// inRaw reports whether the text after front is a member of the raw profile itself, by its braces:
// the raw profile is the only object in a profile outside any list. A brace in a text only makes
// the slow way be taken.
func inRaw(front string) bool {
	return strings.Count(front, "{")-strings.Count(front, "}") == 2 &&
		strings.Count(front, "[") == strings.Count(front, "]")
}

// steady decodes raw without its volatile members, and without the members in more.
func steady(raw json.RawMessage, more []string) any {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil {
		return string(raw)
	}
	if m, ok := v.(map[string]any); ok {
		for _, name := range slices.Concat(volatile, more) {
			delete(m, name)
		}
	}
	return v
}
