package main

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// state is what a link does with its traffic.
type state int

const (
	passing  state = iota
	refusing       // connections are cut, new ones refused
	hanging        // nothing gets through, and nobody is told
)

// link is a way to a server that can be cut. It has an address of its own, for ever the same.
type link struct {
	addr   string
	target string

	mu       sync.Mutex
	changed  *sync.Cond
	state    state
	closed   bool
	listener net.Listener
	conns    map[net.Conn]bool
	wg       sync.WaitGroup
}

func newLink(target string) (*link, error) {
	l := &link{target: target, addr: "127.0.0.1:0", conns: map[net.Conn]bool{}}
	l.changed = sync.NewCond(&l.mu)
	return l, l.open()
}

// open starts listening. The caller holds mu, or nobody else knows l yet.
func (l *link) open() error {
	listener, err := net.Listen("tcp", l.addr)
	if err != nil {
		return err
	}
	l.listener, l.addr = listener, listener.Addr().String()
	l.wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			l.wg.Go(func() { l.forward(conn) })
		}
	})
	return nil
}

// set changes what happens to the traffic from now on.
func (l *link) set(s state) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.state == s {
		return nil
	}
	was := l.state
	l.state = s
	l.changed.Broadcast()
	switch {
	case s == refusing:
		return errors.Join(l.cut())
	case was == refusing:
		return l.open()
	}
	return nil
}

// cut closes everything. The caller holds mu.
func (l *link) cut() error {
	err := l.listener.Close()
	for conn := range l.conns {
		_ = conn.Close() // that is the point
	}
	return err
}

func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	l.changed.Broadcast()
	_ = l.cut() // nobody is left who would care
	l.mu.Unlock()
	l.wg.Wait()
}

// track remembers a connection so that it can be cut; false if it is too late for it.
func (l *link) track(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.state == refusing {
		_ = conn.Close()
		return false
	}
	l.conns[conn] = true
	return true
}

func (l *link) forget(conn net.Conn) {
	l.mu.Lock()
	delete(l.conns, conn)
	l.mu.Unlock()
	_ = conn.Close() // it may be cut already
}

// passable waits while the link hangs.
func (l *link) passable() {
	l.mu.Lock()
	for l.state == hanging && !l.closed {
		l.changed.Wait()
	}
	l.mu.Unlock()
}

func (l *link) forward(client net.Conn) {
	if !l.track(client) {
		return
	}
	defer l.forget(client)
	l.passable()
	server, err := net.DialTimeout("tcp", l.target, 2*time.Second)
	if err != nil || !l.track(server) {
		return
	}
	defer l.forget(server)
	var both sync.WaitGroup
	pump := func(to, from net.Conn) {
		_, _ = io.Copy(gate{l, to}, from) // either end may go at any time
		_ = to.Close()
		_ = from.Close()
	}
	both.Go(func() { pump(server, client) })
	both.Go(func() { pump(client, server) })
	both.Wait()
}

// gate writes once the link passes.
type gate struct {
	link *link
	to   io.Writer
}

func (g gate) Write(b []byte) (int, error) {
	g.link.passable()
	return g.to.Write(b)
}
