package storetest

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/renewd/renewd/internal/grant"
)

// Proxy stands between an adapter and its server, and loses a reply when told to: the request
// arrives, the answer does not, and the connection is cut.
type Proxy struct {
	listener net.Listener
	target   string
	lose     atomic.Bool
	lost     atomic.Int32
}

// NewProxy forwards to target until the test ends.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{listener: l, target: target}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.forward(client) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return p
}

// Addr is where to connect.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// LoseNextReply cuts the next connection on which the server answers, and swallows the answer.
func (p *Proxy) LoseNextReply() { p.lose.Store(true) }

func (p *Proxy) forward(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer server.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(server, client)
		server.Close()
	})
	buf := make([]byte, 32<<10)
	for {
		n, err := server.Read(buf)
		if n > 0 && p.lose.CompareAndSwap(true, false) {
			p.lost.Add(1)
			break
		}
		if n > 0 {
			if _, werr := client.Write(buf[:n]); werr != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	client.Close()
	server.Close()
	wg.Wait()
}

// LostReply holds a store, which reaches its server through p, against the contract: a save whose
// reply was lost is no conflict, and Load tells that it was stored by the mark of who saved it.
func LostReply(t *testing.T, s grant.Store, p *Proxy) {
	t.Helper()
	g := insert(t, s, Full(jane))
	for range 2 { // so that nothing has to be prepared when it counts
		rev, err := s.Save(t.Context(), g)
		must(t, err)
		g.Revision = rev
	}
	g.SavedBy, g.Version = "mine", g.Version+1
	p.LoseNextReply()
	_, err := s.Save(t.Context(), g)
	if err == nil || errors.Is(err, grant.ErrConflict) || errors.Is(err, grant.ErrNotFound) || p.lost.Load() != 1 {
		t.Fatalf("save: %v, %d replies lost", err, p.lost.Load())
	}
	var got grant.Grant
	eventually(t, func() bool {
		got, err = s.Load(t.Context(), jane)
		return err == nil
	})
	if got.SavedBy != "mine" || got.Version != g.Version || got.Revision == g.Revision {
		t.Errorf("the save whose reply was lost is not there: saved by %q, version %d", got.SavedBy, got.Version)
	}
	_, err = s.Save(t.Context(), g)
	wantErr(t, err, grant.ErrConflict)
}
