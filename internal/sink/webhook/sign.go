package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// secretPrefix starts a secret as Standard Webhooks 1.0.0 writes it.
const secretPrefix = "whsec_"

// signingKey reads a secret. The error shows nothing of the secret.
func signingKey(s secret.Value) ([]byte, error) {
	text, ok := strings.CutPrefix(s.Reveal(), secretPrefix)
	key, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(key) < 24 || len(key) > 64 {
		return nil, errors.New("want whsec_ and 24 to 64 bytes in base64, as from: echo " +
			"whsec_$(openssl rand -base64 32)")
	}
	return key, nil
}

// signatures are the signatures of all keys, in the form of the header: over id, time and body.
func signatures(keys [][]byte, id string, at time.Time, body []byte) string {
	var all []string
	for _, key := range keys {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(id + "." + strconv.FormatInt(at.Unix(), 10) + "."))
		mac.Write(body)
		all = append(all, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	return strings.Join(all, " ")
}

// messageID is the event's id, which stays the same over retries and replays. The signed text has
// its parts between dots, so a digest replaces an id that has a dot or that no header can hold.
func messageID(e schema.Event) string {
	for i := range len(e.ID) {
		if c := e.ID[i]; c <= ' ' || c > '~' || c == '.' {
			sum := sha256.Sum256([]byte(e.ID))
			return "id_" + base64.RawURLEncoding.EncodeToString(sum[:16])
		}
	}
	return e.ID
}

// message is the body: an event in the JSON format of CloudEvents 1.0, with the provider and the
// timestamp, which Standard Webhooks wants, as extensions.
type message struct {
	SpecVersion string          `json:"specversion"`
	Type        schema.Type     `json:"type"`
	Timestamp   time.Time       `json:"timestamp"`
	ID          string          `json:"id"`
	Source      string          `json:"source"`
	Provider    string          `json:"provider,omitempty"`
	Subject     string          `json:"subject,omitempty"`
	Time        time.Time       `json:"time"`
	DataSchema  string          `json:"dataschema,omitempty"`
	Data        json.RawMessage `json:"data"`
}

func payload(e schema.Event) ([]byte, error) {
	return json.Marshal(message{
		SpecVersion: "1.0", Type: e.Type, Timestamp: e.Time.UTC(), ID: e.ID, Source: e.Source,
		Provider: e.Provider, Subject: e.User, Time: e.Time.UTC(), DataSchema: e.DataSchema,
		Data: e.Data,
	})
}
