package systemtest_test

import (
	"encoding/json"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/health"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// soon are settings of a quick policy that believes words that are unknown within seconds.
func soon(more ...string) []string {
	return slices.Concat(quick, []string{
		"RENEWD_POLICY_TRIES=2",
		"RENEWD_POLICY_RETRY_LATER=3s",
		"RENEWD_POLICY_CONFIRM_UNKNOWN=3s",
	}, more)
}

// A provider has no plain word for a session that ended, like Dex. Users whose sessions ended are
// told, and no others, and the others are renewed meanwhile.
func TestSessionsThatEndInUnknownWordsAreTold(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"a code":  `{"error":"invalid_request"}`,
		"no body": "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const users, dead = 30, 3
			w := newWorld(t, options{
				provider:    standin.Options{Lifetime: 4 * time.Second},
				concurrency: 32,
				settings:    soon(),
			})
			w.provider.SetFault(func(r standin.Request) *standin.Fault {
				if r.Op == "token" && !w.provider.Live(r.User) {
					return &standin.Fault{Status: 400, Body: body}
				}
				return nil
			})
			w.follow()
			w.start()
			w.start()
			p := w.publisher()
			for n := range users {
				w.login(p, user(n))
			}
			w.renewed(users, 1)
			for n := range dead {
				w.provider.EndSessions(user(n))
			}
			w.await("those whose sessions ended are told", time.Minute,
				func(all map[string][]schema.Event) bool {
					for n := range dead {
						list := all[user(n)]
						if len(list) == 0 || list[len(list)-1].Type != schema.UserReauthRequired {
							return false
						}
					}
					return true
				})
			for who, list := range w.heard() {
				for _, e := range list {
					if e.Type != schema.UserReauthRequired {
						continue
					}
					d := decode[schema.ReauthRequired](t, e)
					if d.Reason != schema.ReasonRefusedAlone || who >= user(dead) {
						t.Errorf("%s is told %s", who, e.Data)
					}
				}
			}
		})
	}
}

// A provider answers wrong settings with an empty 400, and spends the tokens that it is shown, like
// Glewlwyd. Few tokens are shown to it, users who sign in are synced, and with the right settings
// all users are renewed at once.
func TestWrongSettingsInUnknownWordsSpendFewTokens(t *testing.T) {
	t.Parallel()
	const users = 40
	w := newWorld(t, options{
		provider:    standin.Options{Lifetime: 4 * time.Second},
		concurrency: 32,
		// the right settings must not wait for it
		settings: soon("RENEWD_POLICY_RETRY_LATER=1h"),
	})
	var mu sync.Mutex
	wrong, shown := false, map[string]bool{}
	w.provider.SetFault(func(r standin.Request) *standin.Fault {
		mu.Lock()
		defer mu.Unlock()
		if !wrong || r.Op != "token" {
			return nil
		}
		shown[r.User] = true
		return &standin.Fault{Status: 400}
	})
	set := func(is bool) {
		mu.Lock()
		wrong = is
		mu.Unlock()
		tokenURL := "" // the preset's
		if is {
			tokenURL = w.url + "/propelauth/oauth/token" // other settings
		}
		w.environ = append(w.environ, "RENEWD_TOKEN_URL="+tokenURL)
		w.start()
		w.start()
	}
	w.follow()
	set(false)
	p := w.publisher()
	for n := range users {
		w.login(p, user(n))
	}
	w.renewed(users, 1)
	w.stop()
	set(true)
	w.told("provider.degraded", health.ReasonUnknown)
	w.newcomer()
	w.stop()
	mu.Lock()
	if len(shown) > 12 {
		t.Errorf("%d tokens of %d were shown under wrong settings", len(shown), users)
	}
	mu.Unlock()
	set(false)
	w.renewed(users, 2)
	w.nobodySignedOut(users)
}

// An operator's pause: no call is made, and the workers' end does not lift the pause. When it is
// lifted, all users are renewed again.
func TestAnOperatorsPause(t *testing.T) {
	t.Parallel()
	const users = 30
	w, _, calls := manned(t, users, options{
		provider:    standin.Options{Lifetime: 4 * time.Second},
		concurrency: 32,
		settings:    quick,
	})
	bucket, err := w.js.KeyValue(t.Context(), topology.BucketProviders)
	w.must(err)
	w.must(health.PauseBy(t.Context(), bucket, provider, health.Pause{
		By:    "jo",
		Note:  "they migrate",
		Since: time.Now().UTC(),
	}))
	told := w.told("provider.degraded", health.ReasonPaused)
	var d schema.ProviderState
	w.must(json.Unmarshal(told[0].Data, &d))
	if d.By != "jo" || d.Note != "they migrate" || !d.Until.IsZero() {
		t.Errorf("told %+v", d)
	}
	w.stop()
	w.start()
	w.start()
	began := time.Now()
	w.await("everybody is long overdue", time.Minute, func(map[string][]schema.Event) bool {
		return time.Since(began) > 6*time.Second
	})
	if n := calls.between(began.Add(2*time.Second), time.Now()); n != 0 {
		t.Errorf("%d calls in a pause", n)
	}
	w.must(health.ResumeBy(t.Context(), bucket, provider, "kim", time.Now()))
	w.renewed(users, 1)
	told = w.told("provider.degraded", health.ReasonPaused, "provider.recovered",
		health.ReasonPaused)
	w.must(json.Unmarshal(told[1].Data, &d))
	if d.By != "kim" {
		t.Errorf("told %+v", d)
	}
	w.nobodySignedOut(users)
}
