//go:build unix

package main

import (
	"syscall"
	"testing"
)

func TestNoCoreDumps(t *testing.T) {
	if err := noCoreDumps(); err != nil {
		t.Fatal(err)
	}
	var got syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_CORE, &got)
	if err != nil || got.Cur != 0 || got.Max != 0 {
		t.Errorf("got %+v, %v", got, err)
	}
}
