package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

type keysCommand struct {
	New     keysNew     `cmd:"" help:"Make a keyring where there is none."`
	Split   keysSplit   `cmd:"" help:"Make two files of a keyring in one: one for the login keys, one for the store keys."`
	Join    keysJoin    `cmd:"" help:"Make one file of the two, for a version that reads no two."`
	List    keysList    `cmd:"" help:"List the keys, without their secrets."`
	Rotate  keysRotate  `cmd:"" help:"Add fresh keys, which only open at first."`
	Promote keysPromote `cmd:"" help:"Let the fresh keys seal, once every worker has them. The old ones still open what they sealed."`
	Retire  keysRetire  `cmd:"" help:"Take old keys out of the keyring, once nothing needs them any more."`
	Public  keysPublic  `cmd:"" help:"Print the public key that logins are sealed to, for keys sign."`
	Root    keysRoot    `cmd:"" help:"Make a root that signs public keys, for publishers that do not believe NATS."`
	Sign    keysSign    `cmd:"" help:"Sign public keys with a root, where that is: it needs no settings and no network."`
	Publish keysPublish `cmd:"" help:"Put this keyring's public key in place of one that another keyring published."`
}

// useFlags limit a command to keys of one use: then it reads the file of this use alone.
type useFlags struct {
	Use string `enum:"login,store,all" default:"all" placeholder:"login|store" help:"Only the login keys or only the store keys: where login_keys_file is set the other file is not read. Default: all."`
}

// use is seal.UseLogin, seal.UseStore, or empty for both.
func (f useFlags) use() string {
	if f.Use == "all" {
		return ""
	}
	return f.Use
}

// uses are for the methods of a keyring: nil, if no use is named, means all uses of the keyring.
func (f useFlags) uses() []string {
	if f.use() == "" {
		return nil
	}
	return []string{f.Use}
}

type keysNew struct {
	useFlags
	IfMissing bool `help:"Do nothing if there is a keyring already."`
}

// Run makes a keyring.
func (k keysNew) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	files := keyfile.Of(conf).For(k.use())
	if k.use() != "" && len(files) > 0 && files[0].Use == "" {
		return settings.Mistake(errors.New(
			"--use: set RENEWD_LOGIN_KEYS_FILE: the keys of both uses are in one file",
		))
	}
	if _, err := files.Load(ctx); err == nil && k.IfMissing {
		return nil
	}
	if _, err := files.Make(ctx, time.Now()); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w: it is there already, and what it sealed would be lost with "+
				"it: %s keys rotate adds keys", err, a.name)
		}
		return err
	}
	fmt.Fprintf(a.stdout,
		"made %s: keep it secret, back it up, and give every renewd of "+
			"this installation the same\n",
		files)
	return nil
}

// loadRing is the start of a command that looks at the keys of a use, or changes them. The keyring
// is as its files have it: where all keys are in one file, keys of another use are there too.
func (a *app) loadRing(
	ctx context.Context, c *cli, use string,
) (*settings.Settings, keyfile.Files, *seal.Keyring, error) {
	conf, err := a.load(c)
	if err != nil {
		return nil, nil, nil, err
	}
	files := keyfile.Of(conf).For(use)
	ring, err := files.Load(ctx)
	if err != nil {
		return nil, nil, nil, a.keysHint(err)
	}
	if use != "" && !slices.Contains(ring.Uses(), use) {
		return nil, nil, nil, settings.Mistake(
			fmt.Errorf("this renewd has no %s keys, since its setting take_logins is false", use),
		)
	}
	return conf, files, ring, nil
}

type keysRotate struct {
	clientFlags
	operatorFlags
	useFlags
}

// Run adds keys.
func (k keysRotate) Run(ctx context.Context, a *app, c *cli) error {
	conf, files, before, err := a.loadRing(ctx, c, k.use())
	if err != nil {
		return err
	}
	ring, err := before.Rotate(time.Now(), k.uses()...)
	if errors.Is(err, seal.ErrNotPromoted) {
		return fmt.Errorf("rotate keys: %w: %s keys promote", err, a.name)
	} else if err != nil {
		return err
	}
	err = k.record(ctx, a, conf, k.Server, schema.ActKeysRotate, freshIDs(ring, k.uses()...)...)
	if err != nil {
		return fmt.Errorf("rotate keys: %w", err)
	}
	if err := files.Write(ctx, before, ring); err != nil {
		return fmt.Errorf("rotate keys: %w", err)
	}
	fmt.Fprintf(a.stdout,
		"%s: there are fresh keys, which only open for now: give the file to every renewd of this "+
			"installation, which reads it by itself; then: %s keys promote\n", files, a.name)
	return nil
}

// freshIDs are the keys of these uses, or of all uses, that do not seal yet.
func freshIDs(ring *seal.Keyring, uses ...string) (ids []string) {
	for _, key := range ring.Keys() {
		if key.Next && (len(uses) == 0 || slices.Contains(uses, key.Use)) {
			ids = append(ids, key.ID)
		}
	}
	return ids
}

type keysPromote struct {
	clientFlags
	operatorFlags
	useFlags
	Signed string `placeholder:"FILE" help:"The fresh key as a root has signed it, where publishers trust a root; - is standard input."`
}

// Run promotes keys, unless some worker lacks a key: it could not open what the fresh key seals.
func (k keysPromote) Run(ctx context.Context, a *app, c *cli) error {
	conf, files, ring, err := a.loadRing(ctx, c, k.use())
	if err != nil {
		return err
	}
	next, err := ring.Promote(k.uses()...)
	if errors.Is(err, seal.ErrNothingToPromote) {
		return fmt.Errorf("promote keys: %w: %s keys rotate adds some", err, a.name)
	} else if err != nil {
		return err
	}
	// An embedded server that only this process reaches has one worker, which reads this whole
	// file, and no publisher.
	workers, publish := 1, func() error { return nil }
	if conf.Reachable(k.Server) {
		engine, leave, err := a.engine(conf, k.Server)
		if err != nil {
			return err
		}
		defer leave()
		if workers, err = k.everyWorkerHas(ctx, a, files, engine, ring); err != nil {
			return err
		}
		signed, err := k.signNext(ctx, a, engine, next)
		if err != nil {
			return err
		}
		if signed != nil { // every worker opens with the fresh key already
			publish = func() error { return engine.PublishSignedKeys(ctx, signed) }
		}
	} else if k.Signed != "" {
		return settings.Mistake(errors.New(
			"--signed: no NATS server is set, so no publisher reads it",
		))
	}
	err = k.record(ctx, a, conf, k.Server, schema.ActKeysPromote, freshIDs(ring, k.uses()...)...)
	if err != nil {
		return fmt.Errorf("promote keys: %w", err)
	}
	if err := publish(); err != nil {
		return fmt.Errorf("promote keys: %w", err)
	}
	if err := files.Write(ctx, ring, next); err != nil {
		return fmt.Errorf("promote keys: %w", err)
	}
	fmt.Fprintf(a.stdout,
		"the fresh keys of %s seal from now on, at %s: give the file to every renewd again\n",
		files, plain.Counted(workers, "worker", "workers"))
	return nil
}

// everyWorkerHas refuses while some worker lacks some of the keys, and counts the workers.
func (k keysPromote) everyWorkerHas(
	ctx context.Context, a *app, files keyfile.Files, engine *stream.Engine, ring *seal.Keyring,
) (int, error) {
	keys := ring.Keys()
	if k.use() != "" {
		keys = ring.Only(k.use()).Keys()
	}
	n, lacking, err := admin.LackingWorkers(ctx, engine, keys, false)
	if err != nil {
		return 0, streamHint(err, a)
	}
	if len(lacking) > 0 {
		return 0, fmt.Errorf("promote keys: %s: give %s to it, which it reads within seconds; "+
			"a worker that is gone is forgotten after two minutes", strings.Join(lacking, "; "),
			files)
	}
	return n, nil
}

type keysPublish struct {
	clientFlags
	operatorFlags
	useFlags
	Signed string `placeholder:"FILE" help:"Put this beside it: the key as a root has signed it; - is standard input."`
}

// Run replaces the published key, and the ids of the store keys that workers compare with their
// own. With --signed it replaces the signed key alone.
func (k keysPublish) Run(ctx context.Context, a *app, c *cli) error {
	use := k.use()
	if k.Signed != "" {
		use = seal.UseLogin
	}
	conf, _, ring, err := a.loadRing(ctx, c, use)
	if err != nil {
		return err
	}
	if use != "" {
		ring = ring.Only(use)
	}
	var signed []byte
	if k.Signed != "" {
		if signed, err = readSigned(a, k.Signed, ring); err != nil {
			return err
		}
	}
	engine, leave, err := a.engine(conf, k.Server)
	if err != nil {
		return err
	}
	defer leave()
	about := ring.Only(seal.UseLogin).Sealing()
	if about == nil {
		about = ring.Sealing()
	}
	err = k.record(ctx, a, conf, k.Server, schema.ActKeysPublish, about...)
	if err != nil {
		return fmt.Errorf("publish keys: %w", err)
	}
	if signed != nil {
		return streamHint(engine.PublishSignedKeys(ctx, signed), a)
	}
	if ids := ring.Only(seal.UseStore).IDs(); ids != nil {
		if err := engine.PublishStoreKeys(ctx, ids); err != nil {
			return streamHint(err, a)
		}
	}
	if jwks := ring.JWKS(); jwks != nil {
		return streamHint(engine.PublishKeys(ctx, jwks), a)
	}
	return nil
}

func (a *app) keysHint(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: make it with: %s keys new (or set RENEWD_KEYS_FILE, "+
			"or RENEWD_LOGIN_KEYS_FILE, to where it is)", err, a.name)
	}
	return err
}

// engine is the engine on a connection of a command, which leave ends.
func (a *app) engine(
	conf *settings.Settings, server string,
) (e *stream.Engine, leave func(), err error) {
	nc, err := a.connect(conf, server)
	if err != nil {
		return nil, nil, err
	}
	if e, err = daemon.ClientEngine(nc, conf); err != nil {
		nc.Close()
		return nil, nil, streamHint(err, a)
	}
	return e, nc.Close, nil
}
