package tokens_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/tokens"
	"github.com/renewd/renewd/schema"
)

// noting is a source where users rest whom nothing has asked for in an hour.
func noting(t *testing.T, p grant.Policy) (w *world, saves *int) {
	t.Helper()
	saves = new(int)
	w = newWorld(t, tokens.Config{
		Policies: map[string]grant.Policy{"p": p.WithDefaults()},
		Save: func(ctx context.Context, g grant.Grant) (uint64, error) {
			*saves++
			return w.Memory.Save(ctx, g)
		},
	})
	return w, saves
}

// Reads keep a user awake, at the cost of a write each few minutes, and of none to a reader.
func TestReadsAreNotedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, saves := noting(t, grant.Policy{Idle: time.Hour})
		k := w.has("u", 24*time.Hour)
		for range 60 {
			for range 10 {
				if _, err := w.get("u"); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
			pass(10 * time.Second)
		}
		g, err := w.Memory.Load(t.Context(), k)
		w.must(err)
		if ago := time.Since(g.ActiveAt); *saves != 2 || g.Version != 1 || ago > 311*time.Second {
			t.Errorf("%d writes in ten minutes, version %d, active %v ago", *saves, g.Version, ago)
		}
		other, none := noting(t, grant.Policy{})
		other.has("u", 24*time.Hour)
		_, err = other.get("u")
		synctest.Wait()
		if err != nil || *none != 0 {
			t.Errorf("without the policy: %v, %d writes", err, *none)
		}
	})
}

// Who cannot be noted gets the token all the same.
func TestANoteThatFailsCostsNoReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		w := newWorld(t, tokens.Config{
			Policies: map[string]grant.Policy{"p": {Idle: time.Hour}},
			Save: func(context.Context, grant.Grant) (uint64, error) {
				tries++
				return 0, errors.New("the store is down")
			},
		})
		w.has("u", 24*time.Hour)
		for range 3 {
			if got, err := w.get("u"); err != nil || got.Access.Reveal() != "access-1" {
				t.Errorf("%v", err)
			}
			synctest.Wait()
		}
		if tries != 3 {
			t.Errorf("tried %d times", tries)
		}
	})
}

// A read wakes a dormant user: its caller waits for the renewal, also where the token still lives.
func TestAReadWakesADormantUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := noting(t, grant.Policy{Idle: time.Hour})
		k := w.has("u", 24*time.Hour)
		w.change(k, func(g *grant.Grant) { g.Status = grant.Dormant })
		got, err := w.get("u")
		if err != nil || w.asks.Load() != 1 || got.Access.Reveal() == "access-1" {
			t.Errorf("%v, asked %d times", err, w.asks.Load())
		}
		// The provider is down: the token that lives, after the wait.
		w.change(k, func(g *grant.Grant) { g.Status = grant.Dormant })
		w.renew = unanswered
		if got, err := w.get("u"); err != nil || got.Access.IsZero() {
			t.Errorf("while the provider is down: %v", err)
		}
	})
}

// No token is given out of a session that has reached its limit, also before its end is told.
func TestNoTokenAfterTheLimitOfASession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := noting(t, grant.Policy{SessionMax: time.Hour})
		w.has("u", 24*time.Hour)
		if _, err := w.get("u"); err != nil {
			t.Fatal(err)
		}
		pass(time.Hour)
		_, err := w.get("u")
		no, ok := errors.AsType[*schema.NoToken](err)
		if !ok || no.Code != schema.TokenSignedOut || no.Reason != schema.ReasonSessionMax ||
			w.asks.Load() > 0 {
			t.Errorf("%+v, asked %d times", no, w.asks.Load())
		}
	})
}
