package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/renewd/renewd/internal/testkit/link"
	"github.com/renewd/renewd/internal/testkit/proc"
)

// nodeEnv makes this program a NATS server. The value is the server's nodeConfig.
const nodeEnv = "RENEWD_CHAOS_NODE"

// nodeConfig configures a NATS server of the cluster.
type nodeConfig struct {
	Name    string
	Port    int
	Cluster int      // port at the end of the other nodes' links; 0: no cluster
	Routes  []string // addresses of the links to the other nodes
	Dir     string
	Sync    bool // each write reaches the disk before the acknowledgement
}

// runNode runs a NATS server until the process is killed. In every other process runNode returns at
// once.
func runNode() {
	text := os.Getenv(nodeEnv)
	if text == "" {
		return
	}
	if err := serveNode(text); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serveNode(text string) error {
	var c nodeConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return fmt.Errorf("%s: %w", nodeEnv, err)
	}
	o := &server.Options{
		ServerName: c.Name,
		Host:       "127.0.0.1",
		Port:       c.Port,
		NoSigs:     true,
		JetStream:  true,
		StoreDir:   c.Dir,
		SyncAlways: c.Sync,
	}
	if c.Cluster != 0 {
		// Nodes may reach one another only over the links, so no other address is advertised.
		o.Cluster = server.ClusterOpts{
			Name:        "chaos",
			Host:        "127.0.0.1",
			Port:        c.Cluster,
			NoAdvertise: true,
			Advertise:   "127.0.0.1:1",
			PoolSize:    -1,
		}
		for _, r := range c.Routes {
			o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: r})
		}
	}
	s, err := server.NewServer(o)
	if err != nil {
		return err
	}
	s.ConfigureLogger()
	s.Start()
	if !s.ReadyForConnections(time.Minute) {
		return fmt.Errorf("%s: %w", c.Name, errNotReady)
	}
	s.WaitForShutdown()
	return nil
}

// node is a NATS server of the world, and the links between the server and the other nodes.
type node struct {
	*process
	config nodeConfig
	links  []*link.Link // from and to the server
}

func (n *node) url() string { return fmt.Sprintf("nats://127.0.0.1:%d", n.config.Port) }

// newNodes prepares a cluster of this many servers. If the cluster also holds the grants, sync is
// true: an acknowledged write is on the disk, as with renewd's own server.
func newNodes(count int, dir string, sync bool) ([]*node, error) {
	ports, err := proc.FreePorts(2 * count)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var nodes []*node
	for i := range count {
		n := &node{
			config: nodeConfig{
				Name: fmt.Sprintf("nats-%d", i),
				Port: ports[i],
				Sync: sync,
				Dir:  filepath.Join(dir, fmt.Sprintf("nats-%d", i)),
			},
		}
		if count > 1 {
			n.config.Cluster = ports[count+i]
		}
		n.process = &process{
			name: n.config.Name,
			log:  filepath.Join(dir, n.config.Name+".log"),
			make: func() *exec.Cmd {
				text, err := json.Marshal(n.config)
				if err != nil {
					panic(err) // a struct of strings and numbers
				}
				cmd := exec.Command(self)
				cmd.Env = append(os.Environ(), nodeEnv+"="+string(text))
				return cmd
			},
		}
		nodes = append(nodes, n)
	}
	for i, from := range nodes {
		for j, to := range nodes {
			if i == j {
				continue
			}
			l, err := link.New(fmt.Sprintf("127.0.0.1:%d", to.config.Cluster))
			if err != nil {
				return nil, err
			}
			from.config.Routes = append(from.config.Routes, l.Addr())
			from.links, to.links = append(from.links, l), append(to.links, l)
		}
	}
	return nodes, nil
}
