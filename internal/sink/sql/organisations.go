package sql

import (
	"context"
	db "database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/schema"
)

// ofOrganisation are the fields of one organisation of a user, for the table that has a row for
// each.
var ofOrganisation = map[string]func(o schema.Organisation) any{
	fieldOrganisation: func(o schema.Organisation) any { return o.ID },
	"org:name":        func(o schema.Organisation) any { return text(o.Name) },
	"org:role":        func(o schema.Organisation) any { return text(o.Role) },
	"org:roles":       func(o schema.Organisation) any { return document(o.Roles) },
	"org:permissions": func(o schema.Organisation) any { return document(o.Permissions) },
}

const fieldOrganisation = "org:id"

// memberships is the table that has a row for each organisation of a user: the row's owner, its
// organisation, and further facts of the membership.
type memberships struct {
	table string
	all   []mapped
	owner []mapped // row:COLUMN, user or provider
	id    string   // the column of the organisation
	rest  []mapped
}

// newMemberships reads a mapping that checkMemberships has looked at; nil: no mapping.
func newMemberships(c Config) *memberships {
	if c.Organisations == "" {
		return nil
	}
	m := &memberships{table: c.Organisations, all: mapping(c.OrganisationColumns)}
	for _, one := range m.all {
		switch {
		case one.field.name == fieldOrganisation:
			m.id = one.column
		case one.field.ofOrganisation():
			m.rest = append(m.rest, one)
		default:
			m.owner = append(m.owner, one)
		}
	}
	return m
}

// checkMemberships names the first mistake of a mapping.
func (c Config) checkMemberships() error {
	if (c.Organisations == "") != (len(c.OrganisationColumns) == 0) {
		return errors.New("organisations: set both it and organisations_table, or neither")
	}
	if c.Organisations == "" {
		return nil
	}
	for _, column := range slices.Sorted(maps.Keys(c.OrganisationColumns)) {
		says := c.OrganisationColumns[column]
		f, err := parseField(says)
		switch {
		case err != nil:
			return fmt.Errorf("organisations.%s: %w", column, err)
		case f.encrypted, f.row == "" && !f.ofOrganisation() && f.name != fieldUser &&
			f.name != fieldProvider:
			return fmt.Errorf("organisations.%s: %s: want org:id, org:name, org:role, org:roles, "+
				"org:permissions, or whose the row is: row:COLUMN, user, provider", column, says)
		}
	}
	switch m := newMemberships(c); {
	case m.id == "":
		return errors.New("organisations: which column holds org:id?")
	case len(m.owner) == 0, len(m.owner) == 1 && m.owner[0].field.name == fieldProvider:
		return errors.New("organisations: which column says whose the row is: row:id, say?")
	}
	return nil
}

// errNoOwner: the user's own row has null in a column that tells whose a membership is.
var errNoOwner = errors.New("the user's row has null in a column that organisations take")

// joining is one user's rows of memberships, amid a transaction.
type joining struct {
	*Target
	*writing
	job   *job
	row   row
	owner []string // the values of the columns of memberships.owner
}

// joins has the user's rows match the profile's organisations, and deletes all rows once the user
// is erased. A profile that does not tell leaves the rows as they are. The end of a session does
// too, because trouble in that table must not keep an app from hearing of the end.
func (t *Target) joins(ctx context.Context, w *writing, j *job, r row) error {
	erased := j.facts.Forgotten()
	if t.members == nil || !erased && (!j.facts.Lives() || !j.facts.tells("organisations")) {
		return nil
	}
	x := joining{Target: t, writing: w, job: j, row: r}
	for _, o := range t.members.owner {
		value := o.field.of(j.facts, r)
		if value == nil {
			return &sink.Fault{Blame: sink.Refused, Err: errNoOwner}
		}
		x.owner = append(x.owner, fmt.Sprint(value))
	}
	have, err := x.have(ctx)
	if err != nil {
		return err
	}
	var want []schema.Organisation
	if !erased {
		want = j.facts.Profile.Organisations
	}
	for _, o := range want {
		found := have[o.ID]
		delete(have, o.ID)
		if len(found) == 1 {
			x.change(o, found[0])
			continue
		}
		if len(found) > 1 {
			x.leave(o.ID)
		}
		x.join(o)
	}
	for id := range have {
		x.leave(id)
	}
	return nil
}

// where finds the user's rows.
func (x joining) where(a *arguments) string {
	var parts []string
	for i, o := range x.members.owner {
		parts = append(parts, a.exactly(o.column, x.owner[i]))
	}
	return " WHERE " + strings.Join(parts, " AND ")
}

// one finds the user's rows of an organisation.
func (x joining) one(a *arguments, id string) string {
	return x.where(a) + " AND " + a.exactly(x.members.id, id)
}

// have are the user's rows by their organisations, each with the values of memberships.rest. A row
// that another process has locked has this user wait, and no other user.
func (x joining) have(ctx context.Context) (map[string][][]db.NullString, error) {
	d, m := x.dialect, x.members
	columns := []string{d.Text(d.Name(m.id))}
	for _, one := range m.rest {
		columns = append(columns, d.Text(d.Name(one.column)))
	}
	a := &arguments{dialect: d}
	from := " FROM " + d.Name(m.table) + x.where(a)
	var there, free int
	err := x.tx.QueryRowContext(ctx, "SELECT count(*)"+from, a.list...).Scan(&there)
	if err != nil {
		return nil, err
	}
	rows, err := x.tx.QueryContext(ctx, "SELECT "+strings.Join(columns, ", ")+from+
		" FOR UPDATE SKIP LOCKED", a.list...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err reports every error
	found := map[string][][]db.NullString{}
	for ; rows.Next(); free++ {
		values := make([]db.NullString, len(columns))
		into := make([]any, len(columns))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		id := values[0].String
		found[id] = append(found[id], values[1:])
	}
	if err := rows.Err(); err == nil && free < there {
		return nil, &sink.Fault{Blame: sink.Refused, Err: errors.New("a row of the user's " +
			"organisations is locked")}
	}
	return found, rows.Err()
}

// join has a row added.
func (x joining) join(o schema.Organisation) {
	a := &arguments{dialect: x.dialect}
	var columns, marks []string
	for _, m := range x.members.all {
		c := x.at.members[m.column]
		arg, skip := argument(c, m.field.of(x.job.facts, x.row))
		if m.field.ofOrganisation() {
			arg, skip = argument(c, ofOrganisation[m.field.name](o))
		}
		if !skip {
			columns, marks = append(columns, x.dialect.Name(m.column)), append(marks, a.mark(arg))
		}
	}
	x.write(fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s)", x.dialect.Name(x.members.table),
		strings.Join(columns, ", "), strings.Join(marks, ", ")), a)
}

// change writes the fields in which the profile and the row differ.
func (x joining) change(o schema.Organisation, was []db.NullString) {
	a := &arguments{dialect: x.dialect}
	var sets []string
	for i, m := range x.members.rest {
		arg, skip := argument(x.at.members[m.column], ofOrganisation[m.field.name](o))
		if skip || arg == nil && !was[i].Valid || was[i].Valid && arg == was[i].String {
			continue
		}
		sets = append(sets, x.dialect.Name(m.column)+" = "+a.mark(arg))
	}
	if len(sets) > 0 {
		x.write("UPDATE "+x.dialect.Name(x.members.table)+" SET "+strings.Join(sets, ", ")+
			x.one(a, o.ID), a)
	}
}

// leave has the user's rows of an organisation taken away.
func (x joining) leave(id string) {
	a := &arguments{dialect: x.dialect}
	x.write("DELETE FROM "+x.dialect.Name(x.members.table)+x.one(a, id), a)
}
