package sql

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/appdb"
)

// Plan is the statements that the app's database lacks, for its owner to run: renewd changes no
// table. No statements: nothing is missing.
func (t *Target) Plan(ctx context.Context) ([]string, error) {
	at, _, err := t.compare(ctx)
	if err != nil {
		return nil, err
	}
	var statements []string
	d := t.dialect
	if len(at.users) == 0 {
		return []string{fmt.Sprintf("-- there is no table %s: point table at the app's own",
			d.Name(t.config.Table))}, nil
	}
	if _, there := at.users[t.config.Key]; !there {
		statements = append(statements, fmt.Sprintf(
			"-- %s has no column %s: point key at the column that tells users apart",
			d.Name(t.config.Table), d.Name(t.config.Key)))
	}
	if _, there := at.users[t.config.Version]; !there {
		statements = append(statements, d.Add(t.config.Table, t.config.Version,
			d.Kind(int64(0), false)))
	}
	for _, m := range t.columns {
		if _, there := at.users[m.column]; !there {
			statements = append(statements, d.Add(t.config.Table, m.column,
				d.Kind(m.field.sample(), m.field.encrypted)))
		}
	}
	statements = append(statements, t.planTable(t.config.History, at.history, t.history)...)
	if t.members != nil {
		statements = append(statements, t.planTable(t.members.table, at.members, t.members.all)...)
	}
	return statements, nil
}

// planTable creates a table that renewd is to fill, or adds its missing columns. No name: no table.
func (t *Target) planTable(table string, have map[string]appdb.Column, want []mapped) (
	statements []string) {
	d := t.dialect
	var columns []string
	for _, m := range want {
		kind := d.Kind(m.field.sample(), m.field.encrypted)
		columns = append(columns, d.Name(m.column)+" "+kind)
		if _, there := have[m.column]; !there {
			statements = append(statements, d.Add(table, m.column, kind))
		}
	}
	if table != "" && len(have) == 0 {
		return []string{fmt.Sprintf("CREATE TABLE %s (%s);", d.Name(table),
			strings.Join(columns, ", "))}
	}
	return statements
}

// compare reads the app's tables, and names the missing tables and columns.
func (t *Target) compare(ctx context.Context) (at *tables, missing []string, err error) {
	at = &tables{}
	if at.users, err = t.columnsOf(ctx, t.config.Table); err != nil {
		return nil, nil, err
	}
	want := []string{t.config.Key, t.config.Version}
	for _, m := range t.columns {
		want = append(want, m.column)
	}
	want = append(want, t.taken()...)
	missing = append(missing, absent(t.config.Table, at.users, want)...)
	if at.history, err = t.look(ctx, t.config.History, t.history, &missing); err != nil {
		return nil, nil, err
	}
	if t.members != nil {
		at.members, err = t.look(ctx, t.members.table, t.members.all, &missing)
	}
	return at, missing, err
}

// look reads the columns of a table, and adds the absent columns to missing. No name: no table.
func (t *Target) look(ctx context.Context, table string, want []mapped, missing *[]string) (
	map[string]appdb.Column, error) {
	if table == "" {
		return nil, nil
	}
	have, err := t.columnsOf(ctx, table)
	if err != nil {
		return nil, err
	}
	var columns []string
	for _, m := range want {
		columns = append(columns, m.column)
	}
	*missing = append(*missing, absent(table, have, columns)...)
	return have, nil
}

// columnsOf are the columns of a table, by name; empty: there is no such table.
func (t *Target) columnsOf(ctx context.Context, table string) (map[string]appdb.Column, error) {
	have, err := appdb.Columns(ctx, t.dialect, t.db, table)
	return have, faultOf(t.dialect, err)
}

// absent names the table if it is not there, else the columns that it lacks.
func absent(table string, have map[string]appdb.Column, want []string) (missing []string) {
	if len(have) == 0 {
		return []string{"table " + table}
	}
	for _, name := range want {
		if _, there := have[name]; !there {
			missing = append(missing, "column "+table+"."+name)
		}
	}
	return missing
}

// sample is a value of the field's kind.
func (f field) sample() any {
	switch f.name {
	case fieldAccessToken, "raw":
		return json.RawMessage(nil)
	case "groups", "roles", "organisations", "org:roles", "org:permissions":
		return json.RawMessage("[]")
	case "version":
		return int64(0)
	case "live", "must_sign_in", "email_verified", "enabled", "locked", "mfa_enabled",
		"has_password",
		"active", "success":
		return false
	case "expires_at", "synced_at", "refreshed_at", "email_verified_at", "event_time":
		return time.Time{}
	}
	if f.row != "" {
		return int64(0)
	}
	return ""
}

// plainText is a value as text, to be encrypted.
func plainText(value any) (string, bool) {
	switch v := value.(type) {
	case string:
		return v, true
	case bool:
		return map[bool]string{false: "0", true: "1"}[v], true
	case int64:
		return strconv.FormatInt(v, 10), true
	case time.Time:
		return v.UTC().Format(time.DateTime), true
	case json.RawMessage:
		return string(v), true
	}
	return "", false
}
