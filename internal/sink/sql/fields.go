package sql

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/sink/session"
	"github.com/renewd/renewd/schema"
)

// field is the content of one column.
type field struct {
	name      string // of the table of fields; empty: see row and pointer
	pointer   string // RFC 6901, into the provider's own JSON
	row       string // a column of the user's row
	encrypted bool   // as Laravel's encrypted cast has it
}

const (
	fieldAccessToken = "access_token"
	fieldUser        = "user"
	fieldProvider    = "provider"
)

// facts are the known facts about a user when a row is written.
type facts struct {
	*session.Session
	event schema.Event
}

// fields are the names that a column may be mapped to, and their values: nil, text, bool, int64,
// time.Time, or json.RawMessage.
var fields = map[string]func(f facts) any{
	fieldProvider:    func(f facts) any { return f.Grant.Provider },
	fieldUser:        func(f facts) any { return f.Grant.User },
	fieldAccessToken: func(f facts) any { return text(f.AccessToken()) },
	"expires_at":     func(f facts) any { return when(f.ExpiresAt()) },
	"scope":          func(f facts) any { return text(f.Grant.Pair.Scope) },
	"status":         func(f facts) any { return string(f.Grant.Status) },
	"reason":         func(f facts) any { return text(f.Reason()) },
	"live":           func(f facts) any { return f.Lives() },
	"must_sign_in":   func(f facts) any { return !f.Lives() },
	"version":        func(f facts) any { return f.Grant.Version },
	"synced_at":      func(f facts) any { return when(f.Grant.SyncedAt) },
	"refreshed_at":   func(f facts) any { return when(f.Grant.RefreshedAt) },
	"email":          func(f facts) any { return text(f.Profile.Email) },
	"email_verified": func(f facts) any { return truth(f.Profile.EmailVerified) },
	"name":           func(f facts) any { return text(f.Profile.Name) },
	"first_name":     func(f facts) any { return text(f.Profile.FirstName) },
	"last_name":      func(f facts) any { return text(f.Profile.LastName) },
	"username":       func(f facts) any { return text(f.Profile.Username) },
	"picture":        func(f facts) any { return text(f.Profile.Picture) },
	"enabled":        func(f facts) any { return truth(f.Profile.Enabled) },
	"locked":         func(f facts) any { return truth(f.Profile.Locked) },
	"mfa_enabled":    func(f facts) any { return truth(f.Profile.MFAEnabled) },
	"has_password":   func(f facts) any { return truth(f.Profile.HasPassword) },
	"locale":         func(f facts) any { return text(f.Profile.Locale) },
	"zoneinfo":       func(f facts) any { return text(f.Profile.Zoneinfo) },
	"groups":         func(f facts) any { return document(f.Profile.Groups) },
	"roles":          func(f facts) any { return document(f.Profile.Roles) },
	"organisations":  func(f facts) any { return document(f.Profile.Organisations) },
	"raw":            func(f facts) any { return raw(f.Profile.Raw) },
	"email_verified_at": func(f facts) any {
		if v := f.Profile.EmailVerified; v == nil || !*v {
			return nil
		}
		return when(f.Grant.SyncedAt)
	},
	"active": func(f facts) any { // may use the app: signed in, and not locked out at the provider
		p := f.Profile
		return f.Lives() && (p.Enabled == nil || *p.Enabled) &&
			(p.Locked == nil || !*p.Locked)
	},
	"event_id":    func(f facts) any { return f.event.ID },
	"event_type":  func(f facts) any { return string(f.event.Type) },
	"event_time":  func(f facts) any { return when(f.event.Time) },
	"success":     func(f facts) any { return f.event.Type == schema.UserSynced },
	"fail_reason": func(f facts) any { return text(f.failure()) },
}

var ofEvents = []string{"event_id", "event_type", "event_time", "success", "fail_reason"}

// ofProfile are the fields that only a profile says. Without a profile their columns stay as they
// are.
var ofProfile = []string{
	"email", "email_verified", "email_verified_at", "name", "first_name", "last_name", "username",
	"picture", "enabled",
	"locked", "mfa_enabled", "has_password", "locale", "zoneinfo", "groups", "roles",
	"organisations", "raw",
}

// Fields are the names that a column may be mapped to, beside raw:POINTER, and in a history
// row:COLUMN. Each may have "encrypted" behind it.
func Fields() []string {
	var names []string
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func parseField(text string) (f field, err error) {
	words := strings.Fields(text)
	if len(words) == 2 && words[1] == "encrypted" {
		f.encrypted = true
	} else if len(words) != 1 {
		return f, fmt.Errorf("%q: want a field, or a field and the word encrypted", text)
	}
	if pointer, ok := strings.CutPrefix(words[0], "raw:"); ok {
		if !strings.HasPrefix(pointer, "/") {
			return f, fmt.Errorf("%q: want raw: and a JSON pointer (RFC 6901), such as "+
				"raw:/metadata/plan", text)
		}
		f.pointer = pointer
		return f, nil
	}
	if row, ok := strings.CutPrefix(words[0], "row:"); ok && row != "" {
		f.row = row
		return f, nil
	}
	if fields[words[0]] == nil && ofOrganisation[words[0]] == nil {
		return f, fmt.Errorf("%q: no such field: want raw:POINTER or one of %s", words[0],
			strings.Join(Fields(), ", "))
	}
	f.name = words[0]
	return f, nil
}

func (f field) ofEvent() bool { return slices.Contains(ofEvents, f.name) }

func (f field) ofOrganisation() bool { return ofOrganisation[f.name] != nil }

// ofUser reports whether a field may tell users apart.
func (f field) ofUser() bool {
	return slices.Contains([]string{fieldUser, "email", "username"}, f.name) || f.pointer != ""
}

func (f field) ofProfile() bool { return f.pointer != "" || slices.Contains(ofProfile, f.name) }

// tells reports whether the profile says anything of this field. A value too large to be stored
// leaves the field open.
func (f facts) tells(name string) bool {
	if name == "email_verified_at" {
		name = "email_verified"
	}
	return f.Known && !slices.Contains(f.Profile.Omitted, name)
}

// member is the name of the profile's member that a field takes.
func (f field) member() string {
	if f.pointer != "" {
		return "raw"
	}
	return f.name
}

// of is the value of a field, or of a column of the user's row.
func (f field) of(facts facts, r row) any {
	if f.row != "" {
		return r.values[f.row]
	}
	if f.ofOrganisation() {
		return nil
	}
	return f.value(facts)
}

// value is the content of the column.
func (f field) value(of facts) any {
	if f.pointer != "" {
		return session.Pointed(of.Profile.Raw, f.pointer)
	}
	return fields[f.name](of)
}

// failure is why an outcome is no success.
func (f facts) failure() string {
	var data struct {
		Reason string `json:"reason"`
	}
	if f.event.Type == schema.UserSynced || json.Unmarshal(f.event.Data, &data) != nil {
		return ""
	}
	return data.Reason
}

func text(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func truth(b *bool) any {
	if b == nil {
		return nil
	}
	return *b
}

func when(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC()
}

func document[T any](list []T) any {
	if list == nil {
		list = []T{}
	}
	encoded, err := json.Marshal(list)
	if err != nil {
		return nil // lists of this module's own types: cannot happen
	}
	return json.RawMessage(encoded)
}

func raw(doc json.RawMessage) any {
	if len(doc) == 0 {
		return nil
	}
	return doc
}

// errNoKey: the user cannot be looked for.
var errNoKey = errors.New("the user has no value in the field that the key column holds")

// errNotErased: an erasure finds no row.
var errNotErased = errors.New("an erased user's row cannot be found by key_field, since the " +
	"profile is erased: have a column hold the field user")
