package schema_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/renewd/renewd/schema"
)

func ExampleSubjects() {
	subjects, err := schema.NewSubjects("acme")
	if err != nil {
		fmt.Println(err)
		return
	}
	subject := subjects.Of(schema.Address{
		Type:     schema.UserReauthRequired,
		Provider: "propelauth",
		User:     "jane@example.com",
	})
	fmt.Println(subject)

	address, err := subjects.Parse(subject)
	fmt.Println(address.Type, address.Provider, address.User, err)

	fmt.Println(subjects.Filter(schema.UserReauthRequired, "", ""))
	fmt.Println(subjects.Name("OUTCOMES"))
	// Output:
	// acme.user.reauth_required.propelauth.jane=40example=2Ecom
	// user.reauth_required propelauth jane@example.com <nil>
	// acme.user.reauth_required.*.*
	// acme_OUTCOMES
}

func ExampleEscapeUser() {
	fmt.Println(schema.EscapeUser("auth0|abc"))
	fmt.Println(schema.UnescapeUser("auth0=7Cabc"))
	_, err := schema.UnescapeUser("auth0=7cabc")
	fmt.Println(err)
	// Output:
	// auth0=7Cabc
	// auth0|abc <nil>
	// malformed subject: user token "auth0=7cabc": "=7c" is not how that byte is written
}

func ExampleEncode() {
	data, err := json.Marshal(schema.RefreshDue{Reason: "plan changed", Want: schema.WantTokens})
	if err != nil {
		fmt.Println(err)
		return
	}
	event := schema.Event{
		ID:       "invoice 88",
		Source:   "/billing",
		Type:     schema.UserRefreshDue,
		Provider: "propelauth",
		User:     "u17",
		Time:     time.Date(2026, 11, 2, 8, 30, 0, 0, time.UTC),
		Data:     data,
	}
	header, body := schema.Encode(event)

	// nats.Msg{Subject: …, Header: nats.Header(header), Data: body}
	fmt.Println(schema.Subjects{}.Of(event.Address()))
	for _, name := range slices.Sorted(slices.Values(header.Keys())) {
		fmt.Printf("%s: %s\n", name, header.Get(name))
	}
	fmt.Println(string(body))
	// Output:
	// user.refresh_due.propelauth.u17
	// Nats-Msg-Id: C7uO5YqozBsGB9RWz9-1nQ
	// ce-datacontenttype: application/json
	// ce-dataschema: urn:renewd:schema:user.refresh_due:v1
	// ce-id: invoice%2088
	// ce-source: /billing
	// ce-specversion: 1.0
	// ce-subject: u17
	// ce-time: 2026-11-02T08:30:00Z
	// ce-type: user.refresh_due
	// content-type: application/json
	// {"reason":"plan changed","want":"tokens"}
}

func ExampleSubjects_Decode() {
	header := schema.Header{"Ce-Id": {"r-1"}, "ce-source": {"/renewd"}}
	body := []byte(`{"cause":{"id":"timer-7","type":"renewal.timer"},
		"began_at":"2026-11-02T08:30:00Z","version":7,"reason":"revoked"}`)

	event, err := schema.Subjects{}.Decode(header, body, schema.Arrival{
		Subject: "user.reauth_required.propelauth.auth0=7Cabc",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	data, err := schema.Data[schema.ReauthRequired](event)
	fmt.Println(event.ID, event.Type, event.User, data.Reason, err)
	// Output: r-1 user.reauth_required auth0|abc revoked <nil>
}

// A command needs no envelope: its subject says it all. The id then comes from where the stream put
// it.
func ExampleSubjects_Decode_bare() {
	event, err := schema.Subjects{}.Decode(nil, nil, schema.Arrival{
		Subject:  "user.refresh_due.propelauth.u17",
		Stream:   "REQUESTS",
		Sequence: 4711,
		Time:     time.Date(2026, 11, 2, 8, 30, 0, 0, time.UTC),
	})
	fmt.Println(event.ID, event.Type, event.Provider, event.User, string(event.Data), err)
	// Output: REQUESTS-4711 user.refresh_due propelauth u17 {} <nil>
}

func ExampleData() {
	_, err := schema.Data[schema.RefreshDue](schema.Event{
		Type: schema.UserRefreshDue,
		Data: []byte(`{"want":"everything"}`),
	})
	fmt.Println(err)
	// Output: malformed_data: want: want "profile" or "tokens"
}

func ExampleJSONSchema() {
	var doc struct {
		ID       string   `json:"$id"`
		Required []string `json:"required"`
	}
	err := json.Unmarshal(schema.JSONSchema(schema.UserReauthRequired), &doc)
	fmt.Println(doc.ID, doc.Required, err)
	// Output: urn:renewd:schema:user.reauth_required:v1 [cause began_at version reason] <nil>
}
