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
	"slices"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/settings"
)

type backupCommand struct {
	Folder string `arg:"" help:"Where the copy goes: a folder that is not there yet."`
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// backup is the result: the files copied and left out, as -o json prints it.
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

// Run makes the copy of docs/backup.md for NATS inside renewd. The keyring stays out: a thief of a
// copy with both has every token.
func (b backupCommand) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	if !conf.Embedded() {
		return settings.Mistake(errors.New("NATS does not run inside renewd here: " +
			"back its streams up with the nats command, " +
			"and PostgreSQL with pg_dump: see docs/backup.md"))
	}
	b.Folder = filepath.Clean(b.Folder) // a slash at its end would be a folder inside itself
	if err := b.check(conf); err != nil {
		return settings.Mistake(err)
	}
	done := backup{Folder: b.Folder, LeftOut: whatIsLeftOut(conf)}
	if err := done.make(ctx, conf); err != nil {
		return err
	}
	fmt.Fprintln(a.stderr, "The keyring is NOT in the copy: keep a copy of it in another place; "+
		"without it every user must sign in again")
	if b.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(done)
	}
	files := plain.Plural(done.Files, "file")
	fmt.Fprintf(a.stdout, "copied %s, %d bytes, to %s\n", files, done.Bytes, b.Folder)
	for _, l := range done.LeftOut {
		fmt.Fprintf(a.stdout, "not in it: %s: %s\n", l.What, l.Advice)
	}
	return nil
}

// check refuses a place that is taken, or is inside data_dir.
func (b backupCommand) check(conf *settings.Settings) error {
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

// whatIsLeftOut lists the other things a restore needs, the files of the keys first.
func whatIsLeftOut(c *settings.Settings) []leftOut {
	var left []leftOut
	for _, file := range keyfile.Of(c) {
		what, without := "the keyring, ", "every user must sign in again"
		if file.Use == seal.UseLogin {
			what, without = "the login keys, ", "no login that waits can be opened"
		}
		left = append(left, leftOut{
			what + file.Path, "keep a copy of it in another place; without it " + without,
		})
	}
	if !c.DatabaseURL.IsZero() {
		left = append(left, leftOut{
			"the grants, in PostgreSQL at " + settings.DatabaseHost(c.DatabaseURL),
			"pg_dump --format=custom --schema=renewd, best before renewd is started again",
		})
	}
	return append(left, leftOut{"the settings", "your file and environment"})
}

// make copies, with no server at work. The copy is there whole or not at all.
func (b *backup) make(ctx context.Context, conf *settings.Settings) (err error) {
	store := filepath.Join(conf.DataDir, daemon.NATSFolder)
	release, err := natsd.Hold(store)
	switch {
	case errors.Is(err, natsd.ErrInUse):
		return fmt.Errorf("%w: stop it first, since only a stopped server's files belong "+
			"together; start it again once this is done", err)
	case errors.Is(err, fs.ErrNotExist):
		return settings.Mistake(fmt.Errorf("there is nothing to back up: %w: set RENEWD_DATA_DIR "+
			"to the folder that renewd runs with", err))

	case err != nil:
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	if id, err := daemon.FileKey(conf); err != nil {
		return err
	} else if id != "" { // a killed server has not removed its clear files
		if err := natsd.RemoveClear(store); err != nil {
			return err
		}
	}
	parent := filepath.Dir(b.Folder)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	part, err := os.MkdirTemp(parent, "."+filepath.Base(b.Folder)+"-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(part) // nothing is there after the rename
	if err := b.copyFolder(ctx, store, filepath.Join(part, daemon.NATSFolder),
		secretFiles(conf)); err != nil {
		return fmt.Errorf("copy %s: %w", store, err)
	}
	if err := keyfile.SyncFolder(part); err != nil {
		return err
	}
	if err := os.Rename(part, b.Folder); err != nil {
		return err
	}
	return keyfile.SyncFolder(parent)
}

// secretFiles are the files of the keys, as far as they can be seen: no other is in the folder.
func secretFiles(c *settings.Settings) (secret []fs.FileInfo) {
	paths := []string{c.KeysPath(), c.LoginKeysFile}
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil {
			secret = append(secret, info)
		}
	}
	return secret
}

// copyFolder copies a folder and all in it but these files, and syncs the copy to the disk.
func (b *backup) copyFolder(ctx context.Context, from, to string, secret []fs.FileInfo) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
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
			err = b.copyFolder(ctx, source, target, secret)
		case !info.Mode().IsRegular():
			err = fmt.Errorf("%s is neither a file nor a folder", source)
		case !slices.ContainsFunc(secret, func(s fs.FileInfo) bool { return os.SameFile(s, info) }):
			err = b.copyFile(source, target)
		}
		if err != nil {
			return err
		}
	}
	return keyfile.SyncFolder(to)
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
