//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package natsd

import "os"

// lock only opens the file: this system has no flock, so nothing stops a second server on the same
// folder.
func lock(path string) (*os.File, error) { return os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) }
