package sql

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/renewd/renewd/internal/appdb"
	"github.com/renewd/renewd/internal/secret"
)

// guesses are the names that an app may give a column, the likeliest first. A star stands for any
// text.
var guesses = []struct {
	setting string
	names   []string
}{
	{"id", []string{"id", "uuid", "*_id"}},
	{"user", []string{"propel_id", "propelauth_id", "propel_user_id", "propelauth_user_id",
		"provider_id", "provider_user_id", "oauth_id", "external_id", "sub", "*_sub", "auth0_id",
		"google_id", "github_id", "okta_id", "keycloak_id"}},
	{"access_token", []string{"propel_access_token", "access_token", "*_access_token", "*_token",
		"token"}},
	{"refresh_token", []string{"propel_refresh_token", "refresh_token", "*_refresh_token"}},
	{"expires_at", []string{"propel_expires_at", "token_expires_at", "access_token_expires_at",
		"expires_at", "*_expires_at"}},
	{"updated_at", []string{"updated_at", "modified_at", "updated_on", "*_updated_at"}},
	{"signed_in_at", []string{"last_login_at", "last_sign_in_at", "last_signed_in_at",
		"signed_in_at", "logged_in_at", "last_login"}},
}

// Proposal is how a table's columns may be mapped.
type Proposal struct {
	// Columns are the columns found, by setting.
	Columns map[string]string
	// Encrypted: tokens look as Laravel encrypts them.
	Encrypted bool
	// Have are the names of all columns, sorted.
	Have []string
	// PostgreSQL: the database can tell of changes.
	PostgreSQL bool
}

// Missing are the required settings for which no column was found.
func (p Proposal) Missing() (names []string) {
	for _, name := range []string{"id", "user", "access_token", "refresh_token"} {
		if p.Columns[name] == "" {
			names = append(names, name)
		}
	}
	return names
}

// Propose looks at a table, and guesses the settings of its columns. Propose reads one token, to
// see whether tokens are encrypted.
func Propose(ctx context.Context, address secret.Value, name string) (p Proposal, err error) {
	d, err := appdb.Parse(address)
	if err != nil {
		return p, fmt.Errorf("database_url: %w", err)
	}
	from, err := d.Open()
	if err != nil {
		return p, err
	}
	t := &Table{config: Config{Table: name}, dialect: d, db: from}
	defer t.Close()
	have, err := appdb.Columns(ctx, d, from, name)
	if err != nil {
		return p, err
	}
	if len(have) == 0 {
		return p, errors.New("there is no table " + name + ", or this database user may not see it")
	}
	p = guess(have)
	p.PostgreSQL = strings.HasPrefix(address.Reveal(), "postgres")
	if p.Columns["refresh_token"] == "" {
		return p, nil
	}
	column := d.Name(p.Columns["refresh_token"])
	some, err := t.texts(ctx, fmt.Sprintf("SELECT %s FROM %s WHERE %s IS NOT NULL LIMIT 1", column,
		d.Name(name), column))
	p.Encrypted = len(some) > 0 && appdb.LooksEncrypted(some[0])
	return p, err
}

// guess maps columns by their names and types.
func guess(have map[string]appdb.Column) Proposal {
	p := Proposal{Columns: map[string]string{}}
	for column := range have {
		p.Have = append(p.Have, column)
	}
	slices.Sort(p.Have)
	taken := map[string]bool{}
	for _, g := range guesses {
		for _, name := range g.names {
			i := slices.IndexFunc(p.Have, func(column string) bool {
				return !taken[column] && fits(g.setting, have[column]) && like(column, name)
			})
			if i >= 0 && p.Columns[g.setting] == "" {
				p.Columns[g.setting] = p.Have[i]
				taken[p.Have[i]] = true
			}
		}
	}
	return p
}

func like(column, name string) bool {
	rest, any := strings.CutPrefix(name, "*")
	return column == name || any && strings.HasSuffix(column, rest) &&
		!(rest == "_token" && (strings.Contains(column, "remember") ||
			strings.Contains(column, "refresh")))
}

// fits reports whether a column's type suits a setting.
func fits(setting string, c appdb.Column) bool {
	switch setting {
	case "access_token", "refresh_token":
		return c.Text()
	case "expires_at", "updated_at", "signed_in_at":
		return c.Time() || c.Whole()
	}
	return true
}

// Plan is the statements that the table lacks, for its owner to run: renewd changes no table. No
// statements: nothing is missing. Plan returns an error for a table that does not fit.
func (t *Table) Plan(ctx context.Context) (statements []string, err error) {
	if err := t.look(ctx); err != nil {
		return nil, err
	}
	for _, column := range []string{t.config.User, t.config.UpdatedAt} {
		if column == "" {
			continue
		}
		indexed, err := t.leads(ctx, column)
		if err != nil {
			return nil, err
		}
		if !indexed {
			statements = append(statements, fmt.Sprintf("CREATE INDEX %s ON %s (%s);",
				t.dialect.Name("renewd_"+t.config.Name+"_"+column),
				t.dialect.Name(t.config.Table), t.dialect.Name(column)))
		}
	}
	trigger, err := t.trigger(ctx)
	return append(statements, trigger...), err
}

// leads reports whether an index begins with a column.
func (t *Table) leads(ctx context.Context, column string) (bool, error) {
	schema, base, ok := strings.Cut(t.config.Table, ".")
	if !ok {
		schema, base = "", t.config.Table
	}
	found, err := t.texts(ctx, t.dialect.Indexes(), schema, base, column)
	return len(found) > 0, err
}

// trigger is the statements by which PostgreSQL tells of changed tokens; no statements: the trigger
// is there, or the database cannot.
func (t *Table) trigger(ctx context.Context) ([]string, error) {
	if !t.dialect.Notifies() {
		return nil, nil
	}
	d, c := t.dialect, t.config
	found, err := t.texts(ctx, "SELECT tgname FROM pg_trigger WHERE tgrelid = to_regclass($1) AND "+
		"tgname = $2", d.Name(c.Table), c.Channel)
	if err != nil || len(found) > 0 {
		return nil, err
	}
	function := d.Name(c.Channel)
	if schema, _, ok := strings.Cut(c.Table, "."); ok {
		function = d.Name(schema) + "." + function
	}
	return []string{
		fmt.Sprintf("CREATE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "+
			"PERFORM pg_notify('%s', NEW.%s::text); RETURN NULL; END $$;", function,
			strings.ReplaceAll(c.Channel, "'", "''"), d.Name(c.ID)),
		fmt.Sprintf("CREATE TRIGGER %s AFTER INSERT OR UPDATE OF %s ON %s FOR EACH ROW "+
			"EXECUTE FUNCTION %s();", d.Name(c.Channel), d.Name(c.Refresh), d.Name(c.Table),
			function),
	}, nil
}
