package systemtest_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/reconcile"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/testkit/streams"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

const dumpFlags, restoreFlags = "--format=custom --schema=renewd", "--exit-on-error --no-owner"

// backup copies the store as docs/backup.md says: NATS KV without a worker, since a snapshot may
// miss a record that is written meanwhile. restore puts the copy in the store's place, with no
// worker running.
func (w *world) backup() (restore func()) {
	w.t.Helper()
	if w.database == "" {
		w.stop()
		copied := streams.Backup(w.t, w.js, "KV_"+topology.BucketGrants)
		w.start()
		return func() {
			copied.Restore(w.t, w.js, "KV_"+topology.BucketGrants)
			w.openKV()
		}
	}
	file := filepath.Join(w.t.TempDir(), "renewd.dump")
	databases.Run(w.t, "pg_dump", append(strings.Fields(dumpFlags), "--file="+file, w.database)...)
	return func() {
		fresh := databases.URL(w.t)
		databases.Run(w.t, "pg_restore", append(strings.Fields(restoreFlags), "--dbname="+fresh,
			file)...)
		w.openPostgres(fresh)
	}
}

// The page tells operators to do what these tests do.
func TestBackupPageIsWhatIsTested(t *testing.T) {
	page, err := os.ReadFile("../../docs/backup.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{
		"pg_dump " + dumpFlags, "pg_restore " + restoreFlags,
		"nats stream backup KV_" + topology.BucketGrants,
	} {
		if !strings.Contains(string(page), command) {
			t.Errorf("docs/backup.md does not say %q", command)
		}
	}
}

func keyOf(n int) grant.Key { return grant.Key{Provider: provider, User: user(n)} }

// rotate asks for fresh tokens of some users and returns how each request was answered. Tokens that
// are younger than the policy's floor are fresh as they are, so those users are asked for again.
func (w *world) rotate(id string, users ...int) map[int]schema.Event {
	w.t.Helper()
	answers := w.asks(id, users...)
	var young []int
	for n, e := range answers {
		if e.Type == schema.UserSynced && !decode[schema.Synced](w.t, e).Refreshed {
			young = append(young, n)
		}
	}
	if len(young) > 0 {
		<-time.After(time.Second) // the floor
		maps.Copy(answers, w.asks(id+"-again", young...))
	}
	return answers
}

// asks asks for fresh tokens of some users and returns how each request was answered.
func (w *world) asks(id string, users ...int) map[int]schema.Event {
	w.t.Helper()
	for _, n := range users {
		w.must(raw(w.js.Conn(), "user.refresh_due."+provider+"."+user(n), `{"want":"tokens"}`,
			"ce-id", id))
	}
	answers := map[int]schema.Event{}
	w.await("every request "+id+" is answered", time.Minute,
		func(all map[string][]schema.Event) bool {
			for _, n := range users {
				for _, e := range all[user(n)] {
					// Compare the cause, since the id of a sign-out is not the request's.
					if decode[struct{ Cause schema.Cause }](w.t, e).Cause.ID == id {
						answers[n] = e
					}
				}
			}
			return len(answers) == len(users)
		})
	return answers
}

// signIn signs users in and waits until each is synced once more.
func (w *world) signIn(users ...int) {
	w.t.Helper()
	p := w.publisher()
	ids := map[int]string{}
	for _, n := range users {
		ids[n] = grant.OutcomeID(keyOf(n), schema.Cause{ID: w.login(p, user(n)).ID, Source: "/app"})
	}
	w.await("everybody is in", time.Minute, func(all map[string][]schema.Event) bool {
		in := 0
		for n, id := range ids {
			for _, e := range all[user(n)] {
				if e.ID == id && e.Type == schema.UserSynced {
					in++
				}
			}
		}
		return in == len(users)
	})
}

// parkedPair renews a user by hand and sets the pair aside, as a worker does whose store is gone.
func (w *world) parkedPair(n int) {
	w.t.Helper()
	ctx := w.t.Context()
	g, err := w.store.Load(ctx, keyOf(n))
	w.must(err)
	tokens, err := w.client().Refresh(ctx, g.Pair.Refresh)
	w.must(err)
	next := g.Rotated(grant.Turn{Now: time.Now(), Policy: &w.policy}, tokens, g.Fingerprint())
	sealed, err := grant.SealPair(w.keys, grant.PurposePark, next.Key, next.Version, next.Pair)
	w.must(err)
	_, err = w.engine(w.js).Park(ctx, next.Key, grant.Parcel{
		Version: next.Version,
		Parent:  next.Pair.Parent,
		Sealed:  sealed,
	})
	w.must(err)
}

// erase does what `renewd user forget` does.
func (w *world) erase(n int) {
	w.t.Helper()
	ctx := w.t.Context()
	g, err := w.store.Load(ctx, keyOf(n))
	w.must(err)
	w.must(w.store.Delete(ctx, g.Key, g.Revision))
	e := w.engine(w.js)
	newest, err := e.NewestLogin(ctx)
	w.must(err)
	w.must(e.Erase(ctx, g.Key, newest))
	w.must(e.PublishMarked(ctx, schema.Event{
		ID:       "forgotten",
		Source:   "/test",
		Type:     schema.UserForgotten,
		Provider: provider,
		User:     g.User,
		Time:     time.Now(),
		Data:     []byte(`{}`),
	}, grant.Mark{Version: g.Version + 1}))
}

// versions returns the highest version that was told of each user.
func (w *world) versions() map[string]int64 {
	highest := map[string]int64{}
	for name, list := range w.heard() {
		for _, e := range list {
			highest[name] = max(highest[name], versionOf(w.t, e))
		}
	}
	return highest
}

func versionOf(t *testing.T, e schema.Event) int64 {
	return decode[struct{ Version int64 }](t, e).Version
}

// A store was restored from a backup, next to streams that went on. Superseded tokens are not
// presented, and their users are told. Other users go on, and a login heals the rest.
func TestRestoredStore(t *testing.T) {
	t.Parallel()
	for _, store := range []string{"postgres", "natskv"} {
		t.Run(store, func(t *testing.T) {
			w := newWorld(t, options{
				provider:    standin.Options{Lifetime: time.Hour},
				concurrency: 8,
				postgres:    store == "postgres",
				settings:    quick,
			})
			w.follow()
			w.start()
			rotated, untouched, late := []int{0, 1, 2, 3, 4}, []int{5, 6, 7, 8, 9}, []int{10, 11}
			const ended, parked, erased = 12, 13, 14
			w.signIn(append(append([]int{ended, parked, erased}, rotated...), untouched...)...)
			restore := w.backup()

			w.rotate("before", append([]int{ended, parked, erased}, rotated...)...)
			w.signIn(late...)
			w.provider.EndSessions(user(ended))
			w.rotate("ended", ended)
			w.stop()
			w.parkedPair(parked)
			w.erase(erased)
			before := w.versions()
			restore()

			compared, err := reconcile.Compare(t.Context(), w.store, w.engine(w.js), nil)
			if want := (reconcile.Comparison{
				Grants:     13,
				Live:       13,
				Superseded: 8,
				Outcomes:   compared.Outcomes,
			}); err != nil || compared != want {
				t.Errorf("compared %+v, %v; want %+v", compared, err, want)
			}
			w.start()
			w.checkRestored(before, map[string][]int{
				schema.ReasonSuperseded:   append([]int{ended, erased}, rotated...),
				"":                        append([]int{parked}, untouched...),
				schema.ReasonUnknownGrant: late,
			})
			before = w.versions()
			again := append(append([]int{ended, erased}, rotated...), late...)
			w.signIn(again...)
			for n, e := range w.rotate("healed", again...) {
				if e.Type != schema.UserSynced || versionOf(t, e) <= before[user(n)] {
					t.Errorf("%s after signing in: %s %s, before it version %d", user(n), e.Type,
						e.Data, before[user(n)])
				}
			}
			w.noReuse()
		})
	}
}

// checkRestored asks for fresh tokens of users. want groups the users by the reason of their
// refusal; "" is for users who get tokens.
func (w *world) checkRestored(before map[string]int64, want map[string][]int) {
	w.t.Helper()
	for reason, users := range want {
		for n, e := range w.rotate("after", users...) {
			if reason == "" {
				if d := decode[schema.Synced](w.t, e); e.Type != schema.UserSynced ||
					!d.Refreshed || d.Version <= before[user(n)] {
					w.t.Errorf("%s: %s %s, before it version %d", user(n), e.Type, e.Data,
						before[user(n)])
				}
				continue
			}
			d := decode[schema.RefreshFailed](w.t, e)
			if e.Type != schema.UserRefreshFailed || d.Reason != reason || d.NextAttemptAt != nil {
				w.t.Errorf("%s: %s %s, want %s", user(n), e.Type, e.Data, reason)
			}
			if reason == schema.ReasonSuperseded && d.Version <= before[user(n)] {
				w.t.Errorf("%s: version %d, before it %d", user(n), d.Version, before[user(n)])
			}
		}
	}
	w.noReuse()
}

func (w *world) noReuse() {
	w.t.Helper()
	if s := w.provider.Stats(); s.Reuse != 0 || s.RevokedFamilies != 0 {
		w.t.Errorf("the provider saw %+v", s)
	}
}

// No service asks. The timers that outlived the restore find out, or the reconciler if they are
// lost as well.
func TestRestoredStoreIsFoundOut(t *testing.T) {
	t.Parallel()
	for _, by := range []string{"timers", "reconciler"} {
		t.Run(by, func(t *testing.T) {
			const users = 10
			w := newWorld(t, options{
				provider:    standin.Options{Lifetime: 4 * time.Second},
				concurrency: 8,
				postgres:    true,
				settings:    quick,
			})
			if by == "reconciler" {
				w.walks = reconcile.Reconciler{
					Every:   time.Second,
					Poll:    time.Second,
					Overdue: time.Second,
				}
			}
			w.follow()
			w.start()
			everybody := make([]int, users)
			for n := range users {
				everybody[n] = n
			}
			w.signIn(everybody...)
			restore := w.backup()
			w.renewed(users, 1)
			w.stop()
			restore()
			if by == "reconciler" {
				s, err := w.js.Stream(t.Context(), topology.Renewals)
				w.must(err)
				w.must(s.Purge(t.Context()))
			}
			w.start()
			w.await("everybody is told", time.Minute, func(all map[string][]schema.Event) bool {
				for n := range users {
					list := all[user(n)]
					last := list[len(list)-1]
					if last.Type != schema.UserRefreshFailed ||
						decode[schema.RefreshFailed](t, last).Reason != schema.ReasonSuperseded {
						return false
					}
				}
				return true
			})
			w.noReuse()
			w.signIn(everybody...)
			w.renewed(users, 1)
			w.nobodySignedOut(users)
		})
	}
}

// Streams were restored from a copy of the server's folder, next to a database that went on. Old
// timers, commands and sequences do no harm, and a new login counts.
func TestRestoredStreams(t *testing.T) {
	t.Parallel()
	const users = 10
	w := newWorld(t, options{
		provider:    standin.Options{Lifetime: 5 * time.Second},
		concurrency: 8,
		postgres:    true,
		settings:    quick,
	})
	unfollow := w.follow()
	w.start()
	for n := range users {
		w.signIn(n)
	}
	w.stop()
	unfollow()
	w.nats.Shutdown()
	backup := filepath.Join(t.TempDir(), "nats")
	w.must(os.CopyFS(backup, os.DirFS(w.folder)))

	w.boot(w.folder)
	unfollow = w.follow()
	w.start()
	for range 3 {
		w.signIn(1, 2, 3) // their sequences in LOGINS are given out again below
	}
	w.renewed(users, 2)
	w.stop()
	unfollow()
	w.nats.Shutdown()

	w.boot(backup)
	for n := range users { // as if some minutes had passed
		g, err := w.store.Load(t.Context(), keyOf(n))
		w.must(err)
		g.Login.Time = g.Login.Time.Add(-5 * time.Minute)
		_, err = w.store.Save(t.Context(), g)
		w.must(err)
	}
	w.follow()
	w.start()
	w.renewed(users, 2)
	for n := range 4 {
		w.signIn(n)
		g, err := w.store.Load(t.Context(), keyOf(n))
		w.must(err)
		if age := time.Since(g.LoginAt); age > time.Minute ||
			!w.provider.Valid(g.Pair.Refresh.Reveal()) {
			t.Errorf("%s: the login after the restore did not count: stored is one of %v ago",
				user(n), age)
		}
	}
	w.nobodySignedOut(users)
}
