package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/settings"
)

type keysSplit struct {
	Login string `required:"" placeholder:"FILE" help:"Where the login keys are written, which must not be there yet."`
	Store string `required:"" placeholder:"FILE" help:"Where the store keys are written, which must not be there yet."`
}

// Run writes the same keys to two files, and leaves the one file as it is. So workers can get the
// two files one after the other: a worker with two files works the same as a worker with one.
func (k keysSplit) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	whole := keyfile.File{Path: conf.KeysPath(), Unwrap: conf.KeysUnwrap, Wrap: conf.KeysWrap}
	ring, err := whole.Load(ctx)
	if err != nil {
		return fmt.Errorf("split keys: %w", a.keysHint(err))
	}
	login, store := keyfile.LoginFile(conf, k.Login), whole
	store.Path, store.Use = k.Store, seal.UseStore
	if err := login.Create(ctx, ring.Only(seal.UseLogin)); err != nil {
		return fmt.Errorf("split keys: %w", err)
	}
	if err := store.Create(ctx, ring.Only(seal.UseStore)); err != nil {
		return fmt.Errorf("split keys: %w", errors.Join(err, os.Remove(login.Path)))
	}
	fmt.Fprintf(a.stdout,
		"made %s and %s: set RENEWD_LOGIN_KEYS_FILE to the first and RENEWD_KEYS_FILE to the "+
			"second for every renewd, one after the other, "+
			"and then destroy %s and its copies\n",
		login.Path, store.Path, whole.Path)
	return nil
}

type keysJoin struct {
	File string `arg:"" help:"Where the keyring is written, which must not be there yet."`
}

// Run is the inverse of keys split.
func (k keysJoin) Run(ctx context.Context, a *app, c *cli) error {
	conf, files, ring, err := a.loadRing(ctx, c, "")
	if err != nil {
		return err
	}
	if len(files) < 2 {
		return settings.Mistake(errors.New(
			"join keys: set RENEWD_LOGIN_KEYS_FILE and RENEWD_KEYS_FILE to the two files",
		))
	}
	whole := keyfile.File{Path: k.File, Unwrap: conf.KeysUnwrap, Wrap: conf.KeysWrap}
	if err := whole.Create(ctx, ring); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return settings.Mistake(fmt.Errorf("join keys: %w", err))
		}
		return fmt.Errorf("join keys: %w", err)
	}
	fmt.Fprintf(a.stdout,
		"made %s of %s: set RENEWD_KEYS_FILE to it, and leave RENEWD_LOGIN_KEYS_FILE empty\n",
		k.File, files)
	return nil
}
