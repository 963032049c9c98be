package sql

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/renewd/renewd/internal/appdb"
	"github.com/renewd/renewd/internal/secret"
)

// Config is how users stand in an app's database.
type Config struct {
	// URL is the database: postgres:// or mysql:// (MariaDB too), user:password@host:port/database.
	// Required.
	URL secret.Value
	// Table has a row for each user. A schema may stand before it, with a dot. Required.
	Table string
	// Key is the column that tells users apart, and KeyField the column's field: "user", the
	// provider's id, by default. Required.
	Key, KeyField string
	// Version is the column for the version that renewd wrote a row with: an integer of 64 bits
	// that may be null. Required.
	Version string
	// Columns maps each column to its field. See Fields.
	Columns map[string]string
	// History is a table that gets a row for each outcome, and HistoryColumns maps the table's
	// columns to fields. Empty: no history.
	History        string
	HistoryColumns map[string]string
	// Organisations is a table that has a row for each organisation of a user, and
	// OrganisationColumns maps the table's columns to fields. The user's rows follow the profile:
	// rows of other organisations are deleted. Empty: no such table.
	Organisations       string
	OrganisationColumns map[string]string
	// WriteTokens lets access tokens be written: then every reader of the table may use the tokens.
	WriteTokens bool
	// AppKey is the APP_KEY of a Laravel app, for fields that are written encrypted.
	AppKey secret.Value
}

// Check names the first wrong field, as the settings have it.
func (c Config) Check() error {
	if _, err := appdb.Parse(c.URL); err != nil {
		return fmt.Errorf("database_url: %w", err)
	}
	for _, named := range [][2]string{{"table", c.Table}, {"key", c.Key},
		{"version_column", c.Version}} {
		if named[1] == "" {
			return fmt.Errorf("%s: missing", named[0])
		}
	}
	if f, err := parseField(c.keyField()); err != nil || f.encrypted || !f.ofUser() {
		return fmt.Errorf("key_field: %q: want user, email, username, or another field of the "+
			"profile that is one text", c.KeyField)
	}
	if len(c.Columns) == 0 {
		return errors.New("columns: missing: which fields go into which columns?")
	}
	if err := c.checkColumns("columns", c.Columns, false); err != nil {
		return err
	}
	if (c.History == "") != (len(c.HistoryColumns) == 0) {
		return errors.New("history: set both it and history_table, or neither")
	}
	if err := c.checkColumns("history", c.HistoryColumns, true); err != nil {
		return err
	}
	return c.checkMemberships()
}

func (c Config) checkColumns(setting string, columns map[string]string, history bool) error {
	for _, column := range slices.Sorted(maps.Keys(columns)) {
		name := setting + "." + column
		if !history && (column == c.Key || column == c.Version) {
			return fmt.Errorf("%s: is the key, or the version: leave it out", name)
		}
		f, err := parseField(columns[column])
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", name, err)
		case f.name == fieldAccessToken && !c.WriteTokens:
			return fmt.Errorf("%s: whoever may read the table could use the tokens: set "+
				"write_tokens to true if you mean it", name)
		case f.encrypted && c.AppKey.IsZero():
			return fmt.Errorf("%s: needs app_key", name)
		case f.row != "" && !history, f.ofEvent() && !history:
			return fmt.Errorf("%s: %s is for history alone", name, columns[column])
		case f.ofOrganisation():
			return fmt.Errorf("%s: %s is for organisations alone", name, columns[column])
		}
	}
	if !c.AppKey.IsZero() {
		if _, err := appdb.NewCrypter(c.AppKey); err != nil {
			return fmt.Errorf("app_key: %w", err)
		}
	}
	return nil
}

func (c Config) keyField() string {
	if c.KeyField == "" {
		return fieldUser
	}
	return c.KeyField
}

// userColumn is a column that holds the provider's id of the user; empty: no such column.
func (c Config) userColumn() string {
	for _, m := range mapping(c.Columns) {
		if m.field.name == fieldUser && !m.field.encrypted {
			return m.column
		}
	}
	return ""
}

// MissesErasures reports whether no erasure can find a user's row: the key column holds a field of
// the profile, which is erased first, and no column holds the provider's id of the user.
func (c Config) MissesErasures() bool {
	f, err := parseField(c.keyField())
	return err == nil && f.ofProfile() && c.userColumn() == ""
}

// Host names the database's server, and nothing else of its address.
func (c Config) Host() string { return appdb.Host(c.URL) }
