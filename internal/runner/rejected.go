package runner

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/renewd/renewd/schema"
)

// unparsed stands for a provider or user that cannot be read from a malformed subject.
const unparsed = "unknown"

// Rejected is the message.rejected that answers a command no worker could understand. The event
// names the message's subject, the field at fault and the remedy. Of the body the event holds only
// the source and id of a structured event. Its cause is the event as its publisher named the event,
// or the message where the event's name cannot be read. Its id covers both, so a redelivery rejects
// the same command under the same id.
func Rejected(
	subjects schema.Subjects, m *Message, cause error, source string, now time.Time,
) schema.Event {
	addr, err := subjects.Parse(m.Subject)
	if err != nil {
		addr = nearest(subjects, m.Subject, addr)
	}
	place := fmt.Sprintf("%s-%d", m.Stream, m.Sequence)
	from, id := schema.Origin(m.Header, m.Data)
	data := schema.Rejected{
		Cause: schema.Cause{
			ID:     cmp.Or(id, place),
			Type:   addr.Type,
			Source: from,
			Time:   m.Time.UTC(),
			Sender: addr.Sender,
		},
		Subject: clip(m.Subject, 512), Reason: schema.RejectData, Message: "see the message",
	}
	if bad, ok := errors.AsType[*schema.Malformed](cause); ok {
		data.Reason, data.Field, data.Message = bad.Reason, bad.Field, bad.Message
	} else if cause != nil {
		data.Message = cause.Error()
	}
	raw, err := json.Marshal(data)
	if err != nil {
		panic("runner: encode rejection: " + err.Error()) // a struct of this module: cannot happen
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{
		"renewd rejected", place, m.Time.UTC().Format(time.RFC3339Nano), from, id,
	}, "\x00")))
	return schema.Event{
		ID:       base64.RawURLEncoding.EncodeToString(sum[:16]),
		Source:   source,
		Type:     schema.MessageRejected,
		Provider: addr.Provider,
		User:     addr.User,
		Time:     now.UTC(),
		Data:     raw,
	}
}

// nearest reads the readable parts of a malformed subject, so that the rejection lands where its
// publisher looks: an unescaped e-mail address still names its user.
func nearest(subjects schema.Subjects, subject string, addr schema.Address) schema.Address {
	rest := strings.TrimPrefix(subject, subjects.Prefix()+".")
	if addr.Sender != "" {
		_, rest, _ = strings.Cut(rest, "."+addr.Sender+".")
	}
	parts := strings.SplitN(rest, ".", 4)
	if !addr.Type.Known() && len(parts) > 1 {
		addr.Type = schema.Type(clip(parts[0]+"."+parts[1], 64))
	}
	if schema.CheckProvider(addr.Provider) != nil {
		addr.Provider = unparsed
	}
	if addr.User == "" && len(parts) == 4 {
		addr.User = parts[3]
	}
	if schema.CheckUser(addr.User) != nil {
		addr.User = unparsed
	}
	return addr
}

func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
