package daemon

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/health"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/natskv"
	"github.com/renewd/renewd/internal/postgres"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/topology"
)

// noKeys opens and seals nothing, for commands that can do without.
type noKeys struct{}

var ErrNoKeys = errors.New("there is no keyring")

func (noKeys) Seal([]byte, []byte) ([]byte, error) { return nil, ErrNoKeys }

func (noKeys) Open([]byte, []byte) ([]byte, error) { return nil, ErrNoKeys }

// OpenStore opens the store of the settings.
func (p *Resources) OpenStore(ctx context.Context) error {
	var cipher grant.Cipher = noKeys{}
	if p.Keys != nil {
		cipher = p.Keys
	}
	if p.Conf.DatabaseURL.IsZero() {
		s, err := natskv.Open(ctx, p.JS, natskv.Config{
			Bucket:       p.Conf.Subjects().Name(topology.BucketGrants),
			Cipher:       cipher,
			Now:          p.Engine.Now,
			SealProfiles: p.Conf.SealProfiles,
			RequireBound: p.Conf.RequireBound,
		})
		if err != nil {
			return err
		}
		p.Store = closingStore{Store: s, close: func() {}}
		return nil
	}
	s, err := postgres.Open(ctx, postgres.Config{
		URL: p.Conf.DatabaseURL, Cipher: cipher, Tracers: p.tel.tracers, MaxConns: databaseConns,
		Migrated: !p.Conf.DatabaseMigrate, SealProfiles: p.Conf.SealProfiles,
		RequireBound: p.Conf.RequireBound,
	})
	if err != nil {
		return SchemaHint(err)
	}
	p.Store = closingStore{Store: s, close: s.Close}
	return nil
}

// SchemaHint adds the next step to an error about the schema's version, for which waiting is in
// vain.
func SchemaHint(err error) error {
	switch {
	case errors.Is(err, postgres.ErrOlder):
		return settings.Mistake(fmt.Errorf("%w: run `renewd migrate` with the role that owns the "+
			"schema; renewd serve does the same at its start where database_migrate is true", err))

	case errors.Is(err, postgres.ErrNewer):
		return settings.Mistake(fmt.Errorf("%w: run the renewd that migrated it, or a later one",
			err))
	}
	return err
}

// databaseConns is enough for the batches under way at a time; more would only wait for one
// another.
const databaseConns = 16

// Client makes the client of one provider.
func (p *Resources) Client(s settings.Provider) (*idp.Provider, error) {
	c := s.ClientConfig()
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, settings.Mistake(fmt.Errorf("ca_file: %w", err))
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, settings.Mistake(fmt.Errorf(
				"ca_file: %s holds no certificate in PEM form", s.CAFile))
		}
	}
	record := idp.Telemetry{Log: p.log} // the callers measure the client's calls
	if p.tel.tracers != nil {
		record.Tracers, record.Meters = p.tel.tracers, p.tel.meters
	}
	client, err := idp.New(c, record)
	if err == nil && p.Engine != nil {
		client.Remember(p.Pins(s))
	}
	return client, err
}

// Pins are the hosts that a provider's discovery document may name.
func (p *Resources) Pins(s settings.Provider) health.Pins {
	open := func(ctx context.Context) (jetstream.KeyValue, error) {
		return p.Engine.Bucket(ctx, topology.BucketProviders)
	}
	return health.Pins{Provider: s.ID, Issuer: s.ClientConfig().Issuer(), Open: open}
}
