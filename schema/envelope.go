package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"
)

// Malformed says why a message is no event of ours. Reason is one of the Reject constants, Field names the part at fault
// (an attribute, a data field as a path, or "subject"), Message is for people.
type Malformed struct {
	Reason  string
	Field   string
	Message string
}

func (m *Malformed) Error() string { return m.Reason + ": " + m.Field + ": " + m.Message }

// Arrival is what the transport knows about a message: it fills in what a bare message does not say.
type Arrival struct {
	Subject  string
	Stream   string
	Sequence uint64
	Time     time.Time // when the stream stored it
}

// MaxID is the longest event id, in bytes: ids become NATS message ids and parts of hashes.
const MaxID = 256

const (
	specVersion    = "1.0"
	structuredType = "application/cloudevents"
)

// Encode writes e as a NATS message in CloudEvents binary mode: attributes in lower-case headers, data as the body, and
// the id as Nats-Msg-Id too, so that the stream drops a message published twice within its duplicate window.
func Encode(e Event) (Header, []byte) {
	h := Header{}
	h.Set("Nats-Msg-Id", e.ID)
	h.Set("ce-specversion", specVersion)
	h.Set("ce-id", percentEncode(e.ID))
	h.Set("ce-source", percentEncode(e.Source))
	h.Set("ce-type", string(e.Type))
	h.Set("ce-time", e.Time.UTC().Format(time.RFC3339Nano))
	if e.User != "" {
		h.Set("ce-subject", percentEncode(e.User))
	}
	if e.DataSchema != "" {
		h.Set("ce-dataschema", percentEncode(e.DataSchema))
	}
	if len(e.Data) > 0 {
		h.Set("content-type", "application/json")
	}
	return h, e.Data
}

// Decode reads a message in binary mode, in structured mode (Content-Type application/cloudevents+json), or bare: no
// ce- headers and a JSON or empty body, allowed for commands. A bare message's id comes from its stream and sequence.
// The type, provider and user always come from the subject; attributes that contradict it are refused. Its error is a
// *Malformed.
func (s Subjects) Decode(h Header, body []byte, at Arrival) (Event, error) {
	addr, err := s.Parse(at.Subject)
	if err != nil {
		return Event{}, &Malformed{RejectSubject, "subject", err.Error()}
	}
	if structured(h) {
		return decodeStructured(addr, body)
	}
	e := Event{
		ID: fmt.Sprintf("%s-%d", at.Stream, at.Sequence), Source: "/nats", Type: addr.Type, Provider: addr.Provider, User: addr.User,
		Time: at.Time.UTC(), Data: bytes.TrimSpace(body),
	}
	if err := e.attributes(binaryAttributes(h)); err != nil {
		return Event{}, err
	}
	if len(e.Data) == 0 {
		e.Data = json.RawMessage("{}")
	}
	if !json.Valid(e.Data) {
		return Event{}, &Malformed{RejectData, "data", "the body is no JSON: send a JSON object, or nothing"}
	}
	return e, nil
}

func structured(h Header) bool {
	return strings.HasPrefix(strings.ToLower(h.Get("Content-Type")), structuredType)
}

var attributeNames = []string{"specversion", "id", "source", "type", "subject", "time", "dataschema", "datacontenttype"}

func binaryAttributes(h Header) func(string) (string, bool, error) {
	return func(name string) (string, bool, error) {
		raw := h.Get("ce-" + name)
		if raw == "" {
			return "", false, nil
		}
		v, err := percentDecode(raw)
		return v, true, err
	}
}

func decodeStructured(addr Address, body []byte) (Event, error) {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(body, &doc); err != nil {
		return Event{}, &Malformed{RejectEnvelope, "data", "the structured event is no JSON object"}
	}
	e := Event{Type: addr.Type, Provider: addr.Provider, User: addr.User, Data: doc["data"]}
	if doc["data_base64"] != nil {
		return Event{}, &Malformed{RejectData, "data_base64", "send the data as a JSON object in data"}
	}
	err := e.attributes(func(name string) (string, bool, error) {
		raw, ok := doc[name]
		if !ok || string(raw) == "null" {
			return "", false, nil
		}
		var v string
		if json.Unmarshal(raw, &v) != nil {
			return "", false, errors.New("want a string")
		}
		return v, true, nil
	})
	if err != nil {
		return Event{}, err
	}
	if e.ID == "" || e.Source == "" {
		return Event{}, &Malformed{RejectEnvelope, "id", "a structured event needs id and source"}
	}
	if len(e.Data) == 0 || string(e.Data) == "null" {
		e.Data = json.RawMessage("{}")
	}
	return e, nil
}

// attributes fills e from the envelope and holds it against what the subject said.
func (e *Event) attributes(get func(string) (string, bool, error)) error {
	for _, name := range attributeNames {
		v, ok, err := get(name)
		if err != nil {
			return &Malformed{RejectEnvelope, name, err.Error()}
		}
		if !ok {
			continue
		}
		if err := e.attribute(name, v); err != nil {
			return &Malformed{RejectEnvelope, name, err.Error()}
		}
	}
	return nil
}

func (e *Event) attribute(name, v string) error {
	switch name {
	case "specversion":
		if v != specVersion {
			return fmt.Errorf("%.16q: want 1.0", v)
		}
	case "id":
		if v == "" || len(v) > MaxID {
			return fmt.Errorf("want 1-%d bytes", MaxID)
		}
		e.ID = v
	case "source":
		if len(v) > MaxID {
			return fmt.Errorf("want at most %d bytes", MaxID)
		}
		e.Source = v
	case "type":
		if v != string(e.Type) {
			return fmt.Errorf("%.64q, but the NATS subject says %s", v, e.Type)
		}
	case "subject":
		if v != e.User {
			return fmt.Errorf("another user than the NATS subject's")
		}
	case "time":
		t, err := time.Parse(time.RFC3339Nano, v)
		if err != nil {
			return errors.New("want RFC 3339")
		}
		e.Time = t.UTC()
	case "dataschema":
		e.DataSchema = v
	case "datacontenttype":
		if !strings.Contains(strings.ToLower(v), "json") {
			return errors.New("want application/json")
		}
	}
	return nil
}

// Data decodes the data of e and checks it; its error is a *Malformed that names the field. Unknown fields are ignored.
func Data[T any](e Event) (T, error) {
	var v T
	dec := json.NewDecoder(bytes.NewReader(e.Data))
	if err := dec.Decode(&v); err != nil && !errors.Is(err, io.EOF) {
		field := "data"
		if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && te.Field != "" {
			field = te.Field
		}
		return v, &Malformed{RejectData, field, "wrong JSON type: see the schema of " + string(e.Type)}
	}
	if c, ok := any(v).(interface{ check() *Malformed }); ok {
		if m := c.check(); m != nil {
			return v, m
		}
	}
	return v, nil
}

func (l Login) check() *Malformed {
	if l.Tokens == "" {
		return &Malformed{RejectData, "tokens", "missing: seal the tokens to renewd's public key first"}
	}
	return nil
}

// MaxMinValid is the largest min_valid_seconds, a day.
const MaxMinValid = 86400

func (r RefreshDue) check() *Malformed {
	switch {
	case r.Want != "" && r.Want != WantProfile && r.Want != WantTokens:
		return &Malformed{RejectData, "want", fmt.Sprintf("%.32q: want %q or %q", r.Want, WantProfile, WantTokens)}
	case r.MinValidSeconds < 0 || r.MinValidSeconds > MaxMinValid:
		return &Malformed{RejectData, "min_valid_seconds", fmt.Sprintf("%d: want 0 to %d", r.MinValidSeconds, MaxMinValid)}
	case len(r.Reason) > 256:
		return &Malformed{RejectData, "reason", "want at most 256 bytes"}
	}
	return nil
}

// percentEncode writes an attribute as the CloudEvents NATS binding wants it in a header: space, the double quote, the
// percent sign and everything outside U+0021-U+007E is percent-encoded.
func percentEncode(v string) string {
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		if c := v[i]; c <= ' ' || c == '"' || c == '%' || c > '~' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// percentDecode undoes exactly one round of percent-encoding.
func percentDecode(v string) (string, error) {
	d, err := url.PathUnescape(v)
	if err != nil || !utf8.ValidString(d) {
		return "", errors.New("bad percent-encoding")
	}
	return d, nil
}
