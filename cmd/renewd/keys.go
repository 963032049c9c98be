package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

type keysCommand struct {
	New     keysNew     `cmd:"" help:"Make a keyring where there is none."`
	List    keysList    `cmd:"" help:"List the keys, without their secrets."`
	Rotate  keysRotate  `cmd:"" help:"Add fresh keys, which only open at first."`
	Promote keysPromote `cmd:"" help:"Let the fresh keys seal, once every worker has them. The old ones still open what they sealed."`
	Retire  keysRetire  `cmd:"" help:"Take old keys out of the keyring, once nothing needs them any more."`
	Publish keysPublish `cmd:"" help:"Put this keyring's public key in place of one that another keyring published."`
}

type keysNew struct {
	IfMissing bool `help:"Do nothing if there is a keyring already."`
}

// Run makes a keyring.
func (k keysNew) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	file := conf.keyFile()
	if _, err := file.load(ctx); err == nil && k.IfMissing {
		return nil
	}
	if _, err := file.make(ctx, time.Now()); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s is there already, and what it sealed would be lost with it: %s keys rotate adds keys", file.path, a.name)
		}
		return err
	}
	fmt.Fprintf(a.stdout, "made %s: keep it secret, back it up, and give every renewd of this installation the same\n", file.path)
	return nil
}

// loadRing is what a command begins with that changes the keyring.
func (a *app) loadRing(ctx context.Context, c *cli) (*configuration, keyFile, *seal.Keyring, error) {
	conf, err := a.load(c)
	if err != nil {
		return nil, keyFile{}, nil, err
	}
	file := conf.keyFile()
	ring, err := file.load(ctx)
	if err != nil {
		return nil, keyFile{}, nil, a.keysHint(err)
	}
	return conf, file, ring, nil
}

type keysRotate struct {
	clientFlags
	operatorFlags
}

// Run adds keys.
func (k keysRotate) Run(ctx context.Context, a *app, c *cli) error {
	conf, file, ring, err := a.loadRing(ctx, c)
	if err != nil {
		return err
	}
	if ring, err = ring.Rotate(time.Now()); errors.Is(err, seal.ErrNotPromoted) {
		return fmt.Errorf("rotate keys: %w: %s keys promote", err, a.name)
	} else if err != nil {
		return err
	}
	err = k.record(ctx, a, conf, k.Server, schema.ActKeysRotate, freshIDs(ring)...)
	if err != nil {
		return fmt.Errorf("rotate keys: %w", err)
	}
	if err := file.write(ctx, ring); err != nil {
		return fmt.Errorf("rotate keys: %w", err)
	}
	fmt.Fprintf(a.stdout, "%s has fresh keys, which only open for now: give it to every renewd of this installation, which reads it by itself; then: %s keys promote\n", file.path, a.name)
	return nil
}

// freshIDs are the keys that do not seal yet.
func freshIDs(ring *seal.Keyring) (ids []string) {
	for _, key := range ring.Keys() {
		if key.Next {
			ids = append(ids, key.ID)
		}
	}
	return ids
}

type keysPromote struct {
	clientFlags
	operatorFlags
}

// Run promotes keys, unless some worker could not open what they seal.
func (k keysPromote) Run(ctx context.Context, a *app, c *cli) error {
	conf, file, ring, err := a.loadRing(ctx, c)
	if err != nil {
		return err
	}
	next, err := ring.Promote()
	if errors.Is(err, seal.ErrNothingToPromote) {
		return fmt.Errorf("promote keys: %w: %s keys rotate adds some", err, a.name)
	} else if err != nil {
		return err
	}
	// An embedded server that nobody else reaches has one worker, which reads this file whole.
	workers := 1
	if conf.reachable(k.Server) {
		if workers, err = k.everyWorkerHas(ctx, a, conf, idsOf(ring)); err != nil {
			return err
		}
	}
	err = k.record(ctx, a, conf, k.Server, schema.ActKeysPromote, freshIDs(ring)...)
	if err != nil {
		return fmt.Errorf("promote keys: %w", err)
	}
	if err := file.write(ctx, next); err != nil {
		return fmt.Errorf("promote keys: %w", err)
	}
	fmt.Fprintf(a.stdout, "the fresh keys of %s seal from now on, at %s: give the file to every renewd again\n", file.path, counted(workers, "worker", "workers"))
	return nil
}

// everyWorkerHas refuses while some worker lacks some of the keys, and counts the workers.
func (k keysPromote) everyWorkerHas(ctx context.Context, a *app, conf *configuration, ids []string) (int, error) {
	nc, err := a.connect(conf, k.Server)
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	engine, err := clientEngine(nc, conf)
	if err != nil {
		return 0, streamHint(err, a)
	}
	n, lacking, err := lackingWorkers(ctx, engine, ids, nil)
	if err != nil {
		return 0, streamHint(err, a)
	}
	if len(lacking) > 0 {
		return 0, fmt.Errorf("promote keys: %s: give %s to it, which it reads within seconds; a worker that is gone is forgotten after two minutes", strings.Join(lacking, "; "), conf.keysFile())
	}
	return n, nil
}

// lackingWorkers counts the workers, and names those that cannot open with all of these keys, or
// seal with others than seals, unless that is nil.
func lackingWorkers(
	ctx context.Context, engine *stream.Engine, opens, seals []string,
) (n int, lacking []string, err error) {
	if err := engine.SyncClock(ctx); err != nil {
		return 0, nil, err
	}
	workers, err := engine.Workers(ctx)
	if err != nil {
		return 0, nil, err
	}
	missing := func(ids []string, has []string) (string, bool) {
		i := slices.IndexFunc(ids, func(id string) bool { return !slices.Contains(has, id) })
		return append(slices.Clone(ids), "")[max(i, 0)], i >= 0
	}
	for _, w := range workers {
		if id, ok := missing(opens, w.Keys); ok {
			lacking = append(lacking, fmt.Sprintf("the worker on %s lacks key %s", w.Host, id))
		} else if id, ok := missing(seals, w.Seals); ok {
			lacking = append(lacking,
				fmt.Sprintf("the worker on %s does not say that it seals with key %s", w.Host, id))
		}
	}
	return len(workers), lacking, nil
}

type keysPublish struct {
	clientFlags
	operatorFlags
}

// Run replaces the published key.
func (k keysPublish) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	ring, err := conf.keyFile().load(ctx)
	if err != nil {
		return a.keysHint(err)
	}
	nc, err := a.connect(conf, k.Server)
	if err != nil {
		return err
	}
	defer nc.Close()
	engine, err := clientEngine(nc, conf)
	if err != nil {
		return err
	}
	err = k.record(ctx, a, conf, k.Server, schema.ActKeysPublish, loginIDs(ring)...)
	if err != nil {
		return fmt.Errorf("publish keys: %w", err)
	}
	return streamHint(engine.PublishKeys(ctx, ring.JWKS()), a)
}

// loginIDs are the keys that logins are sealed to.
func loginIDs(ring *seal.Keyring) (ids []string) {
	for _, key := range ring.Keys() {
		if key.Use == "login" && key.Current {
			ids = append(ids, key.ID)
		}
	}
	return ids
}

func (a *app) keysHint(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: make it with: %s keys new (or set RENEWD_KEYS_FILE to where it is)", err, a.name)
	}
	return err
}

// knows reports whether the keyring has the private part of a key in this key set.
func knows(ring *seal.Keyring, jwks []byte) bool {
	var set struct {
		Keys []struct {
			ID string `json:"kid"`
		} `json:"keys"`
	}
	if json.Unmarshal(jwks, &set) != nil {
		return false
	}
	for _, published := range set.Keys {
		if slices.ContainsFunc(ring.Keys(), func(k seal.KeyInfo) bool { return k.ID == published.ID }) {
			return true
		}
	}
	return len(set.Keys) == 0
}

// clientEngine is the engine on a command's own connection.
func clientEngine(nc *nats.Conn, conf *configuration) (*stream.Engine, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	return stream.NewEngine(js, stream.Config{Subjects: conf.subjects()})
}
