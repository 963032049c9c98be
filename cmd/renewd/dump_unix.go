//go:build unix

package main

import "syscall"

// noCoreDumps keeps tokens out of the file that a crash would leave.
func noCoreDumps() error { return syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}) }
