package natsd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The folders of a store during encryption. The server writes to a copy. After the copy was read
// back, it takes the place of the original.
const (
	filesFolder = "jetstream"       // a server's files
	partFolder  = "encrypting"      // where the copy grows; whole once oldFolder exists
	oldFolder   = "jetstream-plain" // the original, out of its place
)

// ErrDiffers: the encrypted contents are not the contents from before.
var ErrDiffers = errors.New("the encrypted files do not hold what the files held")

// Encrypted counts the encrypted streams and messages.
type Encrypted struct {
	Streams  int    `json:"streams"`
	Messages uint64 `json:"messages"`
}

// Encrypt encrypts the files of a store, on which no server runs, with c.Key. Beside the files it
// leaves the file keyName with the content sealed, by which the caller finds the key again. Encrypt
// needs as much room on the disk as the files take.
//
// The files change at one moment, and only after a server has read all encrypted files back. Before
// that moment an end of this process changes nothing. After it the next Start, Hold or Encrypt does
// the rest, which is to remove the original. Encrypt starts servers that do not listen: they fire
// due timers, as every server does.
func Encrypt(ctx context.Context, c Config, keyName string, sealed []byte) (Encrypted, error) {
	c = c.withDefaults()
	release, err := Hold(c.StoreDir)
	if err != nil {
		return Encrypted{}, err
	}
	done, err := c.encrypt(ctx, keyName, sealed)
	if err != nil { // a failed try leaves nothing
		err = fmt.Errorf("encrypt the NATS server's files: %w", err)
		err = errors.Join(err, settle(c.StoreDir))
	}
	return done, errors.Join(err, release())
}

func (c Config) encrypt(ctx context.Context, keyName string, sealed []byte) (Encrypted, error) {
	store := c.StoreDir
	part := filepath.Join(store, partFolder)
	files := filepath.Join(part, filesFolder)
	if err := os.Mkdir(part, 0o700); err != nil {
		return Encrypted{}, err
	}
	if err := os.CopyFS(files, os.DirFS(filepath.Join(store, filesFolder))); err != nil {
		return Encrypted{}, err
	}
	key := c.Key
	c.StoreDir, c.Listen, c.TLS = part, "", nil
	c.Key = Config{}.Key
	before, err := c.contents(ctx, nil)
	if err != nil {
		return Encrypted{}, err
	}
	if err := dropIndexes(files); err != nil {
		return Encrypted{}, err
	}
	c.Key = key
	if _, err := c.contents(ctx, before); err != nil { // encrypts the streams
		return Encrypted{}, err
	}
	after, err := c.contents(ctx, before) // reads the encrypted files
	if err == nil {
		err = before.compare(after)
	}
	if err == nil {
		err = os.Remove(filepath.Join(part, lockFile))
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(part, keyName), sealed, 0o600)
	}
	if err == nil {
		err = syncTree(part)
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return Encrypted{}, err
	}
	err = os.Rename(filepath.Join(store, filesFolder), filepath.Join(store, oldFolder))
	if err != nil {
		return Encrypted{}, err
	}
	return after.count(), settle(store)
}

// settle finishes or undoes an Encrypt that was cut short in a store. The caller holds the store's
// lock.
func settle(store string) error {
	part, old := filepath.Join(store, partFolder), filepath.Join(store, oldFolder)
	if _, err := os.Stat(old); errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(part)
	} else if err != nil {
		return err
	}
	ready, err := os.ReadDir(part)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range ready {
		to := filepath.Join(store, e.Name())
		if _, err := os.Stat(to); err == nil {
			return fmt.Errorf("%s and %s are both there, of a version that does not know of the "+
				"latter: keep the one that has your users, and move the other away", to, part)
		}
		if err := os.Rename(filepath.Join(part, e.Name()), to); err != nil {
			return err
		}
	}
	if err := syncFile(store); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(old), os.RemoveAll(part))
}

// dropIndexes removes the files that the server can make again from the messages. The server then
// reads, and encrypts, every block of messages. Blocks of no bytes go too: the server refuses to
// encrypt such a block, and the stream with it (nats-server 2.15).
func dropIndexes(files string) error {
	inside := os.DirFS(files)
	for _, name := range []string{"index.db", "sched.db", "*.blk"} {
		paths, err := fs.Glob(inside, "*/streams/*/msgs/"+name)
		if err != nil {
			return err
		}
		for _, path := range paths {
			if info, err := fs.Stat(inside, path); err != nil {
				return err
			} else if name == "*.blk" && info.Size() > 0 {
				continue
			}
			if err := os.Remove(filepath.Join(files, path)); err != nil {
				return err
			}
		}
	}
	return nil
}

func syncTree(folder string) error {
	return filepath.WalkDir(folder, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return syncFile(path)
	})
}

// syncFile puts a file, or the entries of a folder, on the disk.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// contents starts a server on the store, and reads the whole store.
func (c Config) contents(ctx context.Context, before contents) (contents, error) {
	options, self, err := c.options()
	if err != nil {
		return nil, err
	}
	doors := map[string][]nats.Option{server.DEFAULT_GLOBAL_ACCOUNT: self}
	for _, account := range options.Accounts {
		public, show, err := ownKey()
		if err != nil {
			return nil, err
		}
		options.Nkeys = append(options.Nkeys, &server.NkeyUser{Nkey: public, Account: account})
		doors[account.Name] = []nats.Option{show}
	}
	s, err := c.start(ctx, options, self)
	if err != nil {
		return nil, err
	}
	defer s.Shutdown()
	accounts, err := os.ReadDir(filepath.Join(c.StoreDir, filesFolder))
	if err != nil {
		return nil, err
	}
	all := contents{}
	for _, account := range accounts {
		show, ok := doors[account.Name()]
		if !ok {
			return nil, fmt.Errorf("%s is of an account that the server does not have "+
				"(RENEWD_NATS_ACCOUNTS)", account.Name())
		}
		nc, err := nats.Connect("", append(show, nats.InProcessServer(s.nats))...)
		if err != nil {
			return nil, err
		}
		js, err := jetstream.New(nc)
		if err == nil {
			err = all.read(ctx, js, account.Name(), before)
		}
		nc.Close()
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}
