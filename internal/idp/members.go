package idp

import (
	"bytes"
	"encoding/json"
	"errors"
	"unicode/utf8"
)

// members takes a JSON object apart, so that each member is read for itself: a provider that has
// rotated a token has killed the old one, so what is not of its kind is left out and must not cost
// the session. Names are exact: the decoder's own way of filling a struct ignores case and lets the
// last of two win, so that whoever can add a member of some name could replace another one's value.
// twice are the names that are there more than once; of those the last counts. Beside an error is
// what came before it.
func members(body []byte) (all map[string]json.RawMessage, twice []string, _ error) {
	if !json.Valid(body) {
		return membersBefore(body), nil, errNoObject
	}
	return object(body)
}

var errNoObject = errors.New("no JSON object")

// object is members for JSON that is valid, such as a member's value: to check that again would
// cost most of the time.
func object(valid json.RawMessage) (all map[string]json.RawMessage, twice []string, _ error) {
	rest := skip(valid, ' ')
	if !bytes.HasPrefix(rest, []byte("{")) {
		return nil, nil, errNoObject
	}
	const usual = 32 // as many as most have: a map that grows costs more than one that is too large
	all = make(map[string]json.RawMessage, min(usual, bytes.Count(rest, []byte(":"))))
	var raw, value json.RawMessage
	for rest = skip(rest[1:], ' '); rest[0] != '}'; rest = skip(rest, ',') {
		raw, rest = nextValue(rest)
		value, rest = nextValue(skip(rest, ':'))
		name := text(raw)
		if _, there := all[name]; there {
			twice = append(twice, name)
		}
		all[name] = value
	}
	return all, twice, nil
}

// list are the items of a list in valid JSON; nil for anything else.
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

// skip cuts off leading space, and the separator too.
func skip(json []byte, separator byte) []byte {
	for len(json) > 0 && (isSpace(json[0]) || json[0] == separator) {
		json = json[1:]
	}
	return json
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// nextValue cuts off the value that valid JSON begins with.
func nextValue(valid []byte) (first, rest []byte) {
	depth, quoted := 0, false
	for i := 0; i < len(valid); i++ {
		switch c := valid[i]; {
		case quoted && c == '\\':
			i++ // what is escaped ends no text
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
func membersBefore(body []byte) map[string]json.RawMessage {
	dec := json.NewDecoder(bytes.NewReader(body))
	if start, err := dec.Token(); err != nil || start != json.Delim('{') {
		return nil
	}
	all := map[string]json.RawMessage{}
	for dec.More() {
		name, err := dec.Token()
		var value json.RawMessage
		if err != nil || dec.Decode(&value) != nil {
			break
		}
		if name, ok := name.(string); ok {
			all[name] = value
		}
	}
	return all
}

// text is the text that a member is; "" for anything else. Most texts have nothing escaped and need
// no decoder.
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
