package idp

import (
	"bytes"
	"encoding/json"
	"errors"
	"unicode/utf8"
)

// members takes a JSON object apart, so that each member is read separately. A provider that has
// rotated a token has killed the old token, so a member of the wrong kind is left out and must not
// cost the session. Names are exact. The decoder's own way of filling a struct ignores case and
// lets the last of two members win, so a writer able to add some member could replace another
// member's value. twice are the names that occur more than once; the last member of such a name
// counts. Beside an error members returns the members before the error.
func members(body []byte) (all memberSet, twice []string, _ error) {
	if !json.Valid(body) {
		return membersBefore(body), nil, errNoObject
	}
	return object(body)
}

var errNoObject = errors.New("no JSON object")

// memberSet is the members of a JSON object, each name once. Most objects are small, where a list
// costs a third of a map.
type memberSet []member

type member struct {
	name  string
	value json.RawMessage
}

// get is the value of the member with this name; nil without such a member.
func (s memberSet) get(name string) json.RawMessage {
	if i := s.index(name); i >= 0 {
		return s[i].value
	}
	return nil
}

// index is the place of the member with this name; -1 without such a member.
func (s memberSet) index(name string) int {
	for i := range s { // a member has 40 bytes, which slices.IndexFunc copies
		if s[i].name == name {
			return i
		}
	}
	return -1
}

// adding adds members to a set, and looks a name up in a map once the set is large: the time to
// read an object must not grow with the square of its members.
type adding struct {
	memberSet
	places map[string]int
}

// few is the largest set without a map of the places.
const few = 64

// add adds a member, or replaces the value of the member with this name and reports that.
func (a *adding) add(name string, value json.RawMessage) (twice bool) {
	if len(a.memberSet) == few && a.places == nil {
		a.places = make(map[string]int, 2*few)
		for i, m := range a.memberSet {
			a.places[m.name] = i
		}
	}
	place := -1
	if a.places == nil {
		place = a.index(name)
	} else if i, there := a.places[name]; there {
		place = i
	}
	if place >= 0 {
		a.memberSet[place].value = value
		return true
	}
	if a.places != nil {
		a.places[name] = len(a.memberSet)
	}
	a.memberSet = append(a.memberSet, member{name, value})
	return false
}

// object is members for valid JSON, such as a member's value. To check such JSON again would cost
// most of the time.
func object(valid json.RawMessage) (all memberSet, twice []string, _ error) {
	rest := skip(valid, ' ')
	if !bytes.HasPrefix(rest, []byte("{")) {
		return nil, nil, errNoObject
	}
	const usual = 32 // enough for most objects
	set := adding{memberSet: make(memberSet, 0, min(usual, bytes.Count(rest, []byte(":"))))}
	var raw, value json.RawMessage
	for rest = skip(rest[1:], ' '); rest[0] != '}'; rest = skip(rest, ',') {
		raw, rest = nextValue(rest)
		value, rest = nextValue(skip(rest, ':'))
		if name := text(raw); set.add(name, value) {
			twice = append(twice, name)
		}
	}
	return set.memberSet, twice, nil
}

// list returns the items of a list in valid JSON; nil for any other value.
func list(valid json.RawMessage) (items []json.RawMessage) {
	rest := skip(valid, ' ')
	if !bytes.HasPrefix(rest, []byte("[")) {
		return nil
	}
	var item json.RawMessage
	for rest = skip(rest[1:], ' '); rest[0] != ']'; rest = skip(rest, ',') {
		item, rest = nextValue(rest)
		items = append(items, item)
	}
	return items
}

// skip cuts off leading space and separators.
func skip(json []byte, separator byte) []byte {
	for len(json) > 0 && (isSpace(json[0]) || json[0] == separator) {
		json = json[1:]
	}
	return json
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// nextValue cuts off the value at the beginning of valid JSON.
func nextValue(valid []byte) (first, rest []byte) {
	depth, quoted := 0, false
	for i := 0; i < len(valid); i++ {
		switch c := valid[i]; {
		case quoted && c == '\\':
			i++ // an escaped character ends no text
			continue
		case quoted && c != '"':
			continue
		case c == '"':
			quoted = !quoted
		case c == '{' || c == '[':
			depth++
		case depth > 0 && (c == '}' || c == ']'):
			depth--
		case depth == 0 && (isSpace(c) || c == ',' || c == ':' || c == '}' || c == ']'):
			return valid[:i:i], valid[i:] // a number, true, false or null
		default:
			continue
		}
		if depth == 0 && !quoted {
			return valid[: i+1 : i+1], valid[i+1:]
		}
	}
	return valid, nil
}

// membersBefore are the members before the place where a body breaks off, or stops being JSON.
func membersBefore(body []byte) memberSet {
	if !bytes.HasPrefix(skip(body, ' '), []byte("{")) {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if start, err := dec.Token(); err != nil || start != json.Delim('{') {
		return nil
	}
	var all adding
	for dec.More() {
		name, err := dec.Token()
		var value json.RawMessage
		if err != nil || dec.Decode(&value) != nil {
			break
		}
		if name, ok := name.(string); ok {
			all.add(name, value)
		}
	}
	return all.memberSet
}

// text is the text of a JSON value; "" for any other kind of value. Most texts have no escapes and
// need no decoder.
func text(raw json.RawMessage) string {
	if len(raw) < 2 || raw[0] != '"' {
		return ""
	}
	if plain := raw[1 : len(raw)-1]; bytes.IndexByte(plain, '\\') < 0 && utf8.Valid(plain) {
		return string(plain)
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}
