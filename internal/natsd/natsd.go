// Package natsd owns the embedded NATS server: JetStream in a folder, in this process, and on a
// port only when told.
//
// The package makes no stream, installs no signal handler and never ends the process. An error the
// server calls fatal is Start's error. A Server is safe for concurrent use. A caller that starts a
// Server must Run it or shut it down. Both wait until everything is on disk and every goroutine of
// the server has ended.
package natsd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/internal/secret"
)

// Config is how the embedded server runs. The zero value of a field stands for its default.
type Config struct {
	// StoreDir holds all the server's files. Start creates and locks the folder: one server at a
	// time. Required.
	StoreDir string
	// Listen is the host:port for other processes. Port 0 takes a free port. Empty: this process
	// only. Beyond loopback, Listen needs Auth.
	Listen string
	// TLS is the listener's certificate. Default none: tokens and passwords of clients cross the
	// network in clear text.
	TLS *tls.Config
	// Auth is the proof clients must show. The zero value lets in every client that can reach
	// Listen.
	Auth Auth
	// SyncAlways flushes every write to the disk before it is acknowledged: needed where tokens
	// live in NATS KV.
	SyncAlways bool
	// SyncInterval is the time of writes a power cut may take, without SyncAlways. Default 1 s (the
	// server's own is 2 min).
	SyncInterval time.Duration
	// MaxStore and MaxMemory bound JetStream, in bytes. Default: the room the server finds free. A
	// full store wedges timers.
	MaxStore, MaxMemory int64
	// Key encrypts the store's files, by AES. Starting with another key than the files' key makes
	// the streams unreadable. See topology.CheckFolder.
	Key secret.Value
	// ReadyTimeout bounds the start, which reads all timers back: 10 million take half a minute.
	// Default 10 min.
	ReadyTimeout time.Duration
	// Logger gets the server's log. Default none.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.SyncInterval == 0 {
		c.SyncInterval = time.Second
	}
	if c.ReadyTimeout == 0 {
		c.ReadyTimeout = 10 * time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Server is a running NATS server.
type Server struct {
	nats     *server.Server
	self     []nats.Option // the proof this process shows when it connects
	lock     *os.File
	sealed   string // the store's folder, if its files are encrypted
	started  sync.WaitGroup
	shutdown sync.Once
}

// Start starts a server and waits until it serves. When ctx ends first, or the server cannot start,
// nothing is left behind.
func Start(ctx context.Context, c Config) (*Server, error) {
	c = c.withDefaults()
	options, self, err := c.options()
	if err != nil {
		return nil, err
	}
	return c.start(ctx, options, self)
}

// start starts a server with these options. self is the proof this process shows when it connects.
func (c Config) start(
	ctx context.Context, options *server.Options, self []nats.Option,
) (*Server, error) {
	if err := os.MkdirAll(c.StoreDir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded NATS: %w", err)
	}
	held, err := lock(filepath.Join(c.StoreDir, lockFile))
	if err != nil {
		return nil, fmt.Errorf("embedded NATS: %s is in use by another renewd: stop that one, or "+
			"set RENEWD_DATA_DIR to another folder: %w", c.StoreDir, err)
	}
	if err := settle(c.StoreDir); err != nil {
		_ = held.Close()
		return nil, fmt.Errorf("embedded NATS: %w", err)
	}
	ns, err := server.NewServer(options)
	if err != nil {
		_ = held.Close()
		return nil, fmt.Errorf("embedded NATS: %w", err)
	}
	fatal := make(chan string, 1)
	ns.SetLoggerV2(logger{c.Logger, fatal}, false, false, false)
	s := &Server{nats: ns, self: self, lock: held}
	if !c.Key.IsZero() {
		s.sealed = c.StoreDir
	}
	s.started.Go(ns.Start)
	if err := s.ready(ctx, c, fatal); err != nil {
		s.Shutdown()
		return nil, fmt.Errorf("embedded NATS: %w", err)
	}
	c.Logger.InfoContext(ctx, "embedded NATS server is ready", "store", c.StoreDir,
		"listen", c.Listen)
	return s, nil
}

// lockFile is held by the process that may change the store.
const lockFile = "renewd.lock"

// ErrInUse: a server runs on the store folder.
var ErrInUse = errors.New("a renewd runs on it")

// Hold keeps servers from a store folder until release is called, so that the folder can be copied.
// A copy cannot rely on a running server's order of writes to the disk. Hold finishes an Encrypt
// that was cut short. Hold returns ErrInUse while a server runs, and fs.ErrNotExist where there is
// no store. Where the system has no flock, Hold cannot detect a running server.
func Hold(storeDir string) (release func() error, err error) {
	if _, err := os.Stat(storeDir); err != nil {
		return nil, err
	}
	held, err := lock(filepath.Join(storeDir, lockFile))
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", storeDir, ErrInUse, err)
	}
	if err := settle(storeDir); err != nil {
		return nil, errors.Join(err, held.Close())
	}
	return held.Close, nil
}

// RemoveClear removes the file a server writes in clear even if it encrypts its files: the index of
// a stream's schedules, which has the subjects of timers and so ids of users (nats-server 2.15). No
// server may run on the folder. The next server makes the index again from the messages.
func RemoveClear(storeDir string) error {
	indexes, err := fs.Glob(os.DirFS(storeDir), "jetstream/*/streams/*/msgs/sched.db")
	for _, path := range indexes {
		err = errors.Join(err, os.Remove(filepath.Join(storeDir, path)))
	}
	return err
}

func (s *Server) ready(ctx context.Context, c Config, fatal <-chan string) error {
	deadline := time.Now().Add(c.ReadyTimeout)
	for ready := false; !ready; ready = s.nats.ReadyForConnections(100 * time.Millisecond) {
		select {
		case text := <-fatal:
			return errors.New(text)
		case <-ctx.Done():
			return context.Cause(ctx)
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not ready after %v: it reads its store back; give it longer, or "+
				"look at the folder %s", c.ReadyTimeout, c.StoreDir)
		}
	}
	select {
	case text := <-fatal:
		return errors.New(text)
	default:
	}
	if !s.nats.JetStreamEnabled() {
		return fmt.Errorf("JetStream did not start in %s", c.StoreDir)
	}
	return nil
}

// Connect opens a connection inside this process, no port involved. A message that cannot be sent
// now fails, and is not sent later.
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) {
	all := append([]nats.Option{nats.InProcessServer(s.nats), nats.ReconnectBufSize(-1)}, s.self...)
	nc, err := nats.Connect("", append(all, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to the embedded NATS: %w", err)
	}
	return nc, nil
}

// ClientURL is the address other processes connect to; empty if the server does not listen.
func (s *Server) ClientURL() string {
	addr := s.nats.Addr()
	if addr == nil {
		return ""
	}
	return "nats://" + addr.String()
}

// Run waits for the end of ctx and shuts the server down. An error means: the server ended by
// itself.
func (s *Server) Run(ctx context.Context) error {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.nats.WaitForShutdown()
	}()
	select {
	case <-ended:
		s.Shutdown()
		if ctx.Err() != nil {
			return nil
		}
		return errors.New("embedded NATS: the server ended by itself: its log says why")
	case <-ctx.Done():
		s.Shutdown()
		<-ended
		return nil
	}
}

// Shutdown ends the server and waits for its end. More than one call does no harm.
func (s *Server) Shutdown() {
	s.shutdown.Do(func() {
		s.started.Wait() // the server's Shutdown races with its own Start (nats-server 2.15)
		s.nats.Shutdown()
		s.nats.WaitForShutdown()
		if s.sealed != "" {
			_ = RemoveClear(s.sealed) // a backup tries again
		}
		_ = s.lock.Close()
	})
}

func (c Config) options() (*server.Options, []nats.Option, error) {
	if c.StoreDir == "" {
		return nil, nil, errors.New("embedded NATS: no store folder: set RENEWD_DATA_DIR")
	}
	o := &server.Options{
		ServerName:             "renewd",
		JetStream:              true,
		StoreDir:               c.StoreDir,
		DontListen:             c.Listen == "",
		NoSigs:                 true,
		DisableJetStreamBanner: true,
		SyncAlways:             c.SyncAlways,
		SyncInterval:           c.SyncInterval,
		JetStreamMaxStore:      c.MaxStore,
		JetStreamMaxMemory:     c.MaxMemory,
		JetStreamKey:           c.Key.Reveal(),
		JetStreamCipher:        server.AES, // which most processors have instructions for
	}
	if c.Listen != "" {
		if err := c.listen(o); err != nil {
			return nil, nil, err
		}
	}
	self, err := c.Auth.apply(o)
	if err != nil {
		return nil, nil, fmt.Errorf("embedded NATS: %w", err)
	}
	if c.Auth.Accounts != "" {
		if err := checkPasswords(o.Users, c.Listen != "" && !loopback(o.Host)); err != nil {
			return nil, nil, fmt.Errorf("embedded NATS: auth: accounts: %w", err)
		}
	}
	return o, self, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// tlsTimeout bounds a client's handshake.
const tlsTimeout = 2 * time.Second

func (c Config) listen(o *server.Options) error {
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return fmt.Errorf("embedded NATS: RENEWD_NATS_LISTEN %q: want host:port, 127.0.0.1:4222 "+
			"for instance: %w", c.Listen, err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return fmt.Errorf("embedded NATS: RENEWD_NATS_LISTEN %q: want a port from 0 to 65535",
			c.Listen)
	}
	if !loopback(host) && c.Auth.isZero() {
		return fmt.Errorf("embedded NATS: RENEWD_NATS_LISTEN %q reaches beyond this machine, so "+
			"clients must authenticate: set accounts, a token, a user and password, or nkeys, or "+
			"listen on 127.0.0.1", c.Listen)
	}
	o.Host, o.Port = host, int(number)
	if c.TLS != nil {
		o.TLSConfig, o.TLS, o.TLSTimeout = c.TLS, true, tlsTimeout.Seconds()
	}
	if number == 0 {
		o.Port = server.RANDOM_PORT
	}
	return nil
}

// Running reports whether the server serves: false once it was shut down, or ended by itself.
func (s *Server) Running() bool { return s.nats.Running() }
