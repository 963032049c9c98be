package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/reconcile"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

// retiring are resources without workers whose keyring was rotated and promoted once.
type retiring struct {
	*daemon.Resources
	env  []string
	keys []seal.KeyInfo // login, login, store, store; the older first
	old  *seal.Keyring  // of before
}

func startRetiring(t *testing.T, more ...string) *retiring {
	t.Helper()
	file := filepath.Join(t.TempDir(), "keys.json")
	env := append([]string{
		"RENEWD_NATS_URL=" + natsServer(t), "RENEWD_KEYS_FILE=" + file, "RENEWD_CLIENT_ID=c",
		"RENEWD_AUTH_URL=http://127.0.0.1:1", "RENEWD_ALLOW_HTTP_LOOPBACK=true",
	}, more...)
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	if len(more) > 0 {
		want(t, env, exitDone, "", "migrate")
	}
	ring, err := keyfile.File{Path: file}.Load(t.Context())
	r := &retiring{env: env, old: mustRing(t, ring, err)}
	for _, step := range []string{"publish", "rotate", "promote", "publish"} {
		want(t, env, exitDone, "", "keys", step)
	}
	a := &app{name: "renewd", environ: env}
	conf, err := a.load(&cli{})
	if err == nil {
		r.Resources, err = a.openResources(t.Context(), conf, "")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	r.Resources.Keys.Use(r.old) // as a worker does that has not read the file again
	ring, err = keyfile.File{Path: file}.Load(t.Context())
	r.keys = mustRing(t, ring, err).Keys()
	return r
}

// uses is what keys list says of each key.
func (r *retiring) uses(t *testing.T) map[string]string {
	t.Helper()
	var keys []listedKey
	out := want(t, r.env, exitDone, "", "keys", "list", "-o", "json")
	if err := json.Unmarshal([]byte(out), &keys); err != nil {
		t.Fatal(err)
	}
	uses := map[string]string{}
	for _, k := range keys {
		if k.NeededBy == nil {
			t.Fatalf("%s: not counted", k.ID)
		}
		uses[k.ID] = k.NeededBy.String()
		if k.Missing {
			uses[k.ID] += ", missing"
		}
	}
	return uses
}

func (r *retiring) save(t *testing.T, user string, change func(*grant.Grant)) {
	t.Helper()
	g := grant.Grant{
		Key: grant.Key{Provider: "propelauth", User: user}, Version: 7, Status: grant.Suspended,
		Pair: grant.Pair{Access: secret.New("a-" + user), Refresh: secret.New("r-" + user)},
	}
	change(&g)
	if _, err := r.Store.Save(t.Context(), g); err != nil {
		t.Fatal(err)
	}
}

// reseal runs one walk of the resealer with the keyring that the file has now.
func (r *retiring) reseal(t *testing.T) (found reconcile.Resealed) {
	t.Helper()
	ring, err := keyfile.File{Path: r.Conf.KeysPath()}.Load(t.Context())
	r.Resources.Keys.Use(mustRing(t, ring, err))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s := reconcile.Resealer{
		Store: r.Store, Engine: r.Engine, Old: r.Resources.Keys.Old, KeyOf: seal.StoreKeyOf,
		PerSecond: 1000, Every: time.Millisecond, Rest: time.Millisecond,
		OnWalk: func(w reconcile.Resealed) { found = w; cancel() },
	}
	if err := s.Run(ctx); err != nil || errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		t.Fatal(err, context.Cause(ctx))
	}
	return found
}

// A store key leaves once nothing stored or parked is under it, and everything is still there then.
func TestAStoreKeyIsRetiredOnceNothingNeedsIt(t *testing.T) {
	for name, more := range map[string]func(*testing.T) []string{
		"NATS KV": func(*testing.T) []string { return nil },
		"PostgreSQL": func(t *testing.T) []string {
			return []string{"RENEWD_DATABASE_URL=" + databases.URL(t)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := startRetiring(t, more(t)...)
			r.save(t, "suspended", func(*grant.Grant) {})
			r.save(t, "candidate", func(g *grant.Grant) {
				g.Status = grant.ReauthRequired
				g.Pair = grant.Pair{Parent: "p"}
				pair := grant.Pair{Access: secret.New("ca"), Refresh: secret.New("cr")}
				g.Candidate = &grant.Candidate{Pair: pair}
			})
			r.save(t, "claimed", func(g *grant.Grant) {
				g.Claim = &grant.Claim{Nonce: "n", Until: time.Now().Add(time.Hour), For: time.Hour}
			})
			k := grant.Key{Provider: "propelauth", User: "parked"}
			pair := grant.Pair{Refresh: secret.New("p")}
			sealed, err := grant.SealPair(r.Resources.Keys, grant.PurposePark, k, 7, pair)
			if err == nil {
				_, err = r.Engine.Park(t.Context(), k, grant.Parcel{Version: 7, Sealed: sealed})
			}
			if err != nil {
				t.Fatal(err)
			}
			old, current := r.keys[2].ID, r.keys[3].ID
			want(t, r.env, exitFailed, "keys rotate", "keys", "retire", current)
			want(t, r.env, exitFailed, "keys list", "keys", "retire", "x")
			want(t, r.env, exitFailed, "3 grants, 1 parked pair", "keys", "retire", old)
			uses := r.uses(t)
			if uses[old] != "3 grants, 1 parked pair" || uses[current] != "nothing" {
				t.Errorf("needed by %q", uses)
			}
			if found := r.reseal(t); found != (reconcile.Resealed{Sealed: 2, Left: 1}) {
				t.Errorf("walk %+v", found)
			}
			want(t, r.env, exitFailed, "1 grant, 1 parked pair", "keys", "retire", old)
			claimed, err := r.Store.Load(t.Context(),
				grant.Key{Provider: "propelauth", User: "claimed"})
			if err != nil || claimed.Claim == nil {
				t.Fatal(claimed.Claim, err)
			}
			claimed.Claim = nil // its worker saves it
			if _, err := r.Store.Save(t.Context(), claimed); err != nil {
				t.Fatal(err)
			}
			want(t, r.env, exitFailed, "1 parked pair", "keys", "retire", old)
			if err := r.Engine.Unpark(t.Context(), k, 0); err != nil {
				t.Fatal(err)
			}
			want(t, r.env, exitDone, "no longer has "+old, "keys", "retire", old)
			ring, err := keyfile.File{Path: r.Conf.KeysPath()}.Load(t.Context())
			if ids := mustRing(t, ring, err).IDs(); len(ids) != 3 || slices.Contains(ids, old) {
				t.Errorf("the file has %q", ids)
			}
			if retired, err := r.Engine.Retired(t.Context(), old); !retired || err != nil {
				t.Errorf("noted: %v, %v", retired, err)
			}
			r.Resources.Keys.Use(ring)
			tokens := map[string]string{
				"suspended": "r-suspended",
				"candidate": "",
				"claimed":   "r-claimed",
			}
			for user, token := range tokens {
				g, err := r.Store.Load(t.Context(), grant.Key{Provider: "propelauth", User: user})
				if err != nil || g.Pair.Refresh.Reveal() != token || g.Version != 7 {
					t.Errorf("%s: version %d, %v", user, g.Version, err)
				}
				if user == "candidate" && g.Candidate.Pair.Refresh.Reveal() != "cr" {
					t.Error("a candidate's tokens are gone")
				}
			}
			if uses := r.uses(t); uses[current] != "3 grants" {
				t.Errorf("needed by %q", uses)
			}
		})
	}
}

// A login key stays for as long as a login sealed to it may come, and one that waits keeps it too.
func TestALoginKeyIsRetiredOnceNoLoginCanCome(t *testing.T) {
	r := startRetiring(t)
	old := r.keys[0].ID
	want(t, r.env, exitFailed, "may come until", "keys", "retire", old)
	tokens := seal.Tokens{Access: secret.New("a")}
	jwe, err := seal.SealLogin(r.old.JWKS(), "propelauth", "u", time.Now(), tokens)
	if err != nil {
		t.Fatal(err)
	}
	ahead := func() time.Time { return time.Now().Add(8 * 24 * time.Hour) }
	clock := stream.Clock{Wall: ahead, Mono: func() time.Duration { return 0 }}
	later, err := stream.NewEngine(r.JS, stream.Config{Subjects: r.Conf.Subjects(), Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	of := schema.Address{Type: schema.UserLogin, Provider: "propelauth", User: "u"}
	header := schema.Header{"Content-Type": {"application/json"}}
	body, at := fmt.Appendf(nil, `{"tokens":%q}`, jwe), time.Now().Add(time.Hour)
	err = later.DeferLogin(t.Context(), of, at, grant.Position{Sequence: 1}, 1, header, body)
	if err != nil {
		t.Fatal(err)
	}
	if uses := r.uses(t); uses[old] != "1 login" {
		t.Errorf("needed by %q", uses)
	}
	ring, err := keyfile.File{Path: r.Conf.KeysPath()}.Load(t.Context())
	ring = mustRing(t, ring, err)
	r.Engine = later
	retire := admin.Retirement{Ring: ring, IDs: []string{old}, Tell: func(int) {}}
	if err := retire.NoLoginComes(t.Context(), r.Resources); err != nil {
		t.Errorf("eight days later: %v", err)
	}
	err = admin.Retirement{Ring: r.old, IDs: retire.IDs}.NoLoginComes(t.Context(), r.Resources)
	if err == nil || !strings.Contains(err.Error(), "not this keyring's") {
		t.Errorf("with another key published: %v", err)
	}
	err = retire.NothingIsLeft(t.Context(), r.Resources)
	if err == nil || !strings.Contains(err.Error(), "1 login") {
		t.Errorf("with a login that waits: %v", err)
	}
	err = later.Erase(t.Context(), grant.Key{Provider: of.Provider, User: of.User},
		grant.Position{})
	if err != nil {
		t.Fatal(err)
	}
}

// A worker that seals with the old key, or does not say, keeps it.
func TestAKeyIsKeptWhileAWorkerSealsWithIt(t *testing.T) {
	r := startRetiring(t)
	old := r.keys[2].ID
	var all, fresh []string
	for i, key := range r.keys {
		all = append(all, key.ID)
		if i%2 == 1 {
			fresh = append(fresh, key.ID)
		}
	}
	announced := func(opens, seals []string) (leave func()) {
		ctx, stop := context.WithCancel(t.Context())
		changed, ended := make(chan struct{}), make(chan error, 1)
		go func() {
			keys := func() ([]string, []string) { return opens, seals }
			ended <- r.Engine.Announce(ctx, stream.Worker{ID: "w", Host: "host-w"}, keys, changed,
				func(err error) { t.Error(err) })
		}()
		changed <- struct{}{}
		return func() {
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	for _, c := range []struct {
		opens, seals []string
		want         string
	}{
		{all, r.old.Sealing(), "does not say that it seals"},
		{all, nil, "does not say that it seals"}, // one of the version before
		{r.old.Sealing(), r.old.Sealing(), "lacks key"},
	} {
		leave := announced(c.opens, c.seals)
		want(t, r.env, exitFailed, c.want, "keys", "retire", old)
		leave()
	}
	leave := announced(slices.DeleteFunc(all, func(id string) bool { return id == old }), fresh)
	want(t, r.env, exitDone, "no longer has", "keys", "retire", old)
	leave()
}

// Records under a key that the keyring lacks are shown with it.
func TestKeysListShowsWhatIsLost(t *testing.T) {
	r := startRetiring(t)
	lost, err := seal.NewKeyring(time.Now())
	r.Resources.Keys.Use(mustRing(t, lost, err))
	r.save(t, "u", func(*grant.Grant) {})
	if uses := r.uses(t); uses[lost.Keys()[1].ID] != "1 grant, missing" || len(uses) != 5 {
		t.Errorf("needed by %q", uses)
	}
	want(t, r.env, exitDone, "not in the keyring", "keys", "list")
	away := append(r.env, "RENEWD_NATS_URL=nats://127.0.0.1:1")
	want(t, away, exitDone, "is not shown", "keys", "list")
}
