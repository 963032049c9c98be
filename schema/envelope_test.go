package schema_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/schema"
)

var instant = time.Date(2026, 11, 2, 8, 30, 1, 25e7, time.UTC)

const (
	requestSubject = "user.refresh_due.propelauth.jane=40example=2Ecom"
	jane           = "jane@example.com"
)

func arrival(subject string) schema.Arrival {
	return schema.Arrival{Subject: subject, Stream: "REQUESTS", Sequence: 17, Time: instant}
}

// decode reads a message on the request subject whose headers are name, value, name, value …
func decode(body string, header ...string) (schema.Event, error) {
	h := schema.Header{}
	for i := 0; i < len(header); i += 2 {
		h[header[i]] = append(h[header[i]], header[i+1])
	}
	return schema.Subjects{}.Decode(h, []byte(body), arrival(requestSubject))
}

// The four forms of a command: any service in any language can write one of them.
func TestDecodeForms(t *testing.T) {
	for name, c := range map[string]struct {
		body   string
		header []string
		want   schema.Event
	}{
		"binary": {
			`{"reason":"r"}`,
			[]string{
				"ce-specversion", "1.0", "ce-id", "42", "ce-source", "/billing", "ce-type",
				"user.refresh_due", "ce-subject", "jane@example.com", "ce-time",
				"2026-11-02T09:30:00+01:00",
			},
			schema.Event{
				ID:     "42",
				Source: "/billing",
				Time:   time.Date(2026, 11, 2, 8, 30, 0, 0, time.UTC),
				Data:   json.RawMessage(`{"reason":"r"}`),
			},
		},
		"binary without time and type": {
			"", []string{"ce-id", "42"},
			schema.Event{ID: "42", Source: "/nats", Time: instant, Data: json.RawMessage(`{}`)},
		},
		"binary, data only spaced": {
			" \n{} \r\n",
			[]string{
				"ce-id", "42", "Content-Type", "text/plain", "ce-dataschema",
				"https://example.com/s",
			},
			schema.Event{
				ID:         "42",
				Source:     "/nats",
				Time:       instant,
				DataSchema: "https://example.com/s",
				Data:       json.RawMessage(`{}`),
			},
		},
		"structured": {
			`{"specversion":"1.0","id":"43","source":"/crm","type":"user.refresh_due",` +
				`"subject":"jane@example.com","ext":7,"data":{"want":"tokens"}}`,
			[]string{"Content-Type", "application/CloudEvents+JSON; charset=UTF-8"},
			schema.Event{
				ID:     "43",
				Source: "/crm",
				Time:   instant,
				Data:   json.RawMessage(`{"want":"tokens"}`),
			},
		},
		"structured, no data": {
			`{"specversion":"1.0","id":"44","source":"/crm","type":"user.refresh_due",` +
				`"time":null,"data":null}`,
			[]string{"CONTENT-TYPE", "application/cloudevents"},
			schema.Event{ID: "44", Source: "/crm", Time: instant, Data: json.RawMessage(`{}`)},
		},
		"structured ignores attributes in headers": {
			`{"specversion":"1.0","id":"45","source":"/crm"}`,
			[]string{"content-type", "application/cloudevents+json", "ce-id", "another"},
			schema.Event{ID: "45", Source: "/crm", Time: instant, Data: json.RawMessage(`{}`)},
		},
		"bare": {
			`{"min_valid_seconds":60}`, nil,
			schema.Event{
				ID:     "REQUESTS-17",
				Source: "/nats",
				Time:   instant,
				Data:   json.RawMessage(`{"min_valid_seconds":60}`),
			},
		},
		"empty": {
			"", nil,
			schema.Event{
				ID:     "REQUESTS-17",
				Source: "/nats",
				Time:   instant,
				Data:   json.RawMessage(`{}`),
			},
		},
		"blank, other headers": {
			"  ",
			[]string{
				"traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
				"ce-tenant", "acme", "ce-", "x",
			},
			schema.Event{
				ID:     "REQUESTS-17",
				Source: "/nats",
				Time:   instant,
				Data:   json.RawMessage(`{}`),
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.want.Type, c.want.Provider, c.want.User = schema.UserRefreshDue, "propelauth", jane
			got, err := decode(c.body, c.header...)
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v %v\nwant %+v", got, err, c.want)
			}
		})
	}
}

// CloudEvents NATS binding 3.1.3.1: header names have no case.
func TestDecodeAnyHeaderCase(t *testing.T) {
	for _, name := range []string{"ce-id", "Ce-Id", "CE-ID", "cE-iD"} {
		if e, err := decode("", name, "42"); err != nil || e.ID != "42" {
			t.Errorf("%s: %+v %v", name, e, err)
		}
	}
}

// CloudEvents NATS binding 3.1.3.2: one round of percent-decoding, after the quotes of older
// publishers.
func TestDecodeHeaderValues(t *testing.T) {
	for raw, want := range map[string]string{
		"Euro%20%E2%82%AC%20%F0%9F%98%80": "Euro € 😀",
		"Euro%20%e2%82%ac":                "Euro €",
		"plain":                           "plain",
		"%70l%61in":                       "plain",
		"100%25":                          "100%",
		"%2541":                           "%41",
		"%252541":                         "%2541",
		"a+b":                             "a+b",
		"é":                               "é",
		`"a b"`:                           "a b",
		`"a \"b\" \\ %20c"`:               `a "b" \  c`,
		`"half`:                           `"half`,
	} {
		if e, err := decode("", "ce-id", raw); err != nil || e.ID != want {
			t.Errorf("%s: got %q %v, want %q", raw, e.ID, err, want)
		}
	}
}

// CloudEvents 1.0: source and id together are unique. The stream must tell apart what differs in
// either, or in whom it is about, and nothing else.
func TestMessageIDIsOfAddressSourceAndID(t *testing.T) {
	e := schema.Event{
		ID:       "nightly",
		Source:   "/crm",
		Type:     schema.UserRefreshDue,
		Provider: "p",
		User:     "u1",
	}
	same := e
	same.Time, same.Data, same.DataSchema = instant, json.RawMessage(`{}`), "urn:x"
	if schema.MessageID(same) != schema.MessageID(e) {
		t.Error("what the event says is part of its message id")
	}
	seen := map[string]string{schema.MessageID(e): "the event"}
	for what, change := range map[string]func(*schema.Event){
		"type": func(e *schema.Event) {
			e.Type = schema.UserLogin
		}, "provider": func(e *schema.Event) { e.Provider = "q" },
		"user": func(e *schema.Event) {
			e.User = "u2"
		}, "source": func(e *schema.Event) { e.Source = "/billing" },
		"id": func(e *schema.Event) {
			e.ID = "hourly"
		}, "border": func(e *schema.Event) { e.Source, e.ID = "/crmn", "ightly" },
	} {
		other := e
		change(&other)
		id := schema.MessageID(other)
		if seen[id] != "" || len(id) != 22 {
			t.Errorf("another %s: %q, as of %s", what, id, seen[id])
		}
		seen[id] = what
	}
}

// What Decode refuses still says who sent it, in both modes.
func TestOriginOfWhatIsMalformed(t *testing.T) {
	structured := schema.Header{"Content-Type": {"application/cloudevents+json"}}
	for name, tt := range map[string]struct {
		h          schema.Header
		body       string
		source, id string
	}{
		"binary": {
			schema.Header{"Ce-Id": {"invoice%2088"}, "ce-source": {"/crm"}, "ce-time": {"never"}},
			"<html>", "/crm", "invoice 88",
		},
		"bare": {nil, "<html>", "", ""},
		"no escape": {
			schema.Header{"ce-id": {"%"}, "ce-source": {"/crm"}}, "", "/crm", "",
		},
		"control": {schema.Header{"ce-id": {"a%0Ab"}}, "", "", ""},
		"long": {
			schema.Header{"ce-id": {"a"}, "ce-source": {strings.Repeat("x", 257)}}, "", "", "a",
		},
		"structured":          {structured, `{"id":"42","source":"/crm","type":7}`, "/crm", "42"},
		"structured, no text": {structured, `{"id":42,"source":"/crm"}`, "/crm", ""},
		"structured, twice":   {structured, `{"id":"1","id":"2"}`, "", ""},
	} {
		if source, id := schema.Origin(tt.h, []byte(tt.body)); source != tt.source || id != tt.id {
			t.Errorf("%s: %q %q", name, source, id)
		}
	}
}

func TestEncodeHeaderValues(t *testing.T) {
	e := schema.Event{
		ID:       "Euro € 😀",
		Source:   `/a"b%c`,
		Type:     schema.UserRefreshDue,
		Provider: "propelauth",
		User:     "zoë|1",
		Time:     instant.In(time.FixedZone("", 3600)),
	}
	h, body := schema.Encode(e)
	want := schema.Header{
		"Nats-Msg-Id":    {schema.MessageID(e)},
		"ce-id":          {"Euro%20%E2%82%AC%20%F0%9F%98%80"},
		"ce-source":      {"/a%22b%25c"},
		"ce-specversion": {"1.0"},
		"ce-type":        {"user.refresh_due"},
		"ce-subject":     {"zo%C3%AB|1"},
		"ce-time":        {"2026-11-02T08:30:01.25Z"},
		"ce-dataschema":  {"urn:renewd:schema:user.refresh_due:v1"},
	}
	if !reflect.DeepEqual(h, want) || len(body) != 0 {
		t.Errorf("got %v %q\nwant %v", h, body, want)
	}
	h.Set("ce-id", "other")
	if h.Get("ce-source") != "/a%22b%25c" || h.Get("Nats-Msg-Id") == "other" {
		t.Error("one header's value is another's")
	}
}

const (
	// marked is a refresh token in a place where it does not belong.
	marked = "rt_MARKED7f0c2a9e41d84c6fb1f5aa03c9d1e27b44"
	flood  = 300
)

func TestDecodeRefuses(t *testing.T) {
	structured := []string{"content-type", "application/cloudevents+json"}
	for name, c := range map[string]struct {
		body          string
		header        []string
		reason, field string
	}{
		"array":       {`[]`, nil, schema.RejectData, "data"},
		"string":      {`"` + marked + `"`, nil, schema.RejectData, "data"},
		"number":      {`3`, nil, schema.RejectData, "data"},
		"null":        {`null`, nil, schema.RejectData, "data"},
		"no JSON":     {marked, nil, schema.RejectData, "data"},
		"two objects": {`{}{}`, nil, schema.RejectData, "data"},
		"cut off":     {`{"reason":"` + marked, nil, schema.RejectData, "data"},
		"not UTF-8":   {"{\"reason\":\"\xc0\xa0\"}", nil, schema.RejectData, "data"},
		"1 MiB":       {strings.Repeat("A", 1<<20), nil, schema.RejectData, "data"},
		"too deep": {
			`{"a":` + strings.Repeat("[", 1<<19), nil, schema.RejectData, "data",
		},
		"too deep and closed": {
			`{"a":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + "}", nil,
			schema.RejectData, "data",
		},
		"id empty": {"", []string{"ce-id", ""}, schema.RejectEnvelope, "id"},
		"id long": {
			"", []string{"ce-id", strings.Repeat("x", 257)}, schema.RejectEnvelope, "id",
		},
		"id twice": {
			"", []string{"ce-id", "1", "Ce-Id", "2"}, schema.RejectEnvelope, "id",
		},
		"id twice, one name": {
			"", []string{"ce-id", marked, "ce-id", "2"}, schema.RejectEnvelope, "id",
		},
		"id with a line break": {
			"", []string{"ce-id", "a%0D%0ANats-Rollup:%20all"}, schema.RejectEnvelope, "id",
		},
		"id with an escape": {
			"", []string{"ce-id", "a%1B[2J"}, schema.RejectEnvelope, "id",
		},
		"id with a C1 control": {
			"", []string{"ce-id", "a%C2%9B2J"}, schema.RejectEnvelope, "id",
		},
		"id overlong encoding": {
			"", []string{"ce-id", "%C0%A0"}, schema.RejectEnvelope, "id",
		},
		"id half an escape": {
			"", []string{"ce-id", marked + "%2"}, schema.RejectEnvelope, "id",
		},
		"id raw bytes": {"", []string{"ce-id", "\xff"}, schema.RejectEnvelope, "id"},
		"source with a control": {
			"", []string{"ce-source", "/a%00"}, schema.RejectEnvelope, "source",
		},
		"source long": {
			"", []string{"ce-source", strings.Repeat("/", 257)}, schema.RejectEnvelope, "source",
		},
		"dataschema long": {
			"", []string{"ce-dataschema", strings.Repeat("/", 1025)}, schema.RejectEnvelope,
			"dataschema",
		},
		"specversion": {
			"", []string{"ce-specversion", "0.3"}, schema.RejectEnvelope, "specversion",
		},
		"specversion token": {
			"", []string{"ce-specversion", marked}, schema.RejectEnvelope, "specversion",
		},
		"type of another subject": {
			"", []string{"ce-type", "user.login"}, schema.RejectEnvelope, "type",
		},
		"type token": {
			"", []string{"ce-type", marked}, schema.RejectEnvelope, "type",
		},
		"another user": {
			"", []string{"ce-subject", marked}, schema.RejectEnvelope, "subject",
		},
		"time": {
			"", []string{"ce-time", "yesterday"}, schema.RejectEnvelope, "time",
		},
		"time past 9999 in UTC": {
			"", []string{"ce-time", "9999-12-31T23:59:59-23:59"}, schema.RejectEnvelope, "time",
		},
		"time before 1 in UTC": {
			"", []string{"ce-time", "0000-01-01T00:00:00+23:59"}, schema.RejectEnvelope, "time",
		},
		"datacontenttype": {
			"", []string{"ce-datacontenttype", "text/xml"}, schema.RejectEnvelope,
			"datacontenttype",
		},
		"batch": {
			"[]", []string{"content-type", "application/cloudevents-batch+json"},
			schema.RejectEnvelope, "content-type",
		},
		"another event format": {
			"x", []string{"content-type", "application/cloudevents+avro"}, schema.RejectEnvelope,
			"content-type",
		},
		"structured: no JSON": {marked, structured, schema.RejectEnvelope, "data"},
		"structured: empty":   {"", structured, schema.RejectEnvelope, "data"},
		"structured: array":   {`[{"id":"1"}]`, structured, schema.RejectEnvelope, "data"},
		"structured: cut off": {
			`{"id":"1","source":"/a"`, structured, schema.RejectEnvelope, "data",
		},
		"structured: trailing": {
			`{"id":"1","source":"/a"} x`, structured, schema.RejectEnvelope, "data",
		},
		"structured: no id":     {`{"source":"/a"}`, structured, schema.RejectEnvelope, "id"},
		"structured: no source": {`{"id":"1"}`, structured, schema.RejectEnvelope, "source"},
		"structured: id twice": {
			`{"id":"1","id":"2","source":"/a"}`, structured, schema.RejectEnvelope, "data",
		},
		"structured: id a number": {
			`{"id":1,"source":"/a"}`, structured, schema.RejectEnvelope, "id",
		},
		"structured: id control": {
			`{"id":"a\u001b","source":"/a"}`, structured, schema.RejectEnvelope, "id",
		},
		"structured: base64": {
			`{"id":"1","source":"/a","data_base64":"e30="}`, structured, schema.RejectData,
			"data_base64",
		},
		"structured: data a string": {
			`{"id":"1","source":"/a","data":"` + marked + `"}`, structured, schema.RejectData,
			"data",
		},
		"structured: name is text": {
			`{"` + marked + `":1,"` + marked + `":1}`, structured, schema.RejectEnvelope, "data",
		},
		"structured: deep": {
			`{"data":` + strings.Repeat("[", 1<<19), structured, schema.RejectEnvelope, "data",
		},
		"structured: not UTF-8": {
			"{\"id\":\"\xff\",\"source\":\"/a\"}", structured, schema.RejectData, "data",
		},
		"structured: another's type": {
			`{"id":"1","source":"/a","type":"` + strings.Repeat("t", 1<<20) + `"}`, structured,
			schema.RejectEnvelope, "type",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := decode(c.body, c.header...)
			wantMalformed(t, err, c.reason, c.field)
		})
	}
}

// wantMalformed holds err against what is expected, and against what no error may hold.
func wantMalformed(t *testing.T, err error, reason, field string) {
	t.Helper()
	bad, ok := errors.AsType[*schema.Malformed](err)
	if !ok || bad.Reason != reason || bad.Field != field {
		t.Fatalf("got %v, want %s: %s", err, reason, field)
	}
	if len(bad.Message) == 0 || len(bad.Message) > flood {
		t.Errorf("a message of %d bytes", len(bad.Message))
	}
	if strings.Contains(err.Error(), marked) {
		t.Errorf("shows a token: %v", err)
	}
	for _, r := range err.Error() {
		if r < 0x20 || r >= 0x7f && r <= 0x9f {
			t.Errorf("shows a control character: %q", err)
		}
	}
}

func TestDecodeRefusesSubjects(t *testing.T) {
	for _, subject := range []string{
		"", "user", "user.refresh_due", "user.refresh_due.propelauth",
		"user.refresh_due.propelauth.", "user.refresh_due.propelauth.jane@example.com",
		"user.refresh_due.PropelAuth.u17", "user.refresh_due." + marked + ".u17",
		"user.login.propelauth." + marked + "." + marked + "." + marked,
		"user." + marked + ".propelauth.u17", "user.refresh_due.propelauth.=" + marked,
		"user.refresh_due.propelauth.a=0Ab", "user.refresh_due.propelauth.=61",
		"user.refresh_due.propelauth.=7c",
		"user.refresh_due.propelauth." + strings.Repeat("=41", 4000), strings.Repeat("x.", 1<<19),
		"provider.degraded.propelauth.u17",
		"user.refresh_due.propelauth." + strings.Repeat("=FF", 10), "renewal.due.propelauth.u17",
		"from.shop.user.synced.propelauth.u17", "from.Shop.user.login.propelauth.u17",
		"from." + marked + ".user.login.propelauth.u17", "from.shop",
		"from.shop.user.login.propelauth", "from.shop.from.shop.user.login.propelauth.u17",
		"from..user.login.propelauth.u17", "from.user.login.propelauth.u17",
	} {
		_, err := schema.Subjects{}.Decode(nil, nil, arrival(subject))
		wantMalformed(t, err, schema.RejectSubject, "subject")
	}
}

// Only a command may come bare, and only from a stream: an outcome without an id would be taken for
// another one.
func TestDecodeBareNeedsAPlace(t *testing.T) {
	_, err := schema.Subjects{}.Decode(nil, nil, arrival("user.synced.propelauth.u17"))
	wantMalformed(t, err, schema.RejectEnvelope, "id")
	_, err = schema.Subjects{}.Decode(nil, nil, schema.Arrival{Subject: requestSubject})
	wantMalformed(t, err, schema.RejectEnvelope, "id")
}

func TestDecodeBigMessage(t *testing.T) {
	body := `{"reason":"` + strings.Repeat("ä", 1<<19) + `"}`
	e, err := decode(body)
	if err != nil || len(e.Data) != len(body) {
		t.Fatal(len(e.Data), err)
	}
	_, err = schema.Data[schema.RefreshDue](e)
	wantMalformed(t, err, schema.RejectData, "reason")
}

func TestData(t *testing.T) {
	for body, field := range map[string]string{
		`{}`: "",
		`{"reason":"plan changed","want":"tokens","min_valid_seconds":86400,"later":{"x":[]}}`: "",
		`{"want":"profile"}`:                             "",
		`{"want":""}`:                                    "",
		`{"want":"everything"}`:                          "want",
		`{"want":"` + marked + `"}`:                      "want",
		`{"want":7}`:                                     "want",
		`{"min_valid_seconds":-1}`:                       "min_valid_seconds",
		`{"min_valid_seconds":86401}`:                    "min_valid_seconds",
		`{"min_valid_seconds":1e99}`:                     "min_valid_seconds",
		`{"min_valid_seconds":"60"}`:                     "min_valid_seconds",
		`{"wnat":"tokens"}`:                              "want",
		`{"Want":"tokens"}`:                              "want",
		`{"wants":"tokens"}`:                             "want",
		`{"minValidSeconds":60}`:                         "min_valid_seconds",
		`{"reason":"a","because":"b"}`:                   "",
		`{"reason":"a\nb"}`:                              "reason",
		`{"reason":"\u001b]0;pwned\u0007"}`:              "reason",
		`{"reason":["` + marked + `"]}`:                  "reason",
		`{"reason":"` + strings.Repeat("é", 128) + `"}`:  "",
		`{"reason":"` + strings.Repeat("é", 128) + `e"}`: "reason",
	} {
		e, err := decode(body)
		if err != nil {
			t.Fatal(body, err)
		}
		_, err = schema.Data[schema.RefreshDue](e)
		if field != "" {
			wantMalformed(t, err, schema.RejectData, field)
		} else if err != nil {
			t.Errorf("%s: %v", body, err)
		}
	}
	if _, err := schema.Data[schema.RefreshDue](schema.Event{
		Type: schema.UserRefreshDue,
	}); err != nil {
		t.Errorf("no data at all: %v", err)
	}
	_, err := schema.Data[schema.Login](schema.Event{
		Type: schema.UserLogin,
		Data: []byte(`{"access_token":"` + marked + `"}`),
	})
	wantMalformed(t, err, schema.RejectData, "tokens")
	_, err = schema.Data[schema.Forgotten](schema.Event{
		Type: schema.UserForgotten,
		Data: []byte(`{"began_at":"` + marked + `"}`),
	})
	wantMalformed(t, err, schema.RejectData, "data")
}

// What Decode took can be written down: no instant is beyond JSON.
func TestDecodedTimesMarshal(t *testing.T) {
	for _, v := range []string{
		"9999-12-31T23:59:59.999999999Z", "0001-01-01T00:00:00Z", "2026-11-02T08:30:00-12:00",
		"2026-11-02T08:30:00.123456789+14:00",
	} {
		e, err := decode("", "ce-time", v)
		if err != nil {
			t.Fatal(v, err)
		}
		if _, err := json.Marshal(schema.Cause{Time: e.Time}); err != nil {
			t.Error(v, err)
		}
	}
}

func TestHeader(t *testing.T) {
	h := schema.Header{"Ce-Id": {"1"}, "CE-ID": {"2"}, "empty": nil, "b": {"x", "y"}}
	for range 20 {
		if got := h.Get("ce-id"); got != "2" {
			t.Fatalf("Get gives %q, want the same value each time", got)
		}
	}
	for key, want := range map[string]string{"Ce-Id": "1", "EMPTY": "", "none": "", "B": "x"} {
		if got := h.Get(key); got != want {
			t.Errorf("%s: %q", key, got)
		}
	}
	h.Set("CE-Id", "3")
	h.Set("Nats-Msg-Id", "4")
	if want := (schema.Header{
		"ce-id":       {"3"},
		"Nats-Msg-Id": {"4"},
		"empty":       nil,
		"b":           {"x", "y"},
	}); !reflect.DeepEqual(h, want) {
		t.Errorf("got %v", h)
	}
	if len(h.Keys()) != 4 {
		t.Error(h.Keys())
	}
}

// Decode does not hold on to the header and does not write to the body.
func TestDecodeLeavesItsInputAlone(t *testing.T) {
	h, body := schema.Encode(schema.Event{
		ID:     "1",
		Source: "/a",
		Type:   schema.UserRefreshDue,
		User:   jane,
		Time:   instant,
		Data:   []byte(" {} "),
	})
	before := fmt.Sprint(h)
	kept := bytes.Clone(body)
	if _, err := (schema.Subjects{}).Decode(h, body, arrival(requestSubject)); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(h) != before || !bytes.Equal(body, kept) {
		t.Error("the message was changed")
	}
}
