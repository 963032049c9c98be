package appdb

import (
	db "database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

const (
	dialLimit = 10 * time.Second
	// Limit is how long a statement may take, and a little more.
	Limit = 20 * time.Second
)

// Dialect holds the differences between kinds of databases. A Dialect is safe for concurrent use.
type Dialect interface {
	opener
	Syntax
}

// opener reaches a database, and reads its errors and its catalog.
type opener interface {
	// Open returns connections to the database. Open connects to nothing yet.
	Open() (*db.DB, error)
	blame(err error) *Fault // nil: not from the database
	// Notifies reports whether Listen works.
	Notifies() bool
	// Indexes asks for the indexes that begin with a column: schema, table and column.
	Indexes() string
	// columns asks for name, type and nullability of a table's columns: two arguments.
	columns() string
}

// Syntax is how statements are written.
type Syntax interface {
	Name(table string) string  // quoted; a dot follows a schema
	Mark(n int) string         // placeholder of the nth argument, from 1
	Text(column string) string // the quoted column as text
	// Exactly says that the quoted key column is the argument, byte by byte: two arguments.
	Exactly(key, first, second string) string
	planner
}

// planner writes the statements of a plan.
type planner interface {
	// Add is the statement that adds a column that may be null.
	Add(table, column, kind string) string
	// Kind is the type of a column for such values: text, bool, int64, time.Time, or
	// json.RawMessage, of which nil is a long text.
	Kind(value any, encrypted bool) string
}

type postgres struct{ config *pgx.ConnConfig }

func (p postgres) Open() (*db.DB, error) { return stdlib.OpenDB(*p.running()), nil }

// running is the configuration of a connection, with the parameters for the session.
func (p postgres) running() *pgx.ConnConfig {
	c := p.config.Copy()
	for name, value := range map[string]string{
		"lock_timeout": "2s", "statement_timeout": "15s", "timezone": "UTC",
		"application_name": "renewd",
	} {
		c.RuntimeParams[name] = value
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = dialLimit
	}
	return c
}

func (postgres) Name(table string) string  { return quoted(table, `"`) }
func (postgres) Mark(n int) string         { return "$" + strconv.Itoa(n) }
func (postgres) Text(column string) string { return column + "::text" }

// Exactly compares texts too: a collation, or a type, may take a for A.
func (postgres) Exactly(key, first, second string) string {
	return key + " = " + first + " AND " + key + "::text = " + second + "::text"
}

// schemaOf is the schema of a table: the first argument, or where the search path finds the second.
const schemaOf = `coalesce(nullif($1::text, ''), (
	SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.oid = to_regclass(quote_ident($2::text))))`

func (postgres) columns() string {
	return `SELECT column_name, data_type, is_nullable = 'YES' FROM information_schema.columns
		WHERE table_name = $2::text AND table_schema = ` + schemaOf
}

func (postgres) Notifies() bool { return true }

func (postgres) Indexes() string {
	return `SELECT c.relname FROM pg_index i
		JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
		JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = i.indkey[0]
		JOIN pg_namespace s ON s.oid = t.relnamespace
		WHERE t.relname = $2::text AND a.attname = $3 AND i.indpred IS NULL
		AND s.nspname = ` + schemaOf
}

func (p postgres) Add(table, column, kind string) string {
	return fmt.Sprintf("ALTER TABLE %s ADD COLUMN %s %s NULL;", p.Name(table), p.Name(column), kind)
}

type mariadb struct{ config *mysql.Config }

func (m mariadb) Open() (*db.DB, error) {
	connector, err := mysql.NewConnector(m.config)
	if err != nil {
		return nil, errors.New("the address cannot be used")
	}
	return db.OpenDB(connector), nil
}

func (mariadb) Name(table string) string  { return quoted(table, "`") }
func (mariadb) Mark(int) string           { return "?" }
func (mariadb) Text(column string) string { return "CAST(" + column + " AS CHAR)" }

// Exactly compares bytes too: most collations take a for A, and another user's row for the user's.
func (mariadb) Exactly(key, first, second string) string {
	return key + " = " + first + " AND BINARY " + key + " = BINARY " + second
}

func (mariadb) columns() string {
	return `SELECT column_name, data_type, is_nullable = 'YES' FROM information_schema.columns
		WHERE table_schema = coalesce(nullif(?, ''), database()) AND table_name = ?`
}

func (mariadb) Notifies() bool { return false }

func (mariadb) Indexes() string {
	return `SELECT index_name FROM information_schema.statistics
		WHERE table_schema = coalesce(nullif(?, ''), database()) AND table_name = ?
		AND column_name = ? AND seq_in_index = 1`
}

func (m mariadb) Add(table, column, kind string) string {
	return fmt.Sprintf("ALTER TABLE %s ADD COLUMN %s %s NULL;", m.Name(table), m.Name(column), kind)
}

// Kind is the type of a column that takes such values.
func (postgres) Kind(value any, encrypted bool) string {
	switch v := value.(type) {
	case json.RawMessage:
		if v != nil && !encrypted {
			return "jsonb"
		}
		return "text"
	case int64:
		return "bigint"
	case bool:
		return "boolean"
	case time.Time:
		return "timestamptz"
	}
	return "text"
}

func (mariadb) Kind(value any, encrypted bool) string {
	switch v := value.(type) {
	case json.RawMessage:
		if v != nil && !encrypted {
			return "json"
		}
		return "mediumtext"
	case int64:
		return "bigint"
	case bool:
		return "boolean"
	case time.Time:
		return "datetime"
	}
	if encrypted {
		return "text"
	}
	return "varchar(255)"
}

// quoted is an identifier of one or more parts. A name from the settings is an identifier, whatever
// characters it has.
func quoted(name, mark string) string {
	parts := strings.Split(name, ".")
	for i, part := range parts {
		parts[i] = mark + strings.ReplaceAll(part, mark, mark+mark) + mark
	}
	return strings.Join(parts, ".")
}
