package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/natskv"
	"github.com/renewd/renewd/internal/postgres"
	"github.com/renewd/renewd/internal/stream"
)

// openStore opens the store of the settings.
func (p *plant) openStore(ctx context.Context) error {
	if p.conf.DatabaseURL.IsZero() {
		s, err := natskv.Open(ctx, p.js, natskv.Config{Bucket: p.conf.subjects().Name(stream.BucketGrants), Cipher: p.keys, Now: p.engine.Now})
		if err != nil {
			return err
		}
		p.store = store{Store: s, close: func() {}}
		return nil
	}
	s, err := postgres.Open(ctx, postgres.Config{URL: p.conf.DatabaseURL, Cipher: p.keys, Tracers: p.tel.tracers, MaxConns: databaseConns})
	if err != nil {
		return err
	}
	p.store = store{Store: s, close: s.Close}
	return nil
}

// databaseConns is enough for the batches that are under way at a time; more would only wait for one another.
const databaseConns = 16

// client makes the client of one provider.
func (p *plant) client(_ context.Context, s providerSettings) (*idp.Provider, error) {
	c := idp.Config{
		ID: s.ID, Preset: s.Preset, BaseURL: s.AuthURL, TokenURL: s.TokenURL, UserInfoURL: s.UserinfoURL, ClientID: s.ClientID,
		ClientSecret: s.ClientSecret, ClientAuth: idp.ClientAuth(s.ClientAuth), Timeout: s.Timeout, AllowHTTPLoopback: s.AllowHTTP, MaxConns: s.Concurrency,
	}
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, usageError{fmt.Errorf("ca_file: %w", err)}
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usageError{fmt.Errorf("ca_file: %s holds no certificate in PEM form", s.CAFile)}
		}
	}
	return idp.New(c, idp.Telemetry{Tracers: p.tel.tracers, Meters: p.tel.meters})
}
