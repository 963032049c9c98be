// Package natstest starts NATS servers for tests that need more than the embedded one.
//
// It never ships: only tests import it. Each call starts servers of its own, in folders and on
// loopback ports of their own, which end with the test.
package natstest

import (
	"fmt"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Cluster starts three servers with JetStream that know one another, and waits until they have a
// leader. They listen, because a server that does not never starts its routes.
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
			ServerName: fmt.Sprint("n", i), Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(),
			Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: port}, Routes: routes,
		})
		if err != nil {
			t.Fatal(err)
		}
		var starting sync.WaitGroup
		starting.Go(s.Start)
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown(); starting.Wait() })
		servers = append(servers, s)
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		for _, s := range servers {
			if s.JetStreamIsLeader() && len(s.JetStreamClusterPeers()) == len(servers) {
				return servers
			}
		}
	}
	t.Fatal("the cluster has no leader")
	return nil
}
