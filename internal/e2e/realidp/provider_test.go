package realidp

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"testing"

	"github.com/renewd/renewd/internal/testkit/pgtest"
	"github.com/renewd/renewd/publishers"
)

// provider is a running identity provider with one client. Safe for concurrent use.
type provider interface {
	http.Handler
	// enroll makes an account, unless there is one of this name.
	enroll(ctx context.Context, name string) error
	// signIn signs the account in; user is the subject of its tokens.
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
	policy       string            // more lines of the policy, as in the settings file
	module       string            // the module that go.mod pins
	path         string            // of the issuer
	endpoints    map[string]string // by path: token, userinfo
	start        func(t *testing.T, issuer string) provider
	auth         string                    // client_auth; empty: as renewd does by itself
	wrongWay     string                    // a way that the provider refuses; none: no secret shown
	spends       bool                      // a refused client spends the token that it shows
	title        string                    // of what is recorded from it; %s: the version
	version      func(t *testing.T) string // nil: that of module
	verdicts     map[string]verdict        // what renewd must make of its answers, by exchange
}

// The client of every provider. It must show its secret.
const (
	clientID     = "renewd"
	clientSecret = "a-made-up-secret"
	lifetime     = 10 // of access tokens, in seconds
)

// startPostgres starts a server that ends with the test.
func startPostgres(t *testing.T) *pgtest.Server {
	t.Helper()
	db, err := pgtest.Start(pgtest.Options{})
	if errors.Is(err, pgtest.ErrMissing) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Remove)
	return db
}

// front is a provider behind its recorder. It keeps its port while it is down for a while.
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

func (f *front) issuer() string { return "http://" + f.addr + f.path }

func (f *front) serve(l net.Listener) {
	f.server = &http.Server{Handler: f.rec, ConnContext: withConn}
	go func() { _ = f.server.Serve(l) }() // Serve returns after shut
}

// shut closes the port and every connection.
func (f *front) shut() { _ = f.server.Close() }

// open listens again on the same port.
func (f *front) open(t *testing.T) {
	t.Helper()
	f.serve(must(net.Listen("tcp", f.addr))(t))
}
