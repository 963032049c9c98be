package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/stream"
)

// A root signs the public keys, offline, so that publishers need not believe the keys in NATS. keys
// root and keys sign read no settings and connect to nothing: the machine with the root needs
// neither settings nor a network.

type keysRoot struct {
	New keysRootNew `cmd:"" help:"Make a root: an Ed25519 key that signs public keys, to be kept offline."`
}

type keysRootNew struct {
	Out string `required:"" placeholder:"FILE" help:"Where the private half is written, which must not be there yet."`
}

// Run makes a root, and prints the public half.
func (k keysRootNew) Run(a *app) error {
	private, public, err := seal.NewRoot()
	if err != nil {
		return err
	}
	file, err := os.OpenFile(k.Out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make a root: %w", err)
	}
	_, err = file.Write(append(private, '\n'))
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("make a root: %w", err)
	}
	const hint = "made %s: keep it offline, away from every renewd; publishers get the line below\n"
	fmt.Fprintf(a.stderr, hint, k.Out)
	fmt.Fprintln(a.stdout, public)
	return nil
}

type keysSign struct {
	Root string        `required:"" placeholder:"FILE" help:"The root, of keys root new."`
	For  time.Duration `type:"duration" default:"90d" placeholder:"DURATION" help:"How long publishers may believe it. Default: 90d."`
	Keys string        `arg:"" optional:"" default:"-" help:"File with the keys, of keys public; standard input if none is named."`
}

// Run signs a key set, and prints it.
func (k keysSign) Run(a *app) error {
	if k.For <= 0 {
		return settings.Mistake(errors.New("--for: want more than 0"))
	}
	root, err := os.ReadFile(k.Root)
	if err != nil {
		return fmt.Errorf("sign keys: %w", err)
	}
	keys, err := readKeySet(k.Keys, a.stdin)
	if err != nil {
		return fmt.Errorf("sign keys: %w", err)
	}
	signed, err := seal.SignKeys(root, keys, time.Now(), k.For)
	if err != nil {
		return err
	}
	fmt.Fprintln(a.stdout, signed)
	return nil
}

// maxKeySet is the most that is read of a key set from standard input, in bytes.
const maxKeySet = 1 << 20

// readKeySet reads a file, or standard input for "-".
func readKeySet(path string, stdin io.Reader) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(io.LimitReader(stdin, maxKeySet))
	}
	return os.ReadFile(path)
}

type keysPublic struct {
	Next bool `help:"The fresh key, which is going to seal once it is promoted, in place of the one that does."`
}

// Run prints the public key set of the keyring.
func (k keysPublic) Run(ctx context.Context, a *app, c *cli) error {
	_, _, ring, err := a.loadRing(ctx, c, seal.UseLogin)
	if err != nil {
		return err
	}
	if k.Next {
		if ring, err = ring.Promote(seal.UseLogin); err != nil {
			return fmt.Errorf("show the fresh key: %w: %s keys rotate adds some", err, a.name)
		}
	}
	fmt.Fprintf(a.stdout, "%s\n", ring.JWKS())
	return nil
}

// readSigned reads a signed key set, which must be of this keyring and good for now.
func readSigned(a *app, path string, ring *seal.Keyring) ([]byte, error) {
	text, err := readKeySet(path, a.stdin)
	if err != nil {
		return nil, fmt.Errorf("--signed: %w", err)
	}
	signed, err := seal.OpenSigned(text, time.Now())
	if err != nil {
		return nil, fmt.Errorf("--signed: %s: %w", path, err)
	}
	if string(signed.JWKS) != string(ring.JWKS()) {
		return nil, fmt.Errorf("--signed: %s is of another key than the one that logins are "+
			"going to be sealed to: sign what %s keys public prints, "+
			"and before keys promote what it prints with --next",
			path, a.name)
	}
	return text, nil
}

// signNext is the part of keys promote about a signed set. Where publishers trust nothing but a
// signed set, the fresh key must be signed too. The result goes where publishers look; nil: nothing
// is published.
func (k keysPromote) signNext(
	ctx context.Context, a *app, engine *stream.Engine, next *seal.Keyring,
) ([]byte, error) {
	there, err := engine.SignedKeys(ctx)
	if err != nil {
		return nil, streamHint(err, a)
	}
	if k.Signed == "" {
		if there == nil {
			return nil, nil
		}
		return nil, fmt.Errorf("promote keys: publishers read a signed key set, "+
			"and the fresh key is not signed yet: %s keys public --next, "+
			"sign that with %[1]s keys sign where the root is, and give it with --signed", a.name)
	}
	text, err := readSigned(a, k.Signed, next)
	if err != nil || there == nil {
		return text, err
	}
	return text, sameRoot(there, text)
}

// sameRoot refuses to replace a signed set by a set of another root, which publishers would not
// take. An expired set may be replaced by any other.
func sameRoot(there, text []byte) error {
	was, err := seal.OpenSigned(there, time.Now())
	if err != nil {
		return nil
	}
	if _, err := seal.OpenSigned(text, time.Now(), was.Root); err != nil {
		return fmt.Errorf("--signed: %w: the set in use is of the root %s. "+
			"To change roots give publishers both, and publish the present key signed by the new "+
			"one first: keys publish --signed",
			err, was.Root)
	}
	return nil
}
