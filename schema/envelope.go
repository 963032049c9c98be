package schema

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Malformed says why a message is no event of renewd's. Reason is one of the Reject constants.
// Field names the part at fault (an attribute, a data field as a path, or "subject"). Message is
// for people. A Malformed shows a few bytes of a stranger's subject or attribute at most and
// nothing of the data, so it may be logged and published.
type Malformed struct {
	Reason  string
	Field   string
	Message string
}

func (m *Malformed) Error() string { return m.Reason + ": " + m.Field + ": " + m.Message }

// Arrival is the transport's knowledge of a message. Arrival fills in what a bare message lacks.
type Arrival struct {
	Subject  string
	Stream   string
	Sequence uint64
	Time     time.Time // when the stream stored the message
}

// MaxID is the longest event id, in bytes: ids are kept in causes. MaxID bounds Source too.
const MaxID = 256

// maxDataSchema bounds an address that renewd only hands on.
const maxDataSchema = 1024

const (
	specVersion = "1.0"
	jsonType    = "application/json"
	bareSource  = "/nats" // of a bare message, which does not name its sender
)

// Encode writes e, which needs an ID and a Source, as a NATS message in CloudEvents binary mode:
// attributes in lower-case headers, data as the body (not copied). Its MessageID becomes the
// Nats-Msg-Id, so that the stream drops an event published twice within its duplicate window. An
// empty DataSchema stands for the type's DataSchema.
func Encode(e Event) (Header, []byte) {
	const most = 10
	values := make([]string, 0, most)
	h := make(Header, most)
	set := func(name, value string) {
		values = append(values, value)
		h[name] = values[len(values)-1 : len(values) : len(values)]
	}
	set("Nats-Msg-Id", MessageID(e))
	set("ce-specversion", specVersion)
	set("ce-id", percentEncode(e.ID))
	set("ce-source", percentEncode(e.Source))
	set("ce-type", percentEncode(string(e.Type)))
	if e.User != "" {
		set("ce-subject", percentEncode(e.User))
	}
	if !e.Time.IsZero() {
		set("ce-time", e.Time.UTC().Format(time.RFC3339Nano))
	}
	if s := cmp.Or(e.DataSchema, DataSchema(e.Type)); s != "" {
		set("ce-dataschema", percentEncode(s))
	}
	if len(e.Data) > 0 {
		// The binding wants the first header. Libraries written after the HTTP binding look for the
		// second.
		set("ce-datacontenttype", jsonType)
		set("content-type", jsonType)
	}
	return h, e.Data
}

// MessageID tells events apart in a stream. A CloudEvents id alone does not: an id is unique within
// its source only, and a publisher may well use one id ("nightly") for the events of many users.
// MessageID is a hash of the address, source and id. Publishers that send another Nats-Msg-Id, or
// no Nats-Msg-Id, are understood as well, since only the stream reads it.
func MessageID(e Event) string {
	b := make([]byte, 0, 256)
	for _, part := range [...]string{string(e.Type), e.Provider, e.User, e.Source, e.ID} {
		// with lengths, so that no two events give the same text
		b = strconv.AppendInt(b, int64(len(part)), 10)
		b = append(append(b, ':'), part...)
	}
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// Origin is the source and id that the publisher of a message gave its event, where readable. It is
// for a caller that answers a message refused by Decode. Empty: the message has no source or id an
// event could have. h and body are as for Decode.
func Origin(h Header, body []byte) (source, id string) {
	if structured, _ := isStructured(h); structured {
		var values attributes
		if doc, bad := members(body); bad == nil {
			values, _ = structuredAttributes(doc)
		}
		source, id = values.get("source"), values.get("id")
	} else {
		source, _ = percentDecode(h.Get("ce-source"))
		id, _ = percentDecode(h.Get("ce-id"))
	}
	for _, v := range []*string{&source, &id} {
		if len(*v) > MaxID || hasControl(*v) || !utf8.ValidString(*v) {
			*v = ""
		}
	}
	return source, id
}

// Decode reads a message in binary mode, in structured mode (Content-Type
// application/cloudevents+json), or bare: no ce- headers and a JSON or empty body, allowed for
// commands. A bare message's id comes from its stream and sequence. The type, provider and user
// always come from the subject. Decode refuses attributes that contradict the subject or each
// other, and data that is no JSON object. Extension attributes are ignored. Its error is a
// *Malformed. The event's Data is a part of body, not a copy.
func (s Subjects) Decode(h Header, body []byte, at Arrival) (Event, error) {
	addr, err := s.Parse(at.Subject)
	if err != nil {
		return Event{},
			&Malformed{
				RejectSubject, "subject", strings.TrimPrefix(err.Error(), ErrSubject.Error()+": "),
			}
	}
	structured, bad := isStructured(h)
	if bad != nil {
		return Event{}, bad
	}
	if !utf8.Valid(body) {
		return Event{},
			&Malformed{RejectData, "data", "the body is no UTF-8: send a JSON object, or nothing"}
	}
	e := Event{
		Type:     addr.Type,
		Provider: addr.Provider,
		User:     addr.User,
		Sender:   addr.Sender,
		Time:     at.Time.UTC(),
	}
	if structured {
		bad = e.fromStructured(body)
	} else {
		bad = e.fromBinary(h, body, at)
	}
	if bad != nil {
		return Event{}, bad
	}
	return e, nil
}

// isStructured tells the mode as the NATS binding does: structured if and only if Content-Type is a
// CloudEvents type.
func isStructured(h Header) (bool, *Malformed) {
	media, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	media = strings.ToLower(strings.TrimSpace(media))
	switch {
	case media == "application/cloudevents" || media == "application/cloudevents+json":
		return true, nil
	case strings.HasPrefix(media, "application/cloudevents"):
		return false,
			&Malformed{
				RejectEnvelope, "content-type",
				quote(media) + ": want application/cloudevents+json, one event a message",
			}
	}
	return false, nil
}

func (e *Event) fromBinary(h Header, body []byte, at Arrival) *Malformed {
	values, bad := binaryAttributes(h)
	if bad != nil {
		return bad
	}
	if values.get("id") == "" {
		// Only a command may come bare, and only from a stream: without a sequence in a stream a
		// bare message has no id.
		if !e.Type.IsCommand() || at.Stream == "" {
			return &Malformed{RejectEnvelope, "id", "missing: set the header ce-id"}
		}
		e.ID = fmt.Sprintf("%s-%d", at.Stream, at.Sequence)
	}
	e.Source = bareSource
	if bad := e.take(&values); bad != nil {
		return bad
	}
	e.Data = bytes.TrimSpace(body)
	if len(e.Data) == 0 {
		e.Data = json.RawMessage("{}")
	}
	return e.checkData()
}

// binaryAttributes collects the ce- headers in any case. An attribute given twice, in whatever
// spelling, must have the same value twice.
func binaryAttributes(h Header) (values attributes, _ *Malformed) {
	for header, all := range h {
		if len(header) < 4 || !strings.EqualFold(header[:3], "ce-") {
			continue
		}
		i := attributeIndex(header[3:])
		if i < 0 {
			continue
		}
		name := attributeNames[i]
		for _, raw := range all {
			v, err := percentDecode(raw)
			if err != nil {
				return values, &Malformed{RejectEnvelope, name, err.Error()}
			}
			if values[i].there && values[i].value != v {
				return values,
					&Malformed{RejectEnvelope, name, "there twice, with different values"}
			}
			values[i] = attribute{v, true}
		}
	}
	return values, nil
}

func (e *Event) fromStructured(body []byte) *Malformed {
	doc, bad := members(body)
	if bad != nil {
		return bad
	}
	if doc["data_base64"] != nil {
		return &Malformed{RejectData, "data_base64", "send the data as a JSON object in data"}
	}
	values, bad := structuredAttributes(doc)
	if bad != nil {
		return bad
	}
	if bad := e.take(&values); bad != nil {
		return bad
	}
	switch {
	case e.ID == "":
		return &Malformed{RejectEnvelope, "id", "missing: a structured event needs one"}
	case e.Source == "":
		return &Malformed{RejectEnvelope, "source", "missing: a structured event needs one"}
	}
	e.Data = doc["data"]
	if len(e.Data) == 0 || string(e.Data) == "null" {
		e.Data = json.RawMessage("{}")
	}
	return e.checkData()
}

// structuredAttributes reads the attributes that are strings, and names the first other attribute.
func structuredAttributes(doc map[string]json.RawMessage) (values attributes, bad *Malformed) {
	for i, name := range attributeNames {
		raw, ok := doc[name]
		if !ok || string(raw) == "null" {
			continue
		}
		if values[i].there = true; json.Unmarshal(raw, &values[i].value) != nil && bad == nil {
			values[i].value, bad = "", &Malformed{RejectEnvelope, name, "want a string"}
		}
	}
	return values, bad
}

// members takes a structured event apart. A member given twice is refused, since readers of JSON
// differ on which of the two counts.
func members(body []byte) (map[string]json.RawMessage, *Malformed) {
	noObject := &Malformed{RejectEnvelope, "data", "the structured event is no JSON object"}
	dec := json.NewDecoder(bytes.NewReader(body))
	if start, err := dec.Token(); err != nil || start != json.Delim('{') {
		return nil, noObject
	}
	doc := map[string]json.RawMessage{}
	for dec.More() {
		token, err := dec.Token()
		name, ok := token.(string)
		if err != nil || !ok {
			return nil, noObject
		}
		var value json.RawMessage
		if dec.Decode(&value) != nil {
			return nil, noObject
		}
		if _, twice := doc[name]; twice {
			return nil, &Malformed{RejectEnvelope, "data", quote(name) + " is there twice"}
		}
		doc[name] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, noObject
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, noObject
	}
	return doc, nil
}

func (e *Event) checkData() *Malformed {
	switch {
	case !json.Valid(e.Data):
		return &Malformed{RejectData, "data", "the body is no JSON: send a JSON object, or nothing"}
	case e.Data[0] != '{':
		return &Malformed{
			RejectData, "data", "the data is JSON but no object: send a JSON object, or nothing",
		}
	}
	return nil
}

// attributeNames lists the attributes renewd reads, in the order of the checks.
var attributeNames = [...]string{
	"specversion", "id", "source", "type", "subject", "time", "dataschema", "datacontenttype",
}

// attributes are the attributes of one event, in the order of attributeNames.
type attributes [len(attributeNames)]attribute

type attribute struct {
	value string
	there bool
}

func (a *attributes) get(name string) string { return a[attributeIndex(name)].value }

// attributeIndex finds a name in any case; -1: renewd does not read the attribute.
func attributeIndex(name string) int {
	for i, known := range attributeNames {
		if len(name) == len(known) && strings.EqualFold(name, known) {
			return i
		}
	}
	return -1
}

// take fills e from the envelope and refuses a contradiction to the subject.
func (e *Event) take(values *attributes) *Malformed {
	for i, name := range attributeNames {
		if !values[i].there {
			continue
		}
		if err := e.attribute(name, values[i].value); err != nil {
			return &Malformed{RejectEnvelope, name, err.Error()}
		}
	}
	return nil
}

func (e *Event) attribute(name, v string) error {
	switch {
	case v == "":
		return errors.New("empty: leave it out or give it a value")
	case hasControl(v):
		return errors.New("has a control character")
	}
	switch name {
	case "specversion":
		if v != specVersion {
			return fmt.Errorf("%s: want %s", quote(v), specVersion)
		}
	case "id":
		e.ID = v
		return atMost(MaxID, v)
	case "source":
		e.Source = v
		return atMost(MaxID, v)
	case "type":
		if v != string(e.Type) {
			return fmt.Errorf("%s, but the NATS subject says %s", quote(v), e.Type)
		}
	case "subject":
		if v != e.User {
			return errors.New("another user than the NATS subject's")
		}
	case "time":
		return e.setTime(v)
	case "dataschema":
		e.DataSchema = v
		return atMost(maxDataSchema, v)
	case "datacontenttype":
		if !strings.Contains(strings.ToLower(v), "json") {
			return fmt.Errorf("%s: want %s", quote(v), jsonType)
		}
	}
	return nil
}

func atMost(n int, v string) error {
	if len(v) > n {
		return fmt.Errorf("has %d bytes: want at most %d", len(v), n)
	}
	return nil
}

// setTime refuses instants that only exist in their own zone: in UTC their year has no place in RFC
// 3339, and time.Time would not marshal.
func (e *Event) setTime(v string) error {
	t, err := time.Parse(time.RFC3339Nano, v)
	if err != nil {
		return errors.New("want RFC 3339, as in 2026-01-31T12:00:00Z")
	}
	if t = t.UTC(); t.Year() < 1 || t.Year() > 9999 {
		return errors.New("want a year from 1 to 9999, in UTC")
	}
	e.Time = t
	return nil
}
