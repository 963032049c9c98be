package sql

import (
	"errors"
	"net"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/renewd/renewd/internal/appdb"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/sink"
)

// Only what each row would meet is blamed on the database. An error that is not known may be one
// row's.
func TestBlame(t *testing.T) {
	for _, c := range []struct {
		err  error
		want sink.Blame
		one  bool // may be one row's
	}{
		{&pgconn.PgError{Code: "54000"}, sink.Refused, true},
		{&pgconn.PgError{Code: "44000"}, sink.Refused, true},
		{&pgconn.PgError{Code: "P0003"}, sink.Refused, true},
		{&pgconn.PgError{Code: "42501", Routine: "ExecWithCheckOptions"}, sink.Refused, true},
		{&pgconn.PgError{Code: "53400", Routine: "exec_stmt_raise"}, sink.Refused, true},
		{&pgconn.PgError{Code: "42501", Routine: "aclcheck_error"}, sink.Unreachable, false},
		{&pgconn.PgError{Code: "XY123"}, sink.Unclear, true},
		{&pgconn.PgError{Code: "55P03"}, sink.Unclear, true},
		{&pgconn.PgError{Code: "40P01"}, sink.Unclear, true},
		{&pgconn.PgError{Code: "57P01"}, sink.Unreachable, false},
		{&pgconn.PgError{Code: "53300"}, sink.Unreachable, false},
		{&mysql.MySQLError{Number: 3819}, sink.Refused, true},
		{&mysql.MySQLError{Number: 1644}, sink.Refused, true},
		{&mysql.MySQLError{Number: 1690}, sink.Refused, true},
		{&mysql.MySQLError{Number: 1526}, sink.Refused, true},
		{&mysql.MySQLError{Number: 9999}, sink.Unclear, true},
		{&mysql.MySQLError{Number: 1205}, sink.Unclear, true},
		{&mysql.MySQLError{Number: 1146}, sink.Unreachable, false},
		{&mysql.MySQLError{Number: 1045}, sink.Unreachable, false},
	} {
		d := dialect(t, "postgres://app")
		if _, ok := errors.AsType[*mysql.MySQLError](c.err); ok {
			d = dialect(t, "mysql://app/app")
		}
		err := faultOf(d, c.err)
		f, _ := errors.AsType[*sink.Fault](err)
		if f == nil || f.Blame != c.want || ofOneRow(err) != c.one {
			t.Errorf("%+v: %+v, one row's: %v, want %s and %v", c.err, f, ofOneRow(err), c.want,
				c.one)
		}
	}
}

func dialect(t *testing.T, address string) appdb.Dialect {
	t.Helper()
	d, err := appdb.Parse(secret.New(address))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A database to which no connection is made in time is not there.
func TestDialThatTakesTooLong(t *testing.T) {
	_, err := (&net.Dialer{Timeout: 1}).Dial("tcp", "127.0.0.1:1")
	for _, d := range []appdb.Dialect{
		dialect(t, "postgres://app"), dialect(t, "mysql://app/app"),
	} {
		f, ok := errors.AsType[*sink.Fault](faultOf(d, err))
		if !ok || f.Blame != sink.Unreachable {
			t.Errorf("%T: %v of %v, want one that is not there", d, f, err)
		}
	}
}
