//go:build unix

package main

import "syscall"

// noCoreDumps keeps tokens out of the core file of a crash.
func noCoreDumps() error { return syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}) }
