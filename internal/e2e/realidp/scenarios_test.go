package realidp

import (
	"errors"
	"testing"
)

// scenarios are what every provider is put through, each in a separate world.
var scenarios = []struct {
	name    string
	workers int
	run     func(*testing.T, *world)
}{
	{"everybody is renewed three times", 1, func(t *testing.T, w *world) {
		w.renewedAgain(t, 3, w.users...)
		w.check(t)
		w.examine(t)
	}},
	{"whose session was revoked is told and nobody else", 1, revoked},
	{"the provider is killed and comes back", 1, killed},
	{
		"the client secret is wrong for a while",
		1,
		func(t *testing.T, w *world) { refused(t, w, w.auth, "a-wrong-secret") },
	},
	{
		"the client shows its secret the wrong way for a while",
		1,
		func(t *testing.T, w *world) { refused(t, w, w.wrongWay, clientSecret) },
	},
	{"one of two workers is killed under load", 2, workerKilled},
}

func TestDex(t *testing.T) { run(t, dexKind) }

func TestZitadel(t *testing.T) { run(t, zitadelKind) }

func TestGlewlwyd(t *testing.T) { run(t, glewlwydKind) }

func TestHydra(t *testing.T) { run(t, hydraKind) }

func run(t *testing.T, k kind) {
	t.Parallel()
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.run(t, newWorld(t, k, s.workers))
		})
	}
}

// examine has renewd itself check the provider. The check must find nothing that is broken.
func (w *world) examine(t *testing.T) {
	t.Helper()
	out, err := command(t, w.environ(), "provider", "check").CombinedOutput()
	t.Logf("renewd provider check:\n%s", out)
	if err != nil {
		t.Error(err)
	}
}

func revoked(t *testing.T, w *world) {
	const leave = 3
	ended, stay := w.users[:leave], w.users[leave:]
	w.renewedAgain(t, 1, w.users...)
	w.holdBack(t, 0) // no user's token is replaced while it is revoked
	for _, user := range ended {
		if err := w.revoke(t.Context(), w.account[user]); err != nil {
			t.Fatal(err)
		}
	}
	w.rec.release()
	w.renewedAgain(t, 3, stay...)
	w.told.await(t, func() error { return w.told.tells(ended, w.rec.lostSessions()) })
	w.renewedAgain(t, 1, stay...)
	w.check(t, ended...)
}

// killed closes the provider's port while its users' tokens run out. A client that waits in front
// of the port by then loses its connection, and cannot know whether the token was seen. No answer
// is lost. A user whose answer was lost would rightly be told to sign in, if the provider forgives
// no second presentation.
func killed(t *testing.T, w *world) {
	w.renewedAgain(t, 1, w.users...)
	w.holdBack(t, 3)
	w.degrades(t, w.shut)
	w.rec.release()
	if err := w.provider.restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.open(t)
	w.renewedAgain(t, 2, w.users...)
	w.check(t)
}

// refused has renewd name itself in a way that the provider does not take, waits until renewd says
// that the provider is out of order, and puts it right. A provider may spend the tokens that a
// refused client shows. Such a provider must not have seen all users' tokens by then.
func refused(t *testing.T, w *world, auth, secret string) {
	w.renewedAgain(t, 1, w.users...)
	w.stop(t)
	before := len(w.rec.refusals())
	w.configure(t, auth, secret)
	w.degrades(t, func() { w.start(t, 1) })
	w.stop(t)
	shown := w.rec.refusals()[before:]
	if w.spends {
		w.rec.update(func() {
			for _, a := range shown {
				w.rec.lost[a.User] = true
			}
		})
	}
	w.configure(t, w.auth, clientSecret)
	w.start(t, 1)
	w.renewedAgain(t, 2, w.users...)
	w.check(t)
	users := map[string]bool{}
	for _, a := range shown {
		users[a.User] = true
	}
	t.Logf("tokens of %d of %d users were shown, %d times", len(users), userCount, len(shown))
	if w.spends && len(users) == userCount {
		t.Error("everybody's token was shown to a provider that spends it")
	}
}

// workerKilled kills a worker with SIGKILL while both workers have presentations under way that the
// provider has not seen. A killed worker loses a user only if the provider has answered and the
// worker has not saved the answer, and then only beyond the provider's grace window. If the first
// worker had nothing under way, the second has.
func workerKilled(t *testing.T, w *world) {
	w.renewedAgain(t, 1, w.users...)
	for i := range w.workers {
		w.holdBack(t, 10)
		w.told.await(t, w.saved)
		w.workers[i].Kill()
		w.rec.release()
		if i > 0 {
			w.workers[0] = serve(t, w.environ())
		}
		w.renewedAgain(t, 1, w.users...)
		cut := 0
		w.rec.look(func() { cut = w.rec.hungUp })
		if t.Logf("%d presentations were cut off", cut); cut > 0 {
			break
		}
	}
	w.rec.await(t, func() error { return atLeast(w.rec.hungUp, 1, "presentations were cut off") })
	w.renewedAgain(t, 1, w.users...)
	w.check(t)
}

// holdBack holds the recorder's door. It waits until the provider is handling no presentation and
// that many are under way to it.
func (w *world) holdBack(t *testing.T, waiting int) {
	t.Helper()
	w.rec.hold()
	w.rec.await(t, func() error {
		if w.rec.inside > 0 {
			return errors.New("the provider still has presentations in hand")
		}
		return atLeast(w.rec.waiting, waiting, "presentations are under way")
	})
}

// degrades waits until renewd says that the provider is out of order, which f brings about.
func (w *world) degrades(t *testing.T, f func()) {
	t.Helper()
	before := 0
	w.told.look(func() { before = len(w.told.degraded) })
	f()
	w.told.await(t, func() error {
		return atLeast(len(w.told.degraded), before+1, "provider.degraded")
	})
}

// saved is nil once renewd has told of each answer of the provider. renewd tells of an answer after
// it has saved what it got.
func (w *world) saved() (err error) {
	w.rec.look(func() {
		for user, n := range w.rec.renewed {
			if told := w.told.renewed[user]; told < n {
				err = atLeast(told, n, "renewals of "+user+" are told of")
			}
		}
	})
	return err
}
