// Package session is the store's view of an outcome's user at the moment of a delivery: whether the
// session lives, why not, the profile, the access token.
//
// The package answers for the sinks that write a user's state rather than pass an outcome on. A
// late outcome says no more than the store, and an unproven session is never shown. The package
// never reads a refresh token, and keeps nothing between two calls. All of it is safe for
// concurrent use.
package session

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/schema"
)

// Loader reads a user's present grant from the store, or returns grant.ErrNotFound.
type Loader func(ctx context.Context, k grant.Key) (grant.Grant, error)

// Session is the store's view of a user.
type Session struct {
	Grant   grant.Grant
	Profile schema.Profile
	// Known: there is a profile.
	Known bool
	// Gone: the record itself is gone after an erasure, so that no version is known.
	Gone bool
}

// Read reads the store's view of an outcome's user; nil: the store says nothing, or nothing proven.
// For a record that cannot be read, Read blames the outcome. For a store that does not answer, Read
// blames the target as a whole, so that all outcomes wait.
func Read(ctx context.Context, load Loader, e schema.Event) (*Session, error) {
	k := grant.Key{Provider: e.Provider, User: e.User}
	g, err := load(ctx, k)
	gone := errors.Is(err, grant.ErrNotFound)
	switch {
	case gone && e.Type != schema.UserForgotten:
		return nil, nil // nothing is known of this user, and nothing is taken away
	case gone:
		g = grant.Grant{Key: k, Status: grant.Forgotten}
	case errors.Is(err, grant.ErrUnreadable):
		return nil, &sink.Fault{
			Blame: sink.Refused,
			Err:   errors.New("the user's record cannot be read: see renewd doctor"),
		}
	case err != nil:
		return nil, &sink.Fault{
			Blame: sink.Unreachable, Err: errors.New("renewd's store does not answer"),
		}
	case g.Status == grant.Unproven:
		return nil, nil
	}
	s := &Session{Grant: g, Gone: gone}
	if profile, err := g.Profile.Decode(); err == nil && profile != nil {
		s.Profile, s.Known = *profile, true
	}
	return s, nil
}

// Forgotten reports whether the user was erased.
func (s *Session) Forgotten() bool { return s.Grant.Status == grant.Forgotten }

// Lives reports whether the session lives. A dormant user's session lives, and only its tokens are
// not renewed before something asks for the user.
func (s *Session) Lives() bool {
	return s.Grant.Status == grant.Live || s.Grant.Status == grant.Dormant
}

// Reason is why the session does not live; empty: the session lives.
func (s *Session) Reason() string {
	if v := s.Grant.Verdict; v != nil && s.Grant.Status == grant.ReauthRequired {
		return v.Reason
	}
	if s.Lives() {
		return ""
	}
	return string(s.Grant.Status)
}

// AccessToken is the token of a live session; empty: no token. A suspended or dormant user's token
// is not shown, because no other reader gets it either.
func (s *Session) AccessToken() string {
	if s.Grant.Status != grant.Live {
		return ""
	}
	return s.Grant.Pair.Access.Reveal()
}

// ExpiresAt is when that token expires; zero: no token.
func (s *Session) ExpiresAt() time.Time {
	if s.Grant.Status != grant.Live {
		return time.Time{}
	}
	return s.Grant.Pair.ExpiresAt
}

// Pointed is the value that a JSON pointer (RFC 6901), / and more, leads to in a document: a
// string, a bool, or a json.RawMessage of another value; nil: no value.
func Pointed(doc json.RawMessage, pointer string) any {
	at := doc
	for token := range strings.SplitSeq(pointer[1:], "/") {
		token = strings.NewReplacer("~1", "/", "~0", "~").Replace(token)
		var object map[string]json.RawMessage
		var list []json.RawMessage
		if json.Unmarshal(at, &object) == nil && object != nil {
			at = object[token]
		} else if n, err := strconv.Atoi(token); err == nil && json.Unmarshal(at, &list) == nil &&
			n >= 0 && n < len(list) {
			at = list[n]
		} else {
			return nil
		}
	}
	var s *string
	var b *bool
	switch {
	case len(at) == 0 || string(at) == "null":
		return nil
	case json.Unmarshal(at, &s) == nil:
		return *s
	case json.Unmarshal(at, &b) == nil:
		return *b
	}
	return at
}
