package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/renewd/renewd/internal/natsd"
)

type backupCommand struct {
	Folder string `arg:"" help:"Where the copy goes: a folder that is not there yet."`
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// backup is what was copied, and what was not, as -o json prints it.
type backup struct {
	Folder  string    `json:"folder"`
	Files   int       `json:"files"`
	Bytes   int64     `json:"bytes"`
	LeftOut []leftOut `json:"left_out"`
}

type leftOut struct {
	What   string `json:"what"`
	Advice string `json:"advice"`
}

// Run copies what docs/backup.md says to copy where NATS runs inside renewd. The keyring stays out:
// a thief of a copy that holds both has every token.
func (b backupCommand) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	if !conf.embedded() {
		return usageError{errors.New("NATS does not run inside renewd here: back its streams up " +
			"with the nats command, and PostgreSQL with pg_dump: see docs/backup.md")}
	}
	b.Folder = filepath.Clean(b.Folder) // a slash at its end would be a folder inside itself
	if err := b.check(conf); err != nil {
		return usageError{err}
	}
	done := backup{Folder: b.Folder, LeftOut: conf.leftOut()}
	if err := done.make(ctx, conf); err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "The keyring is NOT in the copy: %s\n", done.LeftOut[0].Advice)
	if b.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(done)
	}
	files := plural(done.Files, "file")
	fmt.Fprintf(a.stdout, "copied %s, %d bytes, to %s\n", files, done.Bytes, b.Folder)
	for _, l := range done.LeftOut {
		fmt.Fprintf(a.stdout, "not in it: %s: %s\n", l.What, l.Advice)
	}
	return nil
}

// check refuses a place that is taken, or that is part of what is copied.
func (b backupCommand) check(conf *configuration) error {
	if _, err := os.Lstat(b.Folder); err == nil {
		return fmt.Errorf("%s is there already: name a folder that is not", b.Folder)
	}
	from, err := filepath.Abs(conf.DataDir)
	if err != nil {
		return err
	}
	to, err := filepath.Abs(b.Folder)
	if err != nil {
		return err
	}
	if inside, err := filepath.Rel(from, to); err == nil && filepath.IsLocal(inside) {
		return fmt.Errorf("%s is inside data_dir (%s), beside what it is a copy of", b.Folder, from)
	}
	return nil
}

// leftOut lists what else a restore needs. The keyring is first.
func (c *configuration) leftOut() []leftOut {
	left := []leftOut{{
		"the keyring, " + c.keysFile(),
		"keep a copy of it in another place; without it every user must sign in again",
	}}
	if !c.DatabaseURL.IsZero() {
		left = append(left, leftOut{
			"the grants, in PostgreSQL at " + databaseHost(c.DatabaseURL),
			"pg_dump --format=custom --schema=renewd, best before renewd is started again",
		})
	}
	return append(left, leftOut{"the settings", "your file and environment"})
}

// make copies, with no server at work. The folder comes to be whole or not at all.
func (b *backup) make(ctx context.Context, conf *configuration) (err error) {
	store := filepath.Join(conf.DataDir, natsFolder)
	release, err := natsd.Hold(store)
	switch {
	case errors.Is(err, natsd.ErrInUse):
		return fmt.Errorf("%w: stop it first, since only a stopped server's files belong together; "+
			"start it again once this is done", err)
	case errors.Is(err, fs.ErrNotExist):
		return usageError{fmt.Errorf("there is nothing to back up: %w: set RENEWD_DATA_DIR to the "+
			"folder that renewd runs with", err)}
	case err != nil:
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	parent := filepath.Dir(b.Folder)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	part, err := os.MkdirTemp(parent, "."+filepath.Base(b.Folder)+"-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(part) // nothing is there once it was renamed
	if err := b.copyFolder(ctx, store, filepath.Join(part, natsFolder), conf.keysFile()); err != nil {
		return fmt.Errorf("copy %s: %w", store, err)
	}
	if err := syncFolder(part); err != nil {
		return err
	}
	if err := os.Rename(part, b.Folder); err != nil {
		return err
	}
	return syncFolder(parent)
}

// copyFolder copies a folder and all in it but the keyring, wherever that is, and puts it on the
// disk.
func (b *backup) copyFolder(ctx context.Context, from, to, keyring string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	secret, _ := os.Stat(keyring) // where it cannot be seen it is not in the folder
	for _, e := range entries {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		source, target := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		info, err := os.Stat(source)
		switch {
		case err != nil:
			return err
		case info.IsDir():
			err = b.copyFolder(ctx, source, target, keyring)
		case !info.Mode().IsRegular():
			err = fmt.Errorf("%s is neither a file nor a folder", source)
		case secret == nil || !os.SameFile(secret, info):
			err = b.copyFile(source, target)
		}
		if err != nil {
			return err
		}
	}
	return syncFolder(to)
}

func (b *backup) copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, in)
	b.Files++
	b.Bytes += n
	return errors.Join(err, out.Sync(), out.Close())
}
