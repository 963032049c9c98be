package stream

import (
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Headers of a renewal. They carry the work instead of the body, because the server hands a
// schedule's headers on to the fired message, and because any NATS tool shows headers. Values are
// percent-encoded, since a reason is free text of a publisher.
const (
	headerID       = "ce-id"
	headerType     = "ce-type"
	headerSource   = "ce-source"
	headerTime     = "ce-time"
	headerReason   = "renewd-reason"
	headerSender   = "renewd-sender"
	headerWant     = "renewd-want"
	headerMinValid = "renewd-min-valid"
	headerDeferred = "renewd-deferred" // how often this work was put off
	headerAgain    = "renewd-again"    // the cause was handled before, in another message

	// headerRecord has the mark of the record from which a timer or an outcome was made.
	headerRecord = "renewd-record"
)

func workHeader(w grant.Work) schema.Header {
	// There is room for a schedule's headers. Names are new here, and written as Set would.
	h := make(schema.Header, 14)
	set := func(name, value string) {
		if value != "" {
			h[name] = []string{url.PathEscape(value)}
		}
	}
	set(headerID, w.Cause.ID)
	set(headerType, string(w.Cause.Type))
	set(headerSource, w.Cause.Source)
	set(headerReason, w.Cause.Reason)
	set(headerSender, w.Cause.Sender)
	set(headerWant, w.Want)
	if !w.Cause.Time.IsZero() {
		h[headerTime] = []string{w.Cause.Time.UTC().Format(time.RFC3339Nano)}
	}
	if w.MinValid != 0 {
		h[headerMinValid] = []string{w.MinValid.String()}
	}
	if w.Again {
		h[headerAgain] = []string{"true"}
	}
	if w.Deferrals != 0 {
		h[headerDeferred] = []string{strconv.Itoa(w.Deferrals)}
	}
	setMark(h, w.Mark)
	return h
}

func setMark(h schema.Header, m grant.Mark) {
	if m != (grant.Mark{}) {
		h[headerRecord] = []string{m.String()}
	}
}

// ParseWork reads a message of RENEWALS back into the arguments of Arm or Wake. An error means the
// message is another writer's. The error names the subject or header at fault.
func (e *Engine) ParseWork(subject string, h schema.Header) (grant.Key, grant.Work, error) {
	provider, user, err := parseRenewal(e.config.Subjects, subject)
	if err != nil {
		return grant.Key{}, grant.Work{}, fmt.Errorf("parse renewal: %w", err)
	}
	k := grant.Key{Provider: provider, User: user}
	w, err := parseWork(h)
	if err != nil {
		return k, grant.Work{}, fmt.Errorf("parse renewal of %s: %w", k, err)
	}
	return k, w, nil
}

func parseWork(h schema.Header) (w grant.Work, err error) {
	var kind string
	for _, f := range []struct {
		name string
		to   *string
	}{
		{headerID, &w.Cause.ID}, {headerType, &kind}, {headerSource, &w.Cause.Source},
		{headerReason, &w.Cause.Reason}, {headerSender, &w.Cause.Sender}, {headerWant, &w.Want},
	} {
		if *f.to, err = url.PathUnescape(h.Get(f.name)); err != nil {
			return w, fmt.Errorf("header %s: %w", f.name, err)
		}
	}
	w.Cause.Type = schema.Type(kind)
	if w.Cause.ID == "" || kind == "" {
		return w, fmt.Errorf("header %s or %s is missing: "+
			"services publish %s, only renewd publishes here",
			headerID, headerType, schema.UserRefreshDue)
	}
	if v := h.Get(headerTime); v != "" {
		if w.Cause.Time, err = time.Parse(time.RFC3339Nano, v); err != nil {
			return w, fmt.Errorf("header %s: %w", headerTime, err)
		}
	}
	if v := h.Get(headerMinValid); v != "" {
		if w.MinValid, err = time.ParseDuration(v); err != nil {
			return w, fmt.Errorf("header %s: %w", headerMinValid, err)
		}
	}
	if v := h.Get(headerAgain); v != "" {
		if w.Again, err = strconv.ParseBool(v); err != nil {
			return w, fmt.Errorf("header %s: %q: want true or false", headerAgain, v)
		}
	}
	if v := h.Get(headerDeferred); v != "" {
		if w.Deferrals, err = strconv.Atoi(v); err != nil || w.Deferrals < 0 {
			return w, fmt.Errorf("header %s: %q: want a count", headerDeferred, v)
		}
	}
	if w.Mark, err = grant.ParseMark(h.Get(headerRecord)); err != nil {
		return w, fmt.Errorf("header %s: %w", headerRecord, err)
	}
	return w, nil
}
