package realidp

import (
	"context"
	"net"
	"net/http"
	"testing"

	"github.com/renewd/renewd/publishers"
)

// provider is a running identity provider with one client. Safe for concurrent use.
type provider interface {
	http.Handler
	// signIn makes an account, if there is none of this name, and signs it in.
	signIn(ctx context.Context, name string) (user string, tokens publishers.Tokens, err error)
	// revoke ends the account's sessions, as an administrator would.
	revoke(ctx context.Context, name string) error
	// remove deletes the account.
	remove(ctx context.Context, name string) error
	// restart puts a new server in the place of the running one, on the same data.
	restart(ctx context.Context) error
}

// kind is what there is to know about one of the providers.
type kind struct {
	name, preset string
	module       string            // which go.mod pins
	endpoints    map[string]string // by path: token, userinfo
	start        func(t *testing.T, issuer string) provider
	title        string             // of what is recorded from it; %s: the version
	verdicts     map[string]verdict // what renewd must make of its answers, by exchange
}

// The client of every provider. It must show its secret.
const (
	clientID     = "renewd"
	clientSecret = "a-made-up-secret"
	lifetime     = 10 // of access tokens, in seconds
)

// front is a provider behind its recorder, on a port that it keeps when it is down for a while.
type front struct {
	kind
	provider
	rec    *recorder
	addr   string
	server *http.Server
}

func startFront(t *testing.T, k kind) *front {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	f := &front{kind: k, addr: l.Addr().String()}
	f.provider = k.start(t, f.issuer())
	f.rec = newRecorder(f.provider, k.endpoints)
	f.serve(l)
	t.Cleanup(f.shut)
	return f
}

func (f *front) issuer() string { return "http://" + f.addr }

func (f *front) serve(l net.Listener) {
	f.server = &http.Server{Handler: f.rec, ConnContext: withConn}
	go func() { _ = f.server.Serve(l) }() // it ends with shut
}

// shut closes the port and every connection.
func (f *front) shut() { _ = f.server.Close() }

// open listens again on the same port.
func (f *front) open(t *testing.T) {
	t.Helper()
	f.serve(must(net.Listen("tcp", f.addr))(t))
}
