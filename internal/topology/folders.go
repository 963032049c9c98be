package topology

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrUnreadable is wrapped by CheckFolder's error.
var ErrUnreadable = errors.New("the server cannot read streams in its folder")

// CheckFolder compares the stream folders below an embedded server's store folder with the streams
// the server lists. A server started with a wrong encryption key lists no stream, and creating a
// stream of the same name then deletes the old files: call CheckFolder before Apply. A missing
// folder is fine.
func CheckFolder(ctx context.Context, js jetstream.JetStream, storeDir string) error {
	folders, err := streamFolders(storeDir)
	if err != nil {
		return fmt.Errorf("check store folder %s: %w", storeDir, err)
	}
	names := js.StreamNames(ctx)
	for name := range names.Name() {
		folders = slices.DeleteFunc(folders, func(f string) bool { return f == name })
	}
	if err := names.Err(); err != nil {
		return fmt.Errorf("check store folder %s: list streams: %w", storeDir, err)
	}
	if len(folders) > 0 {
		return fmt.Errorf("%w: %s holds %s: start with the encryption key they were written "+
			"with, or move the folder away to begin again",
			ErrUnreadable, storeDir, strings.Join(folders, ", "))
	}
	return nil
}

// streamFolders lists the names below <storeDir>/jetstream/<account>/streams.
func streamFolders(storeDir string) ([]string, error) {
	accounts, err := os.ReadDir(filepath.Join(storeDir, "jetstream"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, account := range accounts {
		streams, err := os.ReadDir(filepath.Join(storeDir, "jetstream", account.Name(), "streams"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, s := range streams {
			// A name with a dot in front is a stream the server is deleting.
			if s.IsDir() && !strings.HasPrefix(s.Name(), ".") {
				names = append(names, s.Name())
			}
		}
	}
	return names, nil
}
