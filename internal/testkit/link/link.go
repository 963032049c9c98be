// Package link is a way to a server that can be cut, hung or made to lose an answer, for tests and
// for chaos. A Link stands between any TCP client and its server, and knows no protocol.
//
// The package never ships. A Link is safe for concurrent use. Its address never changes, whatever
// happens to the traffic.
package link

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// State is the treatment of a link's traffic.
type State int

// The states of a link.
const (
	Passing  State = iota
	Refusing       // connections are cut, and new connections refused
	Hanging        // nothing gets through, and neither end is told
)

// Link passes connections on to a server.
type Link struct {
	addr   string
	target string

	mu       sync.Mutex
	changed  *sync.Cond
	state    State
	closed   bool
	lose     bool // the server's next answer is lost, with its connection
	lost     int
	listener net.Listener
	conns    map[net.Conn]bool
	wg       sync.WaitGroup
}

// New returns a link to target, host:port, on a loopback address. The caller closes it.
func New(target string) (*Link, error) {
	l := &Link{target: target, addr: "127.0.0.1:0", conns: map[net.Conn]bool{}}
	l.changed = sync.NewCond(&l.mu)
	return l, l.open()
}

// For is New for a test, at whose end the link is closed.
func For(t testing.TB, target string) *Link {
	t.Helper()
	l, err := New(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// Addr is the address to connect to, host:port.
func (l *Link) Addr() string { return l.addr }

// open starts listening. The caller holds mu, or has not shared l yet.
func (l *Link) open() error {
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

// Set changes the treatment of the traffic from now on. Its error is about listening again, after
// Refusing.
func (l *Link) Set(s State) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.state == s {
		return nil
	}
	was := l.state
	l.state = s
	l.changed.Broadcast()
	switch {
	case s == Refusing:
		err := l.listener.Close()
		l.cut()
		return err
	case was == Refusing:
		return l.open()
	}
	return nil
}

// HangUp cuts all connections. New ones may be made, and pass.
func (l *Link) HangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut()
	if l.state == Hanging {
		l.state = Passing
		l.changed.Broadcast()
	}
}

// LoseNextReply cuts the next connection on which the server answers, and swallows the answer.
func (l *Link) LoseNextReply() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lose = true
}

// Lost is how many answers were lost.
func (l *Link) Lost() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// Close cuts everything and waits until no goroutine of the link is left.
func (l *Link) Close() {
	l.mu.Lock()
	l.closed = true
	l.changed.Broadcast()
	_ = l.listener.Close() // the listener is closed already where the link refuses
	l.cut()
	l.mu.Unlock()
	l.wg.Wait()
}

// cut closes all connections. The caller holds mu.
func (l *Link) cut() {
	for conn := range l.conns {
		_ = conn.Close() // cutting is the purpose, so errors do not matter
	}
}

// track remembers a connection so that it can be cut. It returns false if it is too late.
func (l *Link) track(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.state == Refusing {
		_ = conn.Close()
		return false
	}
	l.conns[conn] = true
	return true
}

func (l *Link) forget(conn net.Conn) {
	l.mu.Lock()
	delete(l.conns, conn)
	l.mu.Unlock()
	_ = conn.Close() // the connection may be cut already
}

// passable waits while the link hangs.
func (l *Link) passable() {
	l.mu.Lock()
	for l.state == Hanging && !l.closed {
		l.changed.Wait()
	}
	l.mu.Unlock()
}

// loses reports whether an answer is to be lost, and notes the loss.
func (l *Link) loses() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.lose {
		return false
	}
	l.lose = false
	l.lost++
	return true
}

func (l *Link) forward(client net.Conn) {
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
	pump := func(to io.Writer, from net.Conn) {
		_, _ = io.Copy(to, from) // either end may go at any time
		_ = client.Close()
		_ = server.Close()
	}
	both.Go(func() { pump(gate{link: l, to: server}, client) })
	both.Go(func() { pump(gate{link: l, to: client, answers: true}, server) })
	both.Wait()
}

// gate writes once the link passes.
type gate struct {
	link    *Link
	to      io.Writer
	answers bool // the bytes written come from the server
}

func (g gate) Write(b []byte) (int, error) {
	g.link.passable()
	if g.answers && g.link.loses() {
		return 0, net.ErrClosed // which ends both directions
	}
	return g.to.Write(b)
}
