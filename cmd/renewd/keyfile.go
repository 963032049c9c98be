package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/seal"
)

// keyFile is where the keyring is kept, and the programs that it goes through on its way: without
// them it is kept as it is.
type keyFile struct {
	path         string
	unwrap, wrap command
}

// command is a program and its arguments.
type command []string

const (
	// wrapLimit is how long a program may take.
	wrapLimit = 30 * time.Second
	// maxKeyring is how large a keyring may be, wrapped or not, in bytes: some thousand keys.
	maxKeyring = 1 << 20
	// maxComplaint is how much is shown, in bytes, of what a program says of its failure.
	maxComplaint = 2 << 10
)

// keyFile is where the settings have the keyring.
func (c *configuration) keyFile() keyFile {
	return keyFile{path: c.keysFile(), unwrap: c.KeysUnwrap, wrap: c.KeysWrap}
}

// load reads the keyring.
func (f keyFile) load(ctx context.Context) (*seal.Keyring, error) {
	if err := f.guarded(); err != nil {
		return nil, fmt.Errorf("load keyring %s: %w", f.path, err)
	}
	raw, err := f.read()
	if err != nil {
		return nil, fmt.Errorf("load keyring: %w", err)
	}
	ring, err := f.decode(ctx, raw)
	if err != nil {
		return nil, fmt.Errorf("load keyring %s: %w", f.path, err)
	}
	return ring, nil
}

// guarded refuses a file that others may write to: their keys would read every token.
func (f keyFile) guarded() error {
	info, err := os.Stat(f.path)
	if err != nil || runtime.GOOS == "windows" || info.Mode().Perm()&0o022 == 0 {
		return nil // one that is not there is not read either
	}
	return fmt.Errorf("others than its owner may write to it (mode %04o), and so read every token: "+
		"chmod go-w", info.Mode().Perm())
}

// read returns the file as it is.
func (f keyFile) read() ([]byte, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, maxKeyring+1))
	if err == nil && len(raw) > maxKeyring {
		err = fmt.Errorf("read %s: larger than %d bytes: no keyring is", f.path, maxKeyring)
	}
	return raw, err
}

// decode is the keyring in what read returned.
func (f keyFile) decode(ctx context.Context, raw []byte) (*seal.Keyring, error) {
	if len(f.unwrap) == 0 {
		return seal.ParseKeyring(raw)
	}
	plain, err := f.unwrap.pipe(ctx, raw, wrapLimit)
	if err != nil {
		return nil, fmt.Errorf("keys_unwrap: %w", err)
	}
	ring, err := seal.ParseKeyring(plain)
	if err != nil {
		return nil, fmt.Errorf("keys_unwrap: what %s gives: %w", f.unwrap[0], err)
	}
	return ring, nil
}

// encode is the inverse of decode. What could not be read back is an error.
func (f keyFile) encode(ctx context.Context, ring *seal.Keyring) ([]byte, error) {
	raw, err := ring.Marshal()
	if err != nil || len(f.unwrap) == 0 {
		return raw, err
	}
	if len(f.wrap) == 0 {
		return nil, errors.New("set RENEWD_KEYS_WRAP to the inverse of RENEWD_KEYS_UNWRAP: " +
			"the keyring is not written in clear")
	}
	wrapped, err := f.wrap.pipe(ctx, raw, wrapLimit)
	if err != nil {
		return nil, fmt.Errorf("keys_wrap: %w", err)
	}
	again, err := f.decode(ctx, wrapped)
	if err == nil && !sameRing(again, ring) {
		err = errors.New("it is another keyring then")
	}
	if err != nil {
		return nil, fmt.Errorf("what keys_wrap gives cannot be read back, and is not kept: %w", err)
	}
	return wrapped, nil
}

// make writes a new keyring to a file that must not exist.
func (f keyFile) make(ctx context.Context, now time.Time) (*seal.Keyring, error) {
	ring, err := seal.NewKeyring(now)
	if err != nil {
		return nil, fmt.Errorf("make keyring: %w", err)
	}
	raw, err := f.encode(ctx, ring)
	if err != nil {
		return nil, fmt.Errorf("make keyring: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(f.path), 0o700); err != nil {
		return nil, fmt.Errorf("make keyring: %w", err)
	}
	file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make keyring: %w", err)
	}
	if err := finish(file, raw); err != nil {
		return nil, fmt.Errorf("make keyring: %w", errors.Join(err, os.Remove(f.path)))
	}
	if err := syncFolder(filepath.Dir(f.path)); err != nil {
		return nil, fmt.Errorf("make keyring: %w", err)
	}
	return ring, nil
}

// write replaces the keyring.
func (f keyFile) write(ctx context.Context, ring *seal.Keyring) error {
	raw, err := f.encode(ctx, ring)
	if err != nil {
		return err
	}
	return replaceFile(f.path, raw)
}

// pipe gives the program what is in, on its standard input, and returns its standard output. No
// shell is between, and renewd's own settings are not in its environment. An error has what the
// program said on standard error, and neither its arguments nor its output.
func (c command) pipe(ctx context.Context, in []byte, limit time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, complaint := capped{most: maxKeyring}, capped{most: maxComplaint, cut: true}
	x := exec.CommandContext(ctx, c[0], c[1:]...)
	x.Stdin, x.Stdout, x.Stderr = bytes.NewReader(in), &out, &complaint
	ours := func(variable string) bool { return strings.HasPrefix(variable, "RENEWD_") }
	x.Env = slices.DeleteFunc(os.Environ(), ours)
	x.WaitDelay = time.Second // for what it started and left behind
	err := x.Run()
	switch {
	case err == nil:
		return out.kept.Bytes(), nil
	case errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		err = fmt.Errorf("it took longer than %v", limit)
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		// Not wrapped: it is not the keyring that is not there.
		return nil, fmt.Errorf("%s: no such program", c[0])
	case out.over:
		err = fmt.Errorf("it gave more than %d bytes", maxKeyring)
	}
	said := strings.Join(strings.Fields(printable(complaint.kept.String())), " ")
	return nil, fmt.Errorf("%s: %w: %s", c[0], err, cmp.Or(said, "it said nothing on standard error"))
}

// capped keeps no more than most bytes. Beyond that it refuses, or cuts what comes. The buffer has
// a name, since io.Copy would go around Write by the methods of one that is embedded.
type capped struct {
	kept bytes.Buffer
	most int
	cut  bool
	over bool // it refused
}

var errCapped = errors.New("too much output")

func (b *capped) Write(p []byte) (int, error) {
	room := b.most - b.kept.Len()
	if b.over = len(p) > room && !b.cut; b.over {
		return 0, errCapped
	}
	b.kept.Write(p[:min(room, len(p))])
	return len(p), nil
}

func sameRing(a, b *seal.Keyring) bool {
	one, err := a.Marshal()
	if err != nil {
		return false
	}
	other, err := b.Marshal()
	return err == nil && bytes.Equal(one, other)
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
