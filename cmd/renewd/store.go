package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/natskv"
	"github.com/renewd/renewd/internal/postgres"
	"github.com/renewd/renewd/internal/stream"
)

// noKeys opens and seals nothing, for commands that can do without.
type noKeys struct{}

var errNoKeys = errors.New("there is no keyring")

func (noKeys) Seal([]byte, []byte) ([]byte, error) { return nil, errNoKeys }
func (noKeys) Open([]byte, []byte) ([]byte, error) { return nil, errNoKeys }

// openStore opens the store of the settings.
func (p *plant) openStore(ctx context.Context) error {
	var cipher grant.Cipher = noKeys{}
	if p.keys != nil {
		cipher = p.keys
	}
	if p.conf.DatabaseURL.IsZero() {
		s, err := natskv.Open(ctx, p.js, natskv.Config{
			Bucket: p.conf.subjects().Name(stream.BucketGrants), Cipher: cipher, Now: p.engine.Now,
			SealProfiles: p.conf.SealProfiles,
		})
		if err != nil {
			return err
		}
		p.store = store{Store: s, close: func() {}}
		return nil
	}
	s, err := postgres.Open(ctx, postgres.Config{
		URL: p.conf.DatabaseURL, Cipher: cipher, Tracers: p.tel.tracers, MaxConns: databaseConns,
		Migrated: !p.conf.DatabaseMigrate, SealProfiles: p.conf.SealProfiles,
	})
	if err != nil {
		return schemaHint(err)
	}
	p.store = store{Store: s, close: s.Close}
	return nil
}

// schemaHint adds the next step to an error about the schema's version, for which waiting is in
// vain.
func schemaHint(err error) error {
	switch {
	case errors.Is(err, postgres.ErrOlder):
		return usageError{fmt.Errorf("%w: run `renewd migrate` with the role that owns the schema; "+
			"renewd serve does the same at its start where database_migrate is true", err)}
	case errors.Is(err, postgres.ErrNewer):
		return usageError{fmt.Errorf("%w: run the renewd that migrated it, or a later one", err)}
	}
	return err
}

// databaseConns is enough for the batches that are under way at a time; more would only wait for
// one another.
const databaseConns = 16

// policy is when and how p's grants are renewed, with what is known of its kind.
func (p providerSettings) policy() grant.Policy {
	policy := p.Policy.policy()
	policy.Volatile = slices.Concat(idp.Presets()[p.Preset].Volatile, p.Volatile)
	return policy
}

// client is p as package idp takes it, but for the certificates.
func (p providerSettings) client() idp.Config {
	var rules []idp.Rule
	for _, r := range p.Rules {
		rules = append(rules, r.rule())
	}
	return idp.Config{
		ID: p.ID, Preset: p.Preset, BaseURL: p.AuthURL, TokenURL: p.TokenURL, UserInfoURL: p.UserinfoURL, RevokeURL: p.RevokeURL, ClientID: p.ClientID,
		ClientSecret: p.ClientSecret, ClientAuth: idp.ClientAuth(p.ClientAuth), Timeout: p.Timeout, AllowHTTPLoopback: p.AllowHTTP, MaxConns: p.Concurrency,
		NextSecret: p.ClientSecretNext, ClientKey: p.ClientKey, ClientKeyID: p.ClientKeyID, Scope: p.Scope, Subject: p.Subject, Params: p.Params, Headers: p.Headers, ProxyURL: p.ProxyURL, Rules: rules,
		Profile: p.Profile, NoUserInfo: p.Userinfo == "none",
	}
}

// client makes the client of one provider.
func (p *plant) client(s providerSettings) (*idp.Provider, error) {
	c := s.client()
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, usageError{fmt.Errorf("ca_file: %w", err)}
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usageError{fmt.Errorf("ca_file: %s holds no certificate in PEM form", s.CAFile)}
		}
	}
	if p.tel.tracers == nil {
		return idp.New(c, idp.Telemetry{}) // its calls are measured by whoever makes them
	}
	return idp.New(c, idp.Telemetry{Tracers: p.tel.tracers, Meters: p.tel.meters})
}
