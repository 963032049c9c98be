//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package natsd

import (
	"os"
	"syscall"
)

// lock takes the file for this process: two servers on one folder would destroy it, and the server
// itself does not look. The lock goes with the process, however that ends.
func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
