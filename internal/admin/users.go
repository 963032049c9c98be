package admin

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Unreadable stands in a list for the status of a record that cannot be read.
const Unreadable grant.Status = "unreadable"

// Statuses are the statuses to list users by.
func Statuses() []grant.Status {
	return []grant.Status{
		grant.Live, grant.Dormant, grant.ReauthRequired, grant.SignedOff, grant.Suspended,
		grant.Unproven, Unreadable,
	}
}

// ListedUser is a user as `user list` prints it.
type ListedUser struct {
	Provider    string       `json:"provider"`
	User        string       `json:"user"`
	Status      grant.Status `json:"status"`
	Reason      string       `json:"reason,omitempty"` // of the status, or of the last failure
	Version     int64        `json:"version"`
	NextDueAt   time.Time    `json:"next_due_at,omitzero"`
	LoginAt     time.Time    `json:"login_at,omitzero"`
	RefreshedAt time.Time    `json:"refreshed_at,omitzero"`
	FailedAt    time.Time    `json:"failed_at,omitzero"`
	ActiveAt    time.Time    `json:"active_at,omitzero"`
}

// UserFilter chooses among users. The zero value takes all.
type UserFilter struct {
	Status   grant.Status
	Provider string
	Limit    int    // how many at most; 0: all
	After    string // where an earlier list ended; empty: from the start
}

// listPage is how many records are read at a time.
const listPage = 500

// ListUsers shows the users that f takes, in the order of the store. A list that ends at the limit
// returns in next where to go on; else next is empty. A user whose record is written meanwhile may
// be shown again by the next list, and no user is left out. Erased users are not shown.
func ListUsers(
	ctx context.Context, p *daemon.Resources, f UserFilter, show func(ListedUser) error,
) (next string, err error) {
	at, err := placeOf(f.After)
	if err != nil {
		return "", err
	}
	shown := map[grant.Key]bool{} // a store may list a record twice if it is written meanwhile
	for {
		page, cursor, err := p.Store.List(ctx, at.Cursor, listPage)
		if err != nil {
			return "", err
		}
		for _, g := range at.rest(page) {
			u := listed(g)
			if u.Status == grant.Forgotten || shown[g.Key] || !f.takes(u) {
				continue
			}
			if f.Limit > 0 && len(shown) == f.Limit {
				return at.String(), nil
			}
			if err := show(u); err != nil {
				return "", err
			}
			shown[g.Key], at.Last = true, g.Key
		}
		if cursor == "" {
			return "", nil
		}
		at = listPlace{Cursor: cursor}
	}
}

func (f UserFilter) takes(u ListedUser) bool {
	return (f.Status == "" || f.Status == u.Status) &&
		(f.Provider == "" || f.Provider == u.Provider)
}

// listed is what a list shows of a record. Without a keyring all but the tokens can be read.
func listed(g grant.ListEntry) ListedUser {
	u := ListedUser{
		Provider:    g.Provider,
		User:        g.User,
		Status:      g.Status,
		Reason:      g.LastError,
		Version:     g.Version,
		NextDueAt:   g.NextDueAt,
		LoginAt:     g.LoginAt,
		RefreshedAt: g.RefreshedAt,
		FailedAt:    g.FailedAt,
		ActiveAt:    g.ActiveAt,
	}
	switch {
	case g.Err != nil && !errors.Is(g.Err, daemon.ErrNoKeys):
		return ListedUser{
			Provider: g.Provider,
			User:     g.User,
			Status:   Unreadable,
			Version:  g.Version,
		}
	case g.Status == grant.ReauthRequired && g.Verdict != nil:
		u.Reason = g.Verdict.Reason
	case !g.SuspendedAt().IsZero():
		u.Reason = schema.ReasonSuspended
	}
	return u
}

// listPlace is where a list goes on: a page of the store, after the last user shown of the page.
type listPlace struct {
	Cursor string    `json:"c,omitempty"`
	Last   grant.Key `json:"k,omitzero"`
}

func (p listPlace) String() string {
	raw, err := json.Marshal(p)
	if err != nil {
		panic("admin: encode a place in a list: " + err.Error()) // strings: cannot happen
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

// ErrPlace is the error of a place in a list that no list has named.
var ErrPlace = errors.New("not where a list has ended")

func placeOf(after string) (p listPlace, err error) {
	if after == "" {
		return p, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(after)
	if err = cmp.Or(err, json.Unmarshal(raw, &p)); err != nil {
		return p, fmt.Errorf("%w: %w", ErrPlace, err)
	}
	return p, nil
}

// rest is the part of the page after the last user shown. If that user is no longer there, rest is
// the whole page.
func (p listPlace) rest(page []grant.ListEntry) []grant.ListEntry {
	last := slices.IndexFunc(page, func(g grant.ListEntry) bool { return g.Key == p.Last })
	return page[last+1:]
}
