package main

import (
	"errors"
	"net"
	"syscall"
	"testing"
)

// A port may lead to several places at once. Each connection belongs to the process that holds it.
func TestConnectionsOfOnePortAreToldApart(t *testing.T) {
	listen := func() net.Listener {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	first, second := listen(), listen()
	dial := func(from net.Addr, to net.Listener) net.Conn {
		shared := net.Dialer{
			LocalAddr: from,
			Control: func(_, _ string, c syscall.RawConn) (err error) {
				return errors.Join(c.Control(func(fd uintptr) {
					err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR,
						1)
				}), err)
			},
		}
		c, err := shared.DialContext(t.Context(), "tcp4", to.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	a := dial(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, first)
	dial(a.LocalAddr(), second)
	from := a.LocalAddr().(*net.TCPAddr)
	one, other := inodeOf(from, first.Addr().(*net.TCPAddr)),
		inodeOf(from, second.Addr().(*net.TCPAddr))
	if one == "" || other == "" || one == other {
		t.Errorf("sockets %q and %q of port %d", one, other, from.Port)
	}
}
