package daemon

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"
)

// certificate is a pair of files that may change while renewd runs. Safe for concurrent use.
type certificate struct {
	cert, key string

	mu     sync.Mutex
	loaded *tls.Certificate
	at     [2]time.Time // the files' times when loaded
}

// loadCertificate reads the pair for the first time.
func loadCertificate(cert, key string) (*certificate, error) {
	c := &certificate{cert: cert, key: key}
	return c, c.load()
}

func (c *certificate) load() error {
	var at [2]time.Time
	for i, path := range []string{c.cert, c.key} {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		at[i] = info.ModTime()
	}
	if c.loaded != nil && at == c.at {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return fmt.Errorf("%s: no certificate with the key of %s: %w", c.cert, c.key, err)
	}
	c.loaded, c.at = &pair, at
	return nil
}

// get is the certificate as the files have it now. While the files cannot be read, or one was
// replaced and the other not yet, the earlier certificate serves on.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.load()
	return c.loaded, nil
}

// server is the TLS configuration of a server with the certificate.
func (c *certificate) server() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}
}
