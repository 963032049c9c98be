package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/renewd/renewd/schema"
)

// ledger counts what renewd said about each user. Safe for concurrent use.
type ledger struct {
	mu        sync.Mutex
	known     map[string]bool     // has a user.synced of any kind
	refreshed map[string]int      // user.synced with a rotated pair
	reauth    map[string][]string // reasons of user.reauth_required
	complains []string            // everything that should not have happened to any user
	requested int                 // outcomes whose cause is a request of a service
}

func newLedger() *ledger {
	return &ledger{
		known:     map[string]bool{},
		refreshed: map[string]int{},
		reauth:    map[string][]string{},
	}
}

// note takes an event from OUTCOMES.
func (l *ledger) note(_ context.Context, e schema.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch e.Type {
	case schema.UserSynced:
		synced, err := schema.Data[schema.Synced](e)
		if err != nil {
			return err
		}
		l.known[e.User] = true
		if synced.Refreshed {
			l.refreshed[e.User]++
		}
		if synced.Cause.Type == schema.UserRefreshDue {
			l.requested++
		}
	case schema.UserReauthRequired:
		reauth, err := schema.Data[schema.ReauthRequired](e)
		if err != nil {
			return err
		}
		l.reauth[e.User] = append(l.reauth[e.User], reauth.Reason)
	case schema.UserRefreshFailed:
		failed, err := schema.Data[schema.RefreshFailed](e)
		if err != nil {
			return err
		}
		// A service that asks for a user who must sign in again is told so.
		if len(l.reauth[e.User]) == 0 || failed.Reason != schema.ReasonReauthRequired {
			l.complains = append(l.complains,
				fmt.Sprintf("%s of %s: %s", e.Type, e.User, failed.Reason))
		}
	default:
		l.complains = append(l.complains, fmt.Sprintf("%s of %s: %s", e.Type, e.User, e.Data))
	}
	return nil
}

// signedIn wants every login to have an answer.
func (l *ledger) signedIn(users []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.known) < len(users) {
		return fmt.Errorf("%d of %d users are known; also: %q",
			len(l.known), len(users), l.complains)
	}
	return nil
}

// reached returns an error that names the users refreshed less often than want says.
func (l *ledger) reached(users []string, want func(user string) int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	behind := 0
	var one string
	for _, u := range users {
		if l.refreshed[u] < want(u) {
			behind++
			one = fmt.Sprintf("%s has %d refreshes of %d", u, l.refreshed[u], want(u))
		}
	}
	if behind == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d users are behind: %s; also: %q",
		behind, len(users), one, l.complains)
}

// generations returns a copy of how often each user was refreshed.
func (l *ledger) generations() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.refreshed)
}

// signedOut wants every one of users to have one user.reauth_required.
func (l *ledger) signedOut(users []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, u := range users {
		if len(l.reauth[u]) == 0 {
			return fmt.Errorf("%d of %d users have a user.reauth_required; %s has none; also: %q",
				len(l.reauth), len(users), u, l.complains)
		}
	}
	return nil
}

// verdict lists what is wrong at the end, when exactly the users in ended should have been signed
// out, each once.
func (l *ledger) verdict(ended []string) (wrong []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for u, reasons := range l.reauth {
		if !slices.Contains(ended, u) {
			wrong = append(wrong,
				fmt.Sprintf("%s was signed out for %v, and its session was never ended",
					u, reasons))
		} else if len(reasons) != 1 || reasons[0] != schema.ReasonRevoked {
			wrong = append(wrong,
				fmt.Sprintf("%s was signed out for %v, want once, for %s",
					u, reasons, schema.ReasonRevoked))
		}
	}
	if l.requested == 0 {
		wrong = append(wrong, "no request of a service was answered")
	}
	return append(wrong, l.complains...)
}
