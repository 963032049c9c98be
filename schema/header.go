package schema

import "strings"

// Header is a NATS message's header. Lookups ignore case and Set writes lower case, because NATS
// itself compares header names case-sensitively while CloudEvents and W3C trace context do not. A
// Header serves as an OpenTelemetry carrier. A nats.Header converts to it:
// schema.Header(msg.Header). Not safe for concurrent writes.
type Header map[string][]string

// Get returns the first value of key in any case, empty without such a header. The exact spelling
// of key comes first, then other spellings in alphabetical order, so that every reader of one
// message gets the same value.
func (h Header) Get(key string) string {
	if v := h[key]; len(v) > 0 {
		return v[0]
	}
	found := ""
	for k, v := range h {
		if len(v) > 0 && len(k) == len(key) && strings.EqualFold(k, key) &&
			(found == "" || k < found) {
			found = k
		}
	}
	if found == "" {
		return ""
	}
	return h[found][0]
}

// Set replaces every spelling of key by one value under the lower-case name. Names with the prefix
// "Nats-" belong to the server, which compares these names with case, so Set keeps them as written.
func (h Header) Set(key, value string) {
	for k := range h {
		if strings.EqualFold(k, key) {
			delete(h, k)
		}
	}
	if !strings.HasPrefix(key, "Nats-") {
		key = strings.ToLower(key)
	}
	h[key] = []string{value}
}

// Keys lists the names as written, in no order.
func (h Header) Keys() []string {
	keys := make([]string, 0, len(h))
	for k := range h {
		keys = append(keys, k)
	}
	return keys
}
