package keyfile

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

	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/settings"
)

// File is where a keyring is kept, and the programs that encrypt and decrypt the keyring: without
// programs the keyring is kept in clear.
type File struct {
	Path         string
	Unwrap, Wrap settings.Command
	// Use is the use of the keys in the file, seal.UseLogin or seal.UseStore. Empty: both, and the
	// file must have keys of both. A file of one use must have no other keys.
	Use string

	programs string // what begins the names of the programs' settings
}

const (
	// wrapLimit is how long a program may take.
	wrapLimit = 30 * time.Second
	// maxKeyring is how large a keyring may be, wrapped or not, in bytes: some thousand keys.
	maxKeyring = 1 << 20
	// maxComplaint is how much of a failing program's error output is shown, in bytes.
	maxComplaint = 2 << 10
)

// Load reads the keyring.
func (f File) Load(ctx context.Context) (*seal.Keyring, error) {
	if err := f.guarded(); err != nil {
		return nil, fmt.Errorf("load keyring %s: %w", f.Path, err)
	}
	raw, err := f.Read()
	if err != nil {
		return nil, fmt.Errorf("load keyring: %w", err)
	}
	ring, err := f.Decode(ctx, raw)
	if err != nil {
		return nil, fmt.Errorf("load keyring %s: %w", f.Path, err)
	}
	return ring, nil
}

// guarded refuses a file that other users may write to: with keys of their own there they could
// read every token.
func (f File) guarded() error {
	info, err := os.Stat(f.Path)
	if err != nil || runtime.GOOS == "windows" || info.Mode().Perm()&0o022 == 0 {
		return nil // a missing file is not read either
	}
	return fmt.Errorf("others than its owner may write to it (mode %04o), "+
		"and so read every token: chmod go-w", info.Mode().Perm())
}

// Read returns the file as it is.
func (f File) Read() ([]byte, error) {
	file, err := os.Open(f.Path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, maxKeyring+1))
	if err == nil && len(raw) > maxKeyring {
		err = fmt.Errorf("read %s: larger than %d bytes: no keyring is", f.Path, maxKeyring)
	}
	return raw, err
}

// Decode is the keyring in the bytes that Read returned.
func (f File) Decode(ctx context.Context, raw []byte) (*seal.Keyring, error) {
	if len(f.Unwrap) == 0 {
		return f.parse(raw)
	}
	plain, err := pipe(ctx, f.Unwrap, raw, wrapLimit)
	if err != nil {
		return nil, fmt.Errorf("%skeys_unwrap: %w", f.programs, err)
	}
	ring, err := f.parse(plain)
	if err != nil {
		return nil, fmt.Errorf("%skeys_unwrap: what %s gives: %w", f.programs, f.Unwrap[0], err)
	}
	return ring, nil
}

// parse also refuses a keyring with other keys than the file is for. Login keys in the file of the
// store keys would be in the memory of each process that must not have login keys.
func (f File) parse(raw []byte) (*seal.Keyring, error) {
	ring, err := seal.ParseKeyring(raw)
	if err != nil {
		return nil, err
	}
	login := slices.Contains(ring.Uses(), seal.UseLogin)
	store := slices.Contains(ring.Uses(), seal.UseStore)
	const whole = "it is a keyring in one file: renewd keys split makes one file of each use"
	switch {
	case f.Use == "" && !login:
		return nil, errors.New("it has store keys alone: " +
			"set RENEWD_LOGIN_KEYS_FILE to the file with the login keys")
	case f.Use == "" && !store:
		return nil, errors.New("it has login keys alone: set RENEWD_LOGIN_KEYS_FILE to it, " +
			"and RENEWD_KEYS_FILE to the file with the store keys")
	case f.Use == seal.UseStore && !store, f.Use == seal.UseLogin && !login:
		return nil, fmt.Errorf("it has no %s keys: "+
			"were RENEWD_KEYS_FILE (store keys) and RENEWD_LOGIN_KEYS_FILE mixed up?", f.Use)
	case f.Use == seal.UseStore && login:
		return nil, errors.New("it has login keys too, " +
			"which are to be in the file of RENEWD_LOGIN_KEYS_FILE alone: " + whole)
	case f.Use == seal.UseLogin && store:
		return nil, errors.New("it has store keys too, " +
			"which are to be in the file of RENEWD_KEYS_FILE alone: " + whole)
	}
	return ring, nil
}

// encode is the inverse of Decode. Bytes that could not be read back are an error.
func (f File) encode(ctx context.Context, ring *seal.Keyring) ([]byte, error) {
	raw, err := ring.Marshal()
	if err != nil || len(f.Unwrap) == 0 {
		return raw, err
	}
	if len(f.Wrap) == 0 {
		return nil, fmt.Errorf("set RENEWD_%[1]sKEYS_WRAP to the inverse of "+
			"RENEWD_%[1]sKEYS_UNWRAP: the keyring is not written in clear",
			strings.ToUpper(f.programs))
	}
	wrapped, err := pipe(ctx, f.Wrap, raw, wrapLimit)
	if err != nil {
		return nil, fmt.Errorf("%skeys_wrap: %w", f.programs, err)
	}
	again, err := f.Decode(ctx, wrapped)
	if err == nil && !SameRing(again, ring) {
		err = errors.New("it is another keyring then")
	}
	if err != nil {
		return nil, fmt.Errorf("what %skeys_wrap gives cannot be read back, and is not kept: %w",
			f.programs, err)
	}
	return wrapped, nil
}

// Make writes a new keyring to a new file: an existing file is an error.
func (f File) Make(ctx context.Context, now time.Time) (*seal.Keyring, error) {
	var uses []string
	if f.Use != "" {
		uses = append(uses, f.Use)
	}
	ring, err := seal.NewKeyring(now, uses...)
	if err != nil {
		return nil, fmt.Errorf("make keyring: %w", err)
	}
	if err := f.Create(ctx, ring); err != nil {
		return nil, fmt.Errorf("make keyring: %w", err)
	}
	return ring, nil
}

// Create writes a keyring to a new file: an existing file is an error.
func (f File) Create(ctx context.Context, ring *seal.Keyring) error {
	raw, err := f.encode(ctx, ring)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(f.Path), 0o700); err != nil {
		return err
	}
	file, err := os.OpenFile(f.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := finish(file, raw); err != nil {
		return errors.Join(err, os.Remove(f.Path))
	}
	return SyncFolder(filepath.Dir(f.Path))
}

// Write replaces the keyring.
func (f File) Write(ctx context.Context, ring *seal.Keyring) error {
	raw, err := f.encode(ctx, ring)
	if err != nil {
		return err
	}
	return ReplaceFile(f.Path, raw)
}

// pipe gives the program the bytes of in, on its standard input, and returns its standard output.
// No shell is between, and renewd's own settings are not in its environment. An error has the
// program's standard error, and neither its arguments nor its output.
func pipe(ctx context.Context, c settings.Command, in []byte, limit time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, complaint := capped{most: maxKeyring}, capped{most: maxComplaint, cut: true}
	x := exec.CommandContext(ctx, c[0], c[1:]...)
	x.Stdin, x.Stdout, x.Stderr = bytes.NewReader(in), &out, &complaint
	ours := func(variable string) bool { return strings.HasPrefix(variable, "RENEWD_") }
	x.Env = slices.DeleteFunc(os.Environ(), ours)
	x.WaitDelay = time.Second // for processes the program left behind
	err := x.Run()
	switch {
	case err == nil:
		return out.kept.Bytes(), nil
	case errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		err = fmt.Errorf("it took longer than %v", limit)
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		// Not wrapped: the missing file is the program, not the keyring.
		return nil, fmt.Errorf("%s: no such program", c[0])
	case out.over:
		err = fmt.Errorf("it gave more than %d bytes", maxKeyring)
	}
	said := strings.Join(strings.Fields(plain.Text(complaint.kept.String())), " ")
	return nil, fmt.Errorf("%s: %w: %s",
		c[0], err, cmp.Or(said, "it said nothing on standard error"))
}

// capped keeps no more than most bytes. Beyond that it refuses, or cuts the rest. The buffer has a
// name, since io.Copy would go around Write by the methods of an embedded buffer.
type capped struct {
	kept bytes.Buffer
	most int
	cut  bool
	over bool // a write was refused
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

func SameRing(a, b *seal.Keyring) bool {
	one, err := a.Marshal()
	if err != nil {
		return false
	}
	other, err := b.Marshal()
	return err == nil && bytes.Equal(one, other)
}

// finish writes raw to f, puts all on the disk, and closes f.
func finish(f *os.File, raw []byte) error {
	_, err := f.Write(raw)
	return errors.Join(err, f.Sync(), f.Close())
}

// ReplaceFile writes a file that only its owner may read so that either the old or the new content
// is there at any time, a power cut included. The owner stays the same.
func ReplaceFile(path string, raw []byte) error {
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
	return SyncFolder(filepath.Dir(path))
}
