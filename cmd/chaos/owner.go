package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// owners knows the worker at the other end of a provider's connection, so that the audit knows
// which worker made a presentation.
type owners struct {
	workers func() []*worker

	mu     sync.Mutex
	byAddr map[string]*worker
}

// note looks up the owner while the connection is new and therefore certainly there.
func (o *owners) note(ctx context.Context, c net.Conn) context.Context {
	addr, ok := c.RemoteAddr().(*net.TCPAddr)
	own, ours := c.LocalAddr().(*net.TCPAddr)
	if !ok || !ours {
		return ctx
	}
	w := o.find(addr, own)
	o.mu.Lock()
	o.byAddr[addr.String()] = w // a reused port belongs to another worker now
	o.mu.Unlock()
	return ctx
}

// of is the worker with the connection from this address, or nil if the connection was gone before
// its owner was looked up.
func (o *owners) of(addr string) *worker {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.byAddr[addr]
}

func (o *owners) find(addr, provider *net.TCPAddr) *worker {
	inode := inodeOf(addr, provider)
	if inode == "" {
		return nil
	}
	for _, w := range o.workers() {
		if w.hasSocket(inode) {
			return w
		}
	}
	return nil
}

// inodeOf finds the socket between two IPv4 addresses in the kernel's table (proc(5),
// /proc/net/tcp). One port may have several sockets, to other places.
func inodeOf(from, to *net.TCPAddr) string {
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return ""
	}
	name := func(a *net.TCPAddr) string {
		return fmt.Sprintf("%08X:%04X", binary.NativeEndian.Uint32(a.IP.To4()), a.Port)
	}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 9 && f[1] == name(from) && f[2] == name(to) {
			return f[9]
		}
	}
	return ""
}

func (w *worker) hasSocket(inode string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", w.pid())
	open, err := os.ReadDir(dir)
	if err != nil {
		return false // the worker is dead by now
	}
	for _, fd := range open {
		if to, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil &&
			to == "socket:["+inode+"]" {
			return true
		}
	}
	return false
}
