package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// File is a chain in a file, open for more.
type File struct {
	*Chain
	file *os.File
	size int64
}

// OpenFile opens a chain for Append. A missing file is made, with a fresh salt; only its owner may
// read it.
func OpenFile(path string) (*File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(f)
	c, whole, bad := ReadChain(raw)
	if err = errors.Join(err, bad); err == nil && whole < len(raw) {
		err = f.Truncate(int64(whole))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return &File{Chain: c, file: f, size: int64(whole)}, nil
}

// Write is for Append. It refuses to write where another process has written meanwhile, since two
// processes that append at once would break the chain.
func (f *File) Write(p []byte) (int, error) {
	info, err := f.file.Stat()
	if err != nil {
		return 0, err
	}
	if info.Size() != f.size {
		return 0, fmt.Errorf("%s: another process appends to it: run one at a time", f.file.Name())
	}
	n, err := f.file.Write(p)
	f.size += int64(n)
	return n, err
}

// Close syncs the file to the disk.
func (f *File) Close() error { return errors.Join(f.file.Sync(), f.file.Close()) }
