package sql

import (
	"errors"
	"fmt"
	"time"

	"github.com/renewd/renewd/internal/appdb"
	"github.com/renewd/renewd/internal/secret"
)

// Config is how sessions stand in an app's table. All fields but the optional ones are required.
type Config struct {
	// Name is the source's, as CheckName takes it.
	Name string
	// Provider is renewd's id of the provider whose tokens the table holds.
	Provider string
	// URL is the database: postgres:// or mysql:// (MariaDB too), user:password@host:port/database.
	URL secret.Value
	// Table has a row for each user. A schema may stand before it, with a dot.
	Table string
	// ID is the column that names a row, and User the column with the provider's id of the user.
	ID, User string
	// Access and Refresh are the columns of the two tokens.
	Access, Refresh string
	// ExpiresAt is the column that says when the access token ends. Optional.
	ExpiresAt string
	// UpdatedAt is the column with the time of a row's last change, SignedInAt the column with the
	// time of the user's last sign-in. Optional.
	UpdatedAt, SignedInAt string
	// Encrypted: the tokens are as Laravel's encrypted cast writes them, by AppKey.
	Encrypted bool
	AppKey    secret.Value
	// Channel is the channel that PostgreSQL's trigger notifies with a row's id.
	Channel string
	// Poll is how often the table is looked at.
	Poll time.Duration
}

// Check names the first wrong field, as the settings have it.
func (c Config) Check() error {
	if _, err := appdb.Parse(c.URL); err != nil {
		return fmt.Errorf("database_url: %w", err)
	}
	for _, named := range [][2]string{{"table", c.Table}, {"id", c.ID}, {"user", c.User},
		{"access_token", c.Access}, {"refresh_token", c.Refresh}} {
		if named[1] == "" {
			return fmt.Errorf("%s: missing: see renewd adopt plan", named[0])
		}
	}
	if c.Encrypted && c.AppKey.IsZero() {
		return errors.New("encrypted: needs app_key")
	}
	if !c.AppKey.IsZero() {
		if _, err := appdb.NewCrypter(c.AppKey); err != nil {
			return fmt.Errorf("app_key: %w", err)
		}
	}
	return nil
}

// EventSource is the CloudEvents source of the logins.
func (c Config) EventSource() string { return "/renewd/sources/" + c.Name }
