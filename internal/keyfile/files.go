package keyfile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/settings"
)

// Files are where the keys are kept: one file for all of them, or one for each use.
type Files []File

// Of returns the settings' files of the keys this process may need.
func Of(c *settings.Settings) Files {
	store := File{Path: c.KeysPath(), Unwrap: c.KeysUnwrap, Wrap: c.KeysWrap}
	switch {
	case !c.TakeLogins:
		store.Use = seal.UseStore
		return Files{store}
	case c.LoginKeysFile == "":
		return Files{store}
	}
	store.Use = seal.UseStore
	return Files{LoginFile(c, c.LoginKeysFile), store}
}

// LoginFile is a file of login keys, with the settings' programs for login keys.
func LoginFile(c *settings.Settings, path string) File {
	f := File{Path: path, Unwrap: c.KeysUnwrap, Wrap: c.KeysWrap, Use: seal.UseLogin}
	if len(c.LoginKeysUnwrap) > 0 {
		f.Unwrap, f.Wrap, f.programs = c.LoginKeysUnwrap, c.LoginKeysWrap, "login_"
	}
	return f
}

// For returns the files with keys of this use; all files where use is empty.
func (f Files) For(use string) Files {
	return slices.DeleteFunc(slices.Clone(f), func(one File) bool {
		return use != "" && one.Use != "" && one.Use != use
	})
}

// Load reads the keys of all the files.
func (f Files) Load(ctx context.Context) (*seal.Keyring, error) {
	all := new(seal.Keyring)
	for _, file := range f {
		part, err := file.Load(ctx)
		if err != nil {
			return nil, err
		}
		all = all.With(part)
	}
	return all, nil
}

// LoadOnly reads the keys of one use, and no file without such keys. Where all keys are in one
// file, the other keys are read too, and not kept.
func (f Files) LoadOnly(ctx context.Context, use string) (*seal.Keyring, error) {
	ring, err := f.For(use).Load(ctx)
	if err != nil {
		return nil, err
	}
	if ring = ring.Only(use); len(ring.Uses()) == 0 {
		return nil, fmt.Errorf("this renewd has no %s keys, since its setting take_logins is false",
			use)
	}
	return ring, nil
}

// Make writes new keys to files of which no file may exist: keys beside older keys would be of
// another installation.
func (f Files) Make(ctx context.Context, now time.Time) (*seal.Keyring, error) {
	for _, file := range f {
		if _, err := os.Lstat(file.Path); err == nil {
			return nil, fmt.Errorf("make keyring: %w", &fs.PathError{Op: "create", Path: file.Path,
				Err: fs.ErrExist})
		}
	}
	all := new(seal.Keyring)
	for i, file := range f {
		part, err := file.Make(ctx, now)
		if err != nil {
			for _, made := range f[:i] {
				err = errors.Join(err, os.Remove(made.Path))
			}
			return nil, err
		}
		all = all.With(part)
	}
	return all, nil
}

// Write replaces the keys of before by the keys of ring, in each file whose keys differ.
func (f Files) Write(ctx context.Context, before, ring *seal.Keyring) error {
	for _, file := range f {
		was, part := before, ring
		if file.Use != "" {
			was, part = before.Only(file.Use), ring.Only(file.Use)
		}
		if SameRing(was, part) {
			continue
		}
		if err := file.Write(ctx, part); err != nil {
			return fmt.Errorf("%s: %w", file.Path, err)
		}
	}
	return nil
}

// String names the files.
func (f Files) String() string {
	var paths []string
	for _, file := range f {
		paths = append(paths, file.Path)
	}
	return cmp.Or(strings.Join(paths, " and "), "no file")
}
