package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
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
	Publish keysPublish `cmd:"" help:"Put this keyring's public key in place of one that another keyring published."`
}

type keysNew struct {
	IfMissing bool `help:"Do nothing if there is a keyring already."`
}

// Run makes a keyring.
func (k keysNew) Run(a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	path := conf.keysFile()
	if _, err := loadKeys(path); err == nil && k.IfMissing {
		return nil
	}
	if _, err := makeKeys(path, time.Now()); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s is there already, and what it sealed would be lost with it: %s keys rotate adds keys", path, a.name)
		}
		return err
	}
	fmt.Fprintf(a.stdout, "made %s: keep it secret, back it up, and give every renewd of this installation the same\n", path)
	return nil
}

type keysList struct {
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Run lists the keys.
func (k keysList) Run(a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	ring, err := loadKeys(conf.keysFile())
	if err != nil {
		return a.keysHint(err)
	}
	if k.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(ring.Keys())
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tUSE\tMADE\tSEALS\tTO PIN")
	for _, key := range ring.Keys() {
		seals := "no, opens only"
		switch {
		case key.Current:
			seals = "yes"
		case key.Next:
			seals = "not yet: keys promote"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", key.ID, key.Use, clock(key.Created), seals, key.Thumbprint)
	}
	return w.Flush()
}

type keysRotate struct {
	clientFlags
	operatorFlags
}

// Run adds keys.
func (k keysRotate) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	path := conf.keysFile()
	ring, err := loadKeys(path)
	if err != nil {
		return a.keysHint(err)
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
	if err := writeKeys(path, ring); err != nil {
		return fmt.Errorf("rotate keys: %w", err)
	}
	fmt.Fprintf(a.stdout, "%s has fresh keys, which only open for now: give it to every renewd of this installation, which reads it by itself; then: %s keys promote\n", path, a.name)
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
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	path := conf.keysFile()
	ring, err := loadKeys(path)
	if err != nil {
		return a.keysHint(err)
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
	if err := writeKeys(path, next); err != nil {
		return fmt.Errorf("promote keys: %w", err)
	}
	fmt.Fprintf(a.stdout, "the fresh keys of %s seal from now on, at %s: give the file to every renewd again\n", path, counted(workers, "worker", "workers"))
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
	if err == nil {
		err = engine.SyncClock(ctx)
	}
	if err != nil {
		return 0, streamHint(err, a)
	}
	workers, err := engine.Workers(ctx)
	if err != nil {
		return 0, streamHint(err, a)
	}
	var lacking []string
	for _, w := range workers {
		for _, id := range ids {
			if !slices.Contains(w.Keys, id) {
				lacking = append(lacking, fmt.Sprintf("the worker on %s lacks key %s", w.Host, id))
				break
			}
		}
	}
	if len(lacking) > 0 {
		return 0, fmt.Errorf("promote keys: %s: give %s to it, which it reads within seconds; a worker that is gone is forgotten after two minutes", strings.Join(lacking, "; "), conf.keysFile())
	}
	return len(workers), nil
}

func writeKeys(path string, ring *seal.Keyring) error {
	raw, err := ring.Marshal()
	if err != nil {
		return err
	}
	return replaceFile(path, raw)
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
	ring, err := loadKeys(conf.keysFile())
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

func loadKeys(path string) (*seal.Keyring, error) {
	if info, err := os.Stat(path); err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("load keyring %s: others than its owner may write to it (mode %04o), and so read every token: chmod go-w", path, info.Mode().Perm())
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("load keyring: %w", err)
	}
	ring, err := seal.ParseKeyring(raw)
	if err != nil {
		return nil, fmt.Errorf("load keyring %s: %w", path, err)
	}
	return ring, nil
}

// makeKeys writes a new keyring to path, which must not exist.
func makeKeys(path string, now time.Time) (*seal.Keyring, error) {
	ring, err := seal.NewKeyring(now)
	if err != nil {
		return nil, fmt.Errorf("make keyring: %w", err)
	}
	raw, err := ring.Marshal()
	if err != nil {
		return nil, fmt.Errorf("make keyring: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make keyring: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make keyring: %w", err)
	}
	if err := finish(f, raw); err != nil {
		return nil, fmt.Errorf("make keyring: %w", errors.Join(err, os.Remove(path)))
	}
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("make keyring: %w", err)
	}
	return ring, nil
}

// finish writes raw to f and closes it, with all on the disk.
func finish(f *os.File, raw []byte) error {
	_, err := f.Write(raw)
	return errors.Join(err, f.Sync(), f.Close())
}

// replaceFile writes a file that only its owner may read so that either the old or the new content
// is there at any time, a power cut included. Its owner stays who it was.
func replaceFile(path string, raw []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if was, err := os.Stat(path); err == nil {
		if err := giveTo(f, was); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if err := finish(f, raw); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
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
