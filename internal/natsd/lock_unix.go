//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package natsd

import (
	"os"
	"syscall"
)

// lock takes the file for this process. Two servers on one folder would destroy the store, and the
// server itself does not check. The lock goes with the process, however the process ends.
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
