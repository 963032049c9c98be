package systemtest_test

import (
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/guard"
	"github.com/renewd/renewd/internal/idp/idptest"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

// soon is quick, and believes words that nobody knows within seconds.
func soon() grant.Policy {
	p := quick
	p.Tries, p.RetryLater, p.ConfirmUnknown = 2, 3*time.Second, 3*time.Second
	return p
}

// A provider that has no plain word for a session that ended, like Dex: those whose sessions ended
// are told, they alone, and the others are renewed all the while.
func TestSessionsThatEndInUnknownWordsAreTold(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{"a code": `{"error":"invalid_request"}`, "no body": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const users, dead = 30, 3
			w := newWorld(t, options{provider: idptest.Options{Lifetime: 4 * time.Second}, concurrency: 32, policy: soon()})
			w.provider.SetFault(func(r idptest.Request) *idptest.Fault {
				if r.Op == "token" && !w.provider.Live(r.User) {
					return &idptest.Fault{Status: 400, Body: body}
				}
				return nil
			})
			w.follow()
			w.start(16)
			w.start(16)
			p := w.publisher()
			for n := range users {
				w.login(p, user(n))
			}
			w.renewed(users, 1)
			for n := range dead {
				w.provider.EndSessions(user(n))
			}
			w.await("those whose sessions ended are told", time.Minute, func(all map[string][]schema.Event) bool {
				for n := range dead {
					if list := all[user(n)]; list[len(list)-1].Type != schema.UserReauthRequired {
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
					if d := decode[schema.ReauthRequired](t, e); d.Reason != schema.ReasonRefusedAlone || who >= user(dead) {
						t.Errorf("%s is told %s", who, e.Data)
					}
				}
			}
		})
	}
}

// A provider that answers wrong settings with an empty 400, and spends what it is shown, like
// Glewlwyd: few tokens are shown to it, whoever signs in is synced, and the right settings have
// everybody renewed at once.
func TestWrongSettingsInUnknownWordsSpendFewTokens(t *testing.T) {
	t.Parallel()
	const users = 40
	policy := soon()
	policy.RetryLater = time.Hour // the right settings must not wait for it
	w := newWorld(t, options{provider: idptest.Options{Lifetime: 4 * time.Second}, concurrency: 32, policy: policy})
	var mu sync.Mutex
	wrong, shown := false, map[string]bool{}
	w.provider.SetFault(func(r idptest.Request) *idptest.Fault {
		mu.Lock()
		defer mu.Unlock()
		if !wrong || r.Op != "token" {
			return nil
		}
		shown[r.User] = true
		return &idptest.Fault{Status: 400}
	})
	set := func(is bool) {
		mu.Lock()
		wrong = is
		mu.Unlock()
		if w.tokenURL = ""; is {
			w.tokenURL = w.url + "/propelauth/oauth/token" // other settings
		}
		w.start(16)
		w.start(16)
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
	w.told("provider.degraded", guard.ReasonUnknown)
	w.login(p, "newcomer")
	w.await("who signs in is synced", 10*time.Second, func(all map[string][]schema.Event) bool { return len(all["newcomer"]) > 0 })
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

// An operator's pause: no call is made, the workers' end does not lift it, and when it is lifted
// everybody goes on.
func TestAnOperatorsPause(t *testing.T) {
	t.Parallel()
	const users = 30
	w, _, calls := manned(t, users, options{provider: idptest.Options{Lifetime: 4 * time.Second}, concurrency: 32, policy: quick})
	bucket, err := w.js.KeyValue(t.Context(), stream.BucketProviders)
	w.must(err)
	w.must(guard.PauseBy(t.Context(), bucket, provider, guard.Pause{By: "jo", Note: "they migrate", Since: time.Now().UTC()}))
	told := w.told("provider.degraded", guard.ReasonPaused)
	var d schema.ProviderState
	w.must(json.Unmarshal(told[0].Data, &d))
	if d.By != "jo" || d.Note != "they migrate" || !d.Until.IsZero() {
		t.Errorf("told %+v", d)
	}
	w.stop()
	w.start(16)
	w.start(16)
	began := time.Now()
	w.await("everybody is long overdue", time.Minute, func(map[string][]schema.Event) bool { return time.Since(began) > 6*time.Second })
	if n := calls.between(began.Add(2*time.Second), time.Now()); n != 0 {
		t.Errorf("%d calls in a pause", n)
	}
	w.must(guard.ResumeBy(t.Context(), bucket, provider, "kim", time.Now()))
	w.renewed(users, 1)
	told = w.told("provider.degraded", guard.ReasonPaused, "provider.recovered", guard.ReasonPaused)
	w.must(json.Unmarshal(told[1].Data, &d))
	if d.By != "kim" {
		t.Errorf("told %+v", d)
	}
	w.nobodySignedOut(users)
}
