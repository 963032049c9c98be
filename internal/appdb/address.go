package appdb

import (
	"errors"
	"net/url"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"

	"github.com/renewd/renewd/internal/secret"
)

// Parse reads the kind of database and its address. The errors show nothing of the address.
func Parse(address secret.Value) (Dialect, error) {
	text := address.Reveal()
	scheme, _, _ := strings.Cut(text, "://")
	switch scheme {
	case "postgres", "postgresql":
		config, err := pgx.ParseConfig(text)
		if err != nil {
			return nil, errors.New("is no PostgreSQL address: want " +
				"postgres://user:password@host:5432/database?sslmode=verify-full")
		}
		return postgres{config}, nil
	case "mysql", "mariadb":
		config, err := mysqlConfig(text)
		if err != nil {
			return nil, errors.New("is no MySQL address: want " +
				"mysql://user:password@host:3306/database?tls=true, with special characters of " +
				"the password percent-encoded")
		}
		return mariadb{config}, nil
	case "":
		return nil, errors.New("missing: the app's database")
	}
	return nil, errors.New("want postgres://… or mysql://…")
}

func mysqlConfig(text string) (*mysql.Config, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	c := mysql.NewConfig()
	c.User = u.User.Username()
	c.Passwd, _ = u.User.Password()
	c.Net, c.Addr, c.DBName = "tcp", u.Host, strings.TrimPrefix(u.Path, "/")
	if u.Port() == "" {
		c.Addr = u.Host + ":3306"
	}
	if socket := u.Query().Get("socket"); socket != "" {
		c.Net, c.Addr = "unix", socket
	}
	if c.TLSConfig = u.Query().Get("tls"); c.TLSConfig == "" {
		c.TLSConfig = "preferred"
	}
	if c.DBName == "" || c.Net == "tcp" && u.Hostname() == "" {
		return nil, errors.New("no host, or no database")
	}
	c.Timeout, c.ReadTimeout, c.WriteTimeout = dialLimit, Limit, Limit
	c.Collation = "utf8mb4_general_ci"
	c.Params = map[string]string{
		"time_zone": "'+00:00'", "lock_wait_timeout": "2", "innodb_lock_wait_timeout": "2",
	}
	return c, nil
}

// Host names the server of an address, and nothing else of the address.
func Host(address secret.Value) string {
	u, err := url.Parse(address.Reveal())
	if err != nil || u.Host == "" {
		return "this machine"
	}
	return u.Host
}
