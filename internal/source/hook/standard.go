package hook

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/secret"
)

// tolerance is how far the time of a message may be from this machine's, either way (Standard
// Webhooks 1.0.0, "Verifying webhook authenticity").
const tolerance = 5 * time.Minute

// signingKey reads a secret. The error shows nothing of the secret.
func signingKey(s secret.Value) ([]byte, error) {
	text, ok := strings.CutPrefix(s.Reveal(), "whsec_")
	key, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(key) < 24 || len(key) > 64 {
		return nil, errors.New("want whsec_ and 24 to 64 bytes in base64, as the sender shows it")
	}
	return key, nil
}

// standard reads messages signed as Standard Webhooks 1.0.0 has it, and gives their bodies to body.
type standard struct {
	keys [][]byte
	body func([]byte) (message, error)
}

// newStandard takes secrets that were checked.
func newStandard(secrets []secret.Value, body func([]byte) (message, error)) (standard, error) {
	s := standard{body: body}
	for _, one := range secrets {
		key, err := signingKey(one)
		if err != nil {
			return s, err
		}
		s.keys = append(s.keys, key)
	}
	return s, nil
}

// read implements reader.
func (s standard) read(_ context.Context, p Post, now time.Time) (message, error) {
	front := "webhook-"
	if p.Header(front+"id") == "" {
		front = "svix-" // the same scheme under its first names
	}
	id, at := p.Header(front+"id"), p.Header(front+"timestamp")
	signatures := p.Header(front + "signature")
	if id == "" || at == "" || signatures == "" {
		return message{}, refuse(Malformed, "want the headers webhook-id, webhook-timestamp and "+
			"webhook-signature, or the same with svix-")
	}
	unix, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return message{}, refuse(Malformed, "want the seconds since 1970 as webhook-timestamp")
	}
	if !s.signed(id, at, signatures, p.Body) {
		return message{}, refuse(Forged, "the signature is not made with a secret of this source")
	}
	sent := time.Unix(unix, 0)
	if age := now.Sub(sent); age > tolerance || age < -tolerance {
		return message{}, refuse(Stale, "the message was signed more than five minutes ago, or "+
			"ahead: is the sender's clock right?")
	}
	m, err := s.body(p.Body)
	m.id = id
	m.undated = m.at.IsZero()
	if m.undated || m.at.After(sent) {
		m.at = sent
	}
	return m, err
}

// signed reports whether any signature is of any key. The time for the check tells nothing of a key
// or a signature.
func (s standard) signed(id, at, signatures string, body []byte) bool {
	found := false
	for _, key := range s.keys {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(id + "." + at + "."))
		mac.Write(body)
		want := base64.StdEncoding.EncodeToString(mac.Sum(nil))
		for given := range strings.FieldsSeq(signatures) {
			version, given, _ := strings.Cut(given, ",")
			if version == "v1" && hmac.Equal([]byte(given), []byte(want)) {
				found = true
			}
		}
	}
	return found
}

// mapped reads a body by the settings' pointers.
func (c Config) mapped(body []byte) (message, error) {
	root, err := parse(body)
	if err != nil {
		return message{}, err
	}
	of := root.text(c.Type)
	if of == "" {
		return message{}, refuse(Malformed, "no text at "+c.Type+" (type_at)")
	}
	m := message{what: of, do: Action(c.Actions[of])}
	if m.do == "" { // the command does not repeat texts of the message
		m.what, m.do = "*", Action(cmp.Or(c.Actions["*"], string(Ignore)))
	}
	if m.do == Ignore {
		return m, nil
	}
	user := root.text(c.User)
	if user == "" {
		return m, refuse(Malformed, "no text at "+c.User+" (user_at)")
	}
	m.users = []string{user}
	if at, err := time.Parse(time.RFC3339, root.text("/timestamp")); err == nil {
		m.at = at // when the event happened: the same in a message sent again
	}
	return m, nil
}

// propelAuth reads a body of PropelAuth's: its members are beside event_type.
func (c Config) propelAuth(body []byte) (message, error) {
	root, err := parse(body)
	if err != nil {
		return message{}, err
	}
	of := root.text("/event_type")
	if of == "" {
		return message{}, refuse(Malformed, "no event_type: is this endpoint PropelAuth's?")
	}
	m := message{what: of, do: Ignore}
	at := "/user_id"
	switch of {
	case "user.updated", "user.enabled", "user.added_to_org", "user.role_changed_within_org",
		"user.added_to_scim_group", "user.removed_from_scim_group":
		m.do = Sync
	case "user.removed_from_org":
		m.do, at = Sync, "/removed_user_id"
	case "user.disabled", "user.locked", "user.logged_out":
		m.do = Ask
	case "user.deleted":
		if m.do = Ask; c.Forget {
			m.do = Forget
		}
	default:
		return m, nil
	}
	user := cmp.Or(root.text(at), root.text("/user_id"))
	if user == "" {
		return m, refuse(Malformed, "no "+at[1:])
	}
	m.users = []string{user}
	return m, nil
}
