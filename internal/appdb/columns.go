package appdb

import (
	"context"
	db "database/sql"
	"strings"
)

// Column is a column of a table as the database has it.
type Column struct {
	Kind     string // of its data, as information_schema says
	Nullable bool
}

// Whole reports whether the column holds whole numbers.
func (c Column) Whole() bool {
	return strings.Contains(c.Kind, "int") || c.Kind == "numeric" || c.Kind == "decimal"
}

// Columns are the columns of a table, by name; empty: there is no such table. The error is a
// *Fault.
func Columns(ctx context.Context, d Dialect, from *db.DB, name string) (map[string]Column, error) {
	schema, base, ok := strings.Cut(name, ".")
	if !ok {
		schema, base = "", name
	}
	rows, err := from.QueryContext(ctx, d.columns(), schema, base)
	if err != nil {
		return nil, FaultOf(d, err)
	}
	defer func() { _ = rows.Close() }() // rows.Err reports every error
	found := map[string]Column{}
	for rows.Next() {
		var name string
		var c Column
		if err := rows.Scan(&name, &c.Kind, &c.Nullable); err != nil {
			return nil, FaultOf(d, err)
		}
		found[name] = c
	}
	return found, FaultOf(d, rows.Err())
}

// Text reports whether the column holds texts.
func (c Column) Text() bool {
	return strings.Contains(c.Kind, "char") || strings.Contains(c.Kind, "text") ||
		strings.Contains(c.Kind, "blob") || strings.Contains(c.Kind, "binary")
}

// Time reports whether the column holds times.
func (c Column) Time() bool {
	return strings.HasPrefix(c.Kind, "timestamp") || c.Kind == "datetime"
}
