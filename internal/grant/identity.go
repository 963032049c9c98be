package grant

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/renewd/renewd/schema"
)

// OutcomeID is the id of the outcome that answers a cause for a grant. A redelivery publishes the
// same id again, so the outcome is stored once. A cause is its sender, source and id together
// (SameCause). A cause without a sender has the same id as before causes had a sender.
func OutcomeID(k Key, cause schema.Cause) string {
	text := "renewd outcome\x00"
	if cause.Sender != "" {
		text = "renewd outcome from\x00" + cause.Sender + "\x00"
	}
	text += k.Provider + "\x00" + k.User + "\x00" + cause.Source + "\x00" + cause.ID
	sum := sha256.Sum256([]byte(text))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// RejectionID is the id of the message.rejected of a login. It is not the OutcomeID of the login's
// cause, which a user.refresh_failed of the login may have had before.
func RejectionID(k Key, login schema.Cause) string {
	login.ID += "\x00rejected"
	return OutcomeID(k, login)
}

// signOutID is the id of the user.reauth_required for a cause, of the record's version.
func signOutID(k Key, cause schema.Cause, version int64) string {
	cause.ID += fmt.Sprintf("\x00signed out %d", version)
	return OutcomeID(k, cause)
}

// IsOutcome reports whether e, a stored outcome of the user, is the outcome with this id. A version
// before made ids without the sender. Outcomes of that version are known by the sender in their
// cause, so no command is answered again after an update, and no sender's command is taken for
// another's.
func IsOutcome(k Key, e schema.Event, id string) bool {
	if e.ID == id {
		return true
	}
	var of struct {
		Cause   schema.Cause `json:"cause"`
		Version int64        `json:"version"`
	}
	if json.Unmarshal(e.Data, &of) != nil || of.Cause.Sender == "" {
		return false
	}
	unnamed := of.Cause
	unnamed.Sender = ""
	signOut := func(k Key, c schema.Cause) string { return signOutID(k, c, of.Version) }
	for _, idOf := range []func(Key, schema.Cause) string{OutcomeID, RejectionID, signOut} {
		if e.ID == idOf(k, unnamed) && id == idOf(k, of.Cause) {
			return true
		}
	}
	return false
}

// Recent is how long after a message was stored an outcome in answer to it is surely within the
// stream's duplicate window.
const Recent = time.Minute

// How far back the answer to a command is looked for: from the time of the command, by a clock that
// may be off, and a day at most.
const (
	publisherSkew = 5 * time.Minute
	longAgo       = 24 * time.Hour
)

// SentSince is the earliest time at which an answer to this command is looked for at now. Each
// outcome of the user since then is a read.
func SentSince(of schema.Cause, now time.Time) time.Time {
	return later(earlier(of.Time, now).Add(-publisherSkew), now.Add(-longAgo))
}
