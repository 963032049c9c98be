package daemon

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/settings"
)

// The embedded NATS server encrypts its files with one key, which cannot change: the server cannot
// read files of another key. So the key is random, lies beside the files, and is sealed with the
// store key of the keyring. A rotation of the keyring seals the key again and leaves the server's
// files alone.

const (
	// fileKeyName is in the server's folder, so that a copy of the folder needs the keyring alone.
	fileKeyName = "renewd.key"
	// fileKeyPurpose binds the sealed key to its purpose.
	fileKeyPurpose = "renewd embedded NATS files v1"
	fileKeySize    = 32 // bytes
)

func fileKeyPath(c *settings.Settings) string {
	return filepath.Join(c.DataDir, NATSFolder, fileKeyName)
}

// FileKey returns the id of the store key that seals the key of the embedded NATS server's files.
// The id is empty where the files are not encrypted, and where there are no files.
func FileKey(c *settings.Settings) (id string, err error) {
	if !c.Embedded() {
		return "", nil
	}
	sealed, err := os.ReadFile(fileKeyPath(c))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("key of the NATS server's files: %w", err)
	}
	if id = seal.StoreKeyOf(sealed); id == "" {
		return "", fmt.Errorf("key of the NATS server's files: %s is damaged: "+
			"restore it from a backup", fileKeyPath(c))
	}
	return id, nil
}

// HasNATSFiles reports whether an embedded NATS server has written to data_dir.
func HasNATSFiles(c *settings.Settings) bool {
	_, err := os.Stat(filepath.Join(c.DataDir, NATSFolder, "jetstream"))
	return err == nil
}

// fileKey is the key of the server's files, empty where the files are not encrypted. If the
// settings want encryption, a folder without files gets a new key. Existing files stay as they are
// until EncryptFiles, which takes time, and twice the room.
func (p *Resources) fileKey() (secret.Value, error) {
	path := fileKeyPath(p.Conf)
	release, err := natsd.Hold(filepath.Dir(path)) // an EncryptFiles that was cut short is settled
	if err == nil {
		err = release()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, natsd.ErrInUse) {
		return secret.Value{}, err
	}
	sealed, err := os.ReadFile(path)
	switch {
	case err == nil:
	case !errors.Is(err, fs.ErrNotExist):
		return secret.Value{}, fmt.Errorf("key of the NATS server's files: %w", err)
	case !p.Conf.NATSEncrypt:
		return secret.Value{}, nil
	case HasNATSFiles(p.Conf):
		p.log.Warn("the NATS server's files are not encrypted: "+
			"stop renewd and run renewd nats encrypt", "folder", filepath.Dir(path))
		return secret.Value{}, nil
	default:
		return p.makeFileKey(path)
	}
	key, err := p.Keys.Open(sealed, []byte(fileKeyPurpose))
	if err != nil {
		return secret.Value{}, settings.Mistake(fmt.Errorf("the NATS server's files are "+
			"encrypted, and their key in %s cannot be opened: %w: set RENEWD_KEYS_FILE to the "+
			"keyring that renewd ran with", path, err))
	}
	return secret.New(string(key)), p.sealFileKey(p.Keys.ring.Load())
}

// newFileKey is a fresh key, in clear and sealed by the keyring.
func (p *Resources) newFileKey() (key secret.Value, sealed []byte, err error) {
	raw := make([]byte, fileKeySize)
	if _, err := rand.Read(raw); err != nil {
		return key, nil, fmt.Errorf("key of the NATS server's files: %w", err)
	}
	text := base64.RawStdEncoding.EncodeToString(raw)
	sealed, err = p.Keys.Seal([]byte(text), []byte(fileKeyPurpose))
	return secret.New(text), sealed, err
}

func (p *Resources) makeFileKey(path string) (secret.Value, error) {
	key, sealed, err := p.newFileKey()
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err == nil {
		err = keyfile.ReplaceFile(path, sealed)
	}
	if err != nil {
		return secret.Value{}, fmt.Errorf("key of the NATS server's files: %w", err)
	}
	return key, nil
}

// EncryptFiles encrypts the files of an embedded NATS server, while no worker runs. It first starts
// the server as a worker does, which refuses a keyring of another installation: that keyring would
// seal the key of the files.
func EncryptFiles(
	ctx context.Context, conf *settings.Settings,
) (done natsd.Encrypted, err error) {
	quiet := *conf
	quiet.NATSListen = ""
	p := &Resources{Conf: &quiet, log: slog.New(slog.DiscardHandler), tel: &telemetry{}}
	id, err := FileKey(conf)
	switch {
	case err != nil:
		return done, err
	case !HasNATSFiles(conf):
		return done, settings.Mistake(fmt.Errorf("%s has no files of an embedded NATS server: "+
			"with RENEWD_NATS_ENCRYPT=true the first start encrypts them", conf.DataDir))
	case id != "":
		return done, settings.Mistake(fmt.Errorf("the files are encrypted already, "+
			"with a key that store key %s seals", id))
	}
	files := keyfile.Of(conf)
	ring, err := files.Load(ctx)
	if err != nil {
		return done, settings.Mistake(err)
	}
	p.Keys = NewLiveKeys(files, ring, nil)
	release, err := natsd.Hold(filepath.Dir(fileKeyPath(conf)))
	if err == nil {
		err = release()
	}
	if err != nil {
		return done, err
	}
	if err = p.connect(ctx, nil); err == nil {
		err = p.streams(ctx)
	}
	p.Close()
	if err != nil {
		return done, err
	}
	server, err := p.natsd()
	if err != nil {
		return done, err
	}
	key, sealed, err := p.newFileKey()
	if err != nil {
		return done, err
	}
	server.Key = key
	return natsd.Encrypt(ctx, server, fileKeyName, sealed)
}

// sealFileKey seals the key of the server's files with the store key that seals in this keyring. A
// worker does so before it uses the keyring and says which key seals. Until then keys retire leaves
// the older key alone.
func (p *Resources) sealFileKey(ring *seal.Keyring) error {
	if !p.Conf.Embedded() {
		return nil
	}
	path := fileKeyPath(p.Conf)
	sealed, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && seal.StoreKeyOf(sealed) == ring.Only(seal.UseStore).Sealing()[0] {
		return nil
	}
	var key []byte
	if err == nil {
		key, err = ring.Open(sealed, []byte(fileKeyPurpose))
	}
	if err == nil {
		sealed, err = ring.Seal(key, []byte(fileKeyPurpose))
	}
	if err == nil {
		err = keyfile.ReplaceFile(path, sealed)
	}
	if err != nil {
		return fmt.Errorf("seal the key of the NATS server's files again: %w", err)
	}
	p.log.Info("sealed the key of the NATS server's files again", "file", path)
	return nil
}
