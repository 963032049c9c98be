// Package nats starts NATS servers for tests that need more than the embedded server.
//
// The package never ships: only tests import it. Each call starts new servers, in new folders and
// on free loopback ports. The servers end with the test.
package nats

import (
	"fmt"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Cluster starts three servers with JetStream that know each other, and waits until the cluster has
// a leader that places streams on all servers. The servers listen, because a server that does not
// listen never starts its routes.
func Cluster(t testing.TB) []*server.Server {
	t.Helper()
	var routes []*url.URL
	var listeners []net.Listener
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		routes = append(routes, &url.URL{Scheme: "nats", Host: l.Addr().String()})
	}
	var servers []*server.Server
	for i, l := range listeners {
		port := l.Addr().(*net.TCPAddr).Port
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		s, err := server.NewServer(&server.Options{
			ServerName: fmt.Sprint("n", i),
			Host:       "127.0.0.1",
			Port:       server.RANDOM_PORT,
			NoSigs:     true,
			NoLog:      true,
			JetStream:  true,
			StoreDir:   t.TempDir(),
			Cluster:    server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: port},
			Routes:     routes,
		})
		if err != nil {
			t.Fatal(err)
		}
		var starting sync.WaitGroup
		starting.Go(s.Start)
		t.Cleanup(func() { starting.Wait(); s.Shutdown(); s.WaitForShutdown() })
		servers = append(servers, s)
	}
	end := time.Now().Add(time.Minute)
	for ; time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		for _, s := range servers {
			if s.JetStreamIsLeader() && len(s.JetStreamClusterPeers()) == len(servers) &&
				placed(t, s) {
				return servers
			}
		}
	}
	t.Fatal("the cluster has no leader")
	return nil
}

// placed reports whether a stream can be placed on all servers. A server unknown to the leader is
// left out, which no figure of the leader shows.
func placed(t testing.TB, s *server.Server) bool {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		return false
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	const name = "probe"
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: name, Replicas: 3, Storage: jetstream.MemoryStorage,
	}); err != nil {
		return false
	}
	return js.DeleteStream(t.Context(), name) == nil
}
