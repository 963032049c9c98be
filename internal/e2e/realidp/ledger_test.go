package realidp

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/renewd/renewd/schema"
)

// ledger keeps what renewd said about each user.
type ledger struct {
	watched
	known    map[string]bool     // has an outcome
	renewed  map[string]int      // user.synced with a fresh pair
	told     map[string][]string // reasons of user.reauth_required
	failed   map[string]int      // user.refresh_failed, by reason
	degraded []string            // reasons of provider.degraded
	rejected []string            // messages that should never have been refused
}

func newLedger() *ledger {
	return &ledger{
		watched: newWatched(),
		known:   map[string]bool{},
		renewed: map[string]int{},
		told:    map[string][]string{},
		failed:  map[string]int{},
	}
}

// note takes an event from OUTCOMES.
func (l *ledger) note(_ context.Context, e schema.Event) (err error) {
	l.update(func() { err = l.enter(e) })
	return err
}

func (l *ledger) enter(e schema.Event) error {
	if e.User != "" {
		l.known[e.User] = true
	}
	switch e.Type {
	case schema.UserSynced:
		synced, err := schema.Data[schema.Synced](e)
		if err != nil {
			return err
		}
		if synced.Refreshed {
			l.renewed[e.User]++
		}
	case schema.UserReauthRequired:
		reauth, err := schema.Data[schema.ReauthRequired](e)
		if err != nil {
			return err
		}
		l.told[e.User] = append(l.told[e.User], reauth.Reason)
	case schema.UserRefreshFailed:
		failed, err := schema.Data[schema.RefreshFailed](e)
		if err != nil {
			return err
		}
		l.failed[failed.Reason]++
	case schema.ProviderDegraded:
		state, err := schema.Data[schema.ProviderState](e)
		if err != nil {
			return err
		}
		l.degraded = append(l.degraded, state.Reason)
	case schema.MessageRejected:
		l.rejected = append(l.rejected, string(e.Data))
	}
	return nil
}

// generations returns a copy of how often each user was renewed.
func (l *ledger) generations() (all map[string]int) {
	l.look(func() { all = maps.Clone(l.renewed) })
	return all
}

// reached is nil once every user was renewed as often as want says. The caller holds the ledger.
func (l *ledger) reached(users []string, want func(user string) int) error {
	behind := slices.DeleteFunc(slices.Clone(users), func(u string) bool {
		return l.renewed[u] >= want(u)
	})
	if len(behind) == 0 {
		return nil
	}
	one := behind[0]
	return fmt.Errorf("%d of %d users are behind: %s has %d renewals of %d; %s",
		len(behind), len(users), one, l.renewed[one], want(one), l.events())
}

// tells is nil once each of users was told to sign in again, exactly once, and no other user was
// told. Users whose session the provider has lost may be told. The caller holds the ledger.
func (l *ledger) tells(users []string, lost map[string]bool) error {
	var wrong []string
	for _, u := range users {
		if len(l.told[u]) != 1 {
			wrong = append(wrong, fmt.Sprintf("%s was told %d times, want once", u, len(l.told[u])))
		}
	}
	for u, reasons := range l.told {
		if !slices.Contains(users, u) && !lost[u] {
			wrong = append(wrong,
				fmt.Sprintf("%s was told to sign in again (%s), and the session was never ended",
					u, reasons))
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("%s; %s", strings.Join(wrong, "; "), l.events())
}

func (l *ledger) events() string {
	return fmt.Sprintf("told %v, refresh_failed %v, degraded %v, rejected %v",
		l.told, l.failed, l.degraded, l.rejected)
}
