package stream

import (
	"errors"
	"fmt"
	"strings"

	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

var errKey = errors.New("malformed renewal subject")

// parseRenewal is the inverse of Engine.due, asked and later. A user may be called like the end of
// a subject.
func parseRenewal(subjects schema.Subjects, subject string) (provider, user string, err error) {
	const parts = 2 // of a due subject, after its front
	front := topology.Prefixed(subjects, topology.DueFront) + "."
	if strings.Count(strings.TrimPrefix(subject, front), ".") == parts {
		if due, asked := strings.CutSuffix(subject, topology.AskedEnd); asked {
			subject = due
		} else {
			subject = strings.TrimSuffix(subject, topology.LaterEnd)
		}
	}
	return parseUser(subjects, topology.DueFront, subject)
}

// parseUser is the inverse of Engine.user.
func parseUser(subjects schema.Subjects, front, subject string) (provider, user string, err error) {
	front = topology.Prefixed(subjects, front) + "."
	rest, ok := strings.CutPrefix(subject, front)
	provider, token, two := strings.Cut(rest, ".")
	if !ok || !two {
		return "", "", fmt.Errorf("%w: %q: want %s<provider>.<user>", errKey, subject, front)
	}
	if err := schema.CheckProvider(provider); err != nil {
		return "", "", err
	}
	user, err = schema.UnescapeUser(token)
	return provider, user, err
}
