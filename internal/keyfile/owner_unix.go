//go:build unix

package keyfile

import (
	"io/fs"
	"os"
	"syscall"
)

// giveTo gives f the owner and group of the file of. Only root can do so; any other user's own file
// belongs to that user anyway.
func giveTo(f *os.File, of fs.FileInfo) error {
	s, ok := of.Sys().(*syscall.Stat_t)
	if !ok || int(s.Uid) == os.Getuid() && int(s.Gid) == os.Getgid() {
		return nil
	}
	return f.Chown(int(s.Uid), int(s.Gid))
}

// SyncFolder puts on the disk which files are in a folder.
func SyncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
