package settings

import (
	"strings"

	"github.com/renewd/renewd/internal/source/sql"
)

// The modes of a source of kind sql.
const (
	ModeObserve = "observe"
	ModeLive    = "live"
)

// AppTable is the source of this name, of kind sql, as package sql takes it.
func (c *Settings) AppTable(name string) sql.Config {
	s := c.Sources[name]
	config := sql.Config{
		Name: name, Provider: s.Provider, URL: s.DatabaseURL, Table: s.Table, ID: s.ID,
		User: s.User, Access: s.AccessToken, Refresh: s.RefreshToken, ExpiresAt: s.ExpiresAt,
		UpdatedAt: s.UpdatedAt, SignedInAt: s.SignedInAt, Encrypted: s.Encrypted, AppKey: s.AppKey,
		Channel: s.Channel, Poll: s.Poll,
	}
	if config.Channel == "" {
		config.Channel = "renewd_" + strings.ReplaceAll(name, "-", "_")
	}
	return config
}

// AppTables are the names of the sources of kind sql, sorted.
func (c *Settings) AppTables() (names []string) {
	for _, name := range c.SourceNames() {
		if c.Sources[name].Kind == KindSQL {
			names = append(names, name)
		}
	}
	return names
}

// inClear is the host of s's database that may get a password without TLS; empty: no host.
func (s Source) inClear() string {
	return Sink{Kind: KindSQL, DatabaseURL: s.DatabaseURL}.databaseInClear()
}
