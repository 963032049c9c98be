package appdb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
)

// Cause is where the fault of a database's error lies.
type Cause string

const (
	// Row: the values that one row holds, or was to hold. Other rows work.
	Row Cause = "row"
	// Unclear: one row, or a row that it points to, which is locked say, or the whole database.
	Unclear Cause = "unclear"
	// Down: each row would meet the error. The database is not there, say, or lacks a column or a
	// right.
	Down Cause = "down"
)

// Fault is an error of a database. A Fault has a database's code, and no message of a database,
// which may quote written or read values.
type Fault struct {
	Cause   Cause
	Err     error
	Missing bool // Err says that a table or a column is not there
}

// ErrTooLong is the Err of a *Fault where a context ended first.
var ErrTooLong = errors.New("the database took too long")

func (f *Fault) Error() string { return f.Err.Error() }
func (f *Fault) Unwrap() error { return f.Err }

// FaultOf is an error of a database as a *Fault; nil for nil. An error that has a *Fault stays as
// it is.
func FaultOf(d Dialect, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*Fault](err); ok {
		return err
	}
	if f := d.blame(err); f != nil {
		return f
	}
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		connecting = true
	}
	switch {
	case connecting: // also where no server answers in time
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &Fault{Cause: Unclear, Err: ErrTooLong}
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, mysql.ErrInvalidConn):
		return &Fault{Cause: Down, Err: errors.New("the connection to the database broke")}
	}
	return &Fault{Cause: Down, Err: errors.New("the database cannot be reached")}
}

// blame reads SQLSTATEs. The server's message may quote values of a row, so it goes nowhere.
func (postgres) blame(err error) *Fault {
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return nil
	}
	said := fmt.Errorf("SQLSTATE %s%s", e.Code, explain(e.Code, e.ColumnName))
	switch {
	case e.Routine == "exec_stmt_raise", e.Routine == "ExecWithCheckOptions":
		return &Fault{Cause: Row, Err: said} // a trigger, or a policy of the rows
	case begins(e.Code, "55P03", "57014", "40"): // locked, took too long, in each other's way
		return &Fault{Cause: Unclear, Err: said}
	case begins(e.Code, "21", "22", "23", "44", "54", "P0", "42804"):
		return &Fault{Cause: Row, Err: said}
	case begins(e.Code, "08", "28", "3D", "3F", "53", "57P", "58", "XX", "25006", "42501",
		"42P01", "42703", "42883"):
		return &Fault{Cause: Down, Err: said, Missing: missing(e.Code)}
	}
	return &Fault{Cause: Unclear, Err: said}
}

// begins reports whether a SQLSTATE is among these, or in a class among these.
func begins(code string, with ...string) bool {
	return slices.ContainsFunc(with, func(w string) bool { return strings.HasPrefix(code, w) })
}

// missing reports whether a SQLSTATE says that a table or a column is not there.
func missing(code string) bool {
	return slices.Contains([]string{"42P01", "42S02", "42703", "42S22"}, code)
}

// explain is the meaning of a SQLSTATE for an operator.
func explain(code, column string) string {
	of := ""
	if column != "" {
		of = " in " + strconv.Quote(column)
	}
	switch code {
	case "55P03":
		return ": the row or the table is locked"
	case "57014":
		return ": it took too long"
	case "25006":
		return ": the database is read-only, a replica say: point database_url at the primary"
	case "42P01", "42S02":
		return ": there is no such table"
	case "42703", "42S22":
		return ": there is no such column"
	case "42501":
		return ": the database user may not do this"
	case "22001":
		return ": too long for a column" + of
	case "22003":
		return ": too large a number for a column: the version column is to be a bigint" + of
	case "22P02", "22007", "42804":
		return ": of another type than a column" + of
	case "23502":
		return ": null in a column that takes none" + of
	case "23505":
		return ": another row has this already"
	case "28P01", "28000":
		return ": the database user or the password is wrong"
	}
	return ""
}

// blame reads the numbers of errors.
func (mariadb) blame(err error) *Fault {
	e, ok := errors.AsType[*mysql.MySQLError](err)
	if !ok {
		return nil
	}
	state := string(e.SQLState[:])
	said := fmt.Errorf("error %d (SQLSTATE %s)%s", e.Number, state, explain(state, ""))
	switch e.Number {
	case 1205, 1213, 3024, 1969, 3572: // locked, in each other's way, took too long
		said = fmt.Errorf("%w: locked, or it took too long", said)
		return &Fault{Cause: Unclear, Err: said}
	case 1290, 1836, 1792:
		said = fmt.Errorf("%w: the database is read-only: point database_url at the primary", said)
		return &Fault{Cause: Down, Err: said}
	case 1366, 1265, 1292, 1264:
		said = fmt.Errorf("%w: of another type than a column, or too large for it", said)
		return &Fault{Cause: Row, Err: said}
	case 1048, 1062, 1364, 1406, 1451, 1452, 1526, 1644, 1690, 3140, 3819, 4025:
		return &Fault{Cause: Row, Err: said}
	}
	if slices.Contains(ofMariaDB, e.Number) {
		return &Fault{Cause: Down, Err: said, Missing: missing(state)}
	}
	return &Fault{Cause: Unclear, Err: said}
}

// ofMariaDB are the errors of MySQL and MariaDB that each row would have: no space, no memory, too
// many connections, no access, no such database, table, column or function.
var ofMariaDB = []uint16{
	1021, 1037, 1038, 1040, 1041, 1044, 1045, 1049, 1053, 1054, 1114, 1129, 1130, 1142, 1143, 1146,
	1203, 1226, 1227, 1305, 1356, 1449, 1698, 1820, 1862, 1932, 3118,
}
