package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/postgres"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/settings"
)

type migrateCommand struct {
	DatabaseURL string `placeholder:"URL" help:"With the role that owns the schema. Else database_url; others on this machine can see a password here: RENEWD_DATABASE_URL or PGPASSWORD keep it out of sight."`
	Output      string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// migrated is the result of migrate, as -o json prints it.
type migrated struct {
	From    int64    `json:"from"` // the schema's version before; 0: no schema
	Version int64    `json:"version"`
	Applied []string `json:"applied"`
}

// Run brings the schema up to date.
func (m migrateCommand) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	database, err := m.database(conf)
	if err != nil {
		return settings.Mistake(err)
	}
	did, err := postgres.Migrate(ctx, database)
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "42501" {
		const hint = "connect with the role that owns the schema: " +
			"deploy/postgres/roles.sql makes one"
		return fmt.Errorf("%w: %s", err, hint)
	}
	if err != nil {
		return daemon.SchemaHint(err)
	}
	if m.Output == "json" {
		applied := append([]string{}, did.Applied...)
		return json.NewEncoder(a.stdout).Encode(migrated{did.From, did.To, applied})
	}
	for _, name := range did.Applied {
		fmt.Fprintln(a.stdout, "applied", name)
	}
	what := "is now"
	if len(did.Applied) == 0 {
		what = "was already"
	}
	host := settings.DatabaseHost(database)
	_, err = fmt.Fprintf(a.stdout, "the schema renewd at %s %s at version %d\n", host, what, did.To)
	return err
}

// database is the address to use, held to the same rules from either place.
func (m migrateCommand) database(conf *settings.Settings) (secret.Value, error) {
	address := conf.DatabaseURL
	if m.DatabaseURL != "" {
		address = secret.New(m.DatabaseURL)
		if err := settings.CheckDatabaseURL(m.DatabaseURL); err != nil {
			return address, fmt.Errorf("--database-url: %w", err)
		}
		if host := settings.DatabaseInClear(m.DatabaseURL); host != "" && !conf.AllowPlaintext {
			return address, fmt.Errorf("--database-url: the password may cross the network to %s "+
				"in clear text: add sslmode=verify-full%s", host, settings.PlaintextHint)
		}
	}
	if address.IsZero() {
		return address, errors.New("no PostgreSQL is set: set RENEWD_DATABASE_URL or " +
			"--database-url; grants in NATS KV need no migration")
	}
	return address, nil
}
