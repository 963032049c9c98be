package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// outside is an app without a connection to NATS. Sinks bring the app the outcomes: by its webhook,
// and into its own users table where there is PostgreSQL. From the table a source takes some
// logins.
type outside struct {
	url      string
	database string // address of its database; empty: no database
	http     *http.Server

	mu   sync.Mutex
	down bool
	got  []string // ids of outcomes, in the order in which the webhook got them
}

// The sinks, as the settings name them.
const sinkSettings = `sinks:
  hook:
    kind: webhook
    url: %s
    secret: whsec_Y2hhb3NjaGFvc2NoYW9zY2hhb3NjaGFv
    allow_private: true
    allow_http: true
    timeout: 3s
`

const tableSettings = `  table:
    kind: sql
    database_url: %s
    table: app_users
    key: sub
    version_column: version
    write_tokens: true
    columns: {token: access_token, signed_out: must_sign_in}
`

// shop is the source that takes logins from the app's table. The app's users are shopProvider's.
const (
	shop           = "shop"
	shopProvider   = strict
	sourceSettings = `sources:
  shop:
    kind: sql
    mode: live
    provider: ` + shopProvider + `
    database_url: %s
    table: app_users
    id: sub
    user: sub
    access_token: login_access
    refresh_token: login_refresh
    updated_at: changed_at
    signed_in_at: signed_in_at
`
)

// settings are the app's part of the settings file.
func (o *outside) settings() string {
	if o == nil {
		return ""
	}
	text := fmt.Sprintf(sinkSettings, o.url)
	if o.database != "" {
		text += fmt.Sprintf(tableSettings, o.database) + fmt.Sprintf(sourceSettings, o.database)
	}
	return text
}

// startOutside starts the app. Workers started later bring the app the outcomes.
func (w *world) startOutside(ctx context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	o := &outside{url: "http://" + l.Addr().String()}
	o.http = &http.Server{Handler: o, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = o.http.Serve(l) }() // until close
	w.outside = o
	if w.database != nil {
		o.database = w.database.URL("postgres")
		if err := o.do(ctx, "CREATE TABLE app_users (sub text PRIMARY KEY, token text, "+
			"signed_out boolean, version bigint, login_access text, login_refresh text, "+
			"signed_in_at timestamptz, changed_at timestamptz)"); err != nil {
			return err
		}
	}
	return w.write(asShipped)
}

func (o *outside) do(ctx context.Context, statement string, args ...any) error {
	c, err := pgx.Connect(ctx, o.database)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(ctx) }() // the server may be gone
	_, err = c.Exec(ctx, statement, args...)
	return err
}

// enrol gives each person a row, and has the source begin, by an operator's commands.
func (w *world) enrol(ctx context.Context, all []*person) error {
	o := w.outside
	if o.database == "" {
		return nil
	}
	var names []string
	for _, x := range all {
		names = append(names, x.name)
	}
	if err := o.do(ctx, "INSERT INTO app_users (sub) SELECT unnest($1::text[])",
		names); err != nil {
		return err
	}
	lacks, err := output(w.command(nil, "adopt", "plan", shop))
	if err != nil {
		return err
	}
	if err := o.do(ctx, lacks); err != nil {
		return err
	}
	_, err = output(w.command(nil, "adopt", "import", shop))
	return err
}

// mayLogIn reports whether a person can sign in at the app itself.
func (o *outside) mayLogIn(x *person) bool {
	return o.database != "" && x.provider.id == shopProvider && !x.bare
}

// logIn has the app write a person's tokens into its table, as its sign-in does.
func (o *outside) logIn(ctx context.Context, x *person) error {
	return o.do(ctx, "UPDATE app_users SET login_access = $2, login_refresh = $3, "+
		"signed_in_at = now(), changed_at = now() WHERE sub = $1", x.name, x.tokens.Access,
		x.tokens.Refresh)
}

// ServeHTTP takes an outcome.
func (o *outside) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var e struct {
		ID string `json:"id"`
	}
	err := json.NewDecoder(r.Body).Decode(&e)
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil || o.down {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	o.got = append(o.got, e.ID)
}

func (o *outside) setDown(down bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.down = down
}

// failWebhook has the app's webhook answer 503 for a while.
func failWebhook(ctx context.Context, x *strike) error {
	x.unfelt = true
	x.world.outside.setDown(true)
	x.last(ctx, 3*time.Second, 10*time.Second)
	x.world.outside.setDown(false)
	return nil
}

// lockTable has another program lock the app's table for a while.
func lockTable(ctx context.Context, x *strike) error {
	x.unfelt = true
	c, err := pgx.Connect(ctx, x.world.outside.database)
	if err != nil {
		return nil // PostgreSQL is down just now, by another fault
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }() // this unlocks
	_, err = c.Exec(ctx, "BEGIN; LOCK TABLE app_users IN ACCESS EXCLUSIVE MODE")
	if err == nil {
		x.last(ctx, 3*time.Second, 8*time.Second)
	}
	return nil
}

// rowOf is a person's row in the app's table.
type rowOf struct {
	token     *string
	signedOut *bool
}

// rows reads the app's table.
func (o *outside) rows(ctx context.Context) (map[string]rowOf, error) {
	c, err := pgx.Connect(ctx, o.database)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close(ctx) }() // the server may be gone
	rows, err := c.Query(ctx, "SELECT sub, token, signed_out FROM app_users")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := map[string]rowOf{}
	for rows.Next() {
		var name string
		var r rowOf
		if err := rows.Scan(&name, &r.token, &r.signedOut); err != nil {
			return nil, err
		}
		found[name] = r
	}
	return found, rows.Err()
}

// close ends the app.
func (o *outside) close() {
	if o != nil {
		_ = o.http.Close() // no client is left, so errors do not matter
	}
}

var errNotBrought = errors.New("not brought yet")

// bringing is how long an outcome may be on its way to the app while nothing is out of order. A
// sink tells its backlog every five seconds.
const bringing = 12 * time.Second

// brought waits until the sinks have only recent outcomes left to bring. No operator helps the
// sinks: outcomes that failed while the app was down are tried again once the app is back.
func (a *audit) brought(ctx context.Context) error {
	return eventually(ctx, settlesIn, func() error {
		out, err := output(a.world.command(nil, "sinks", "list", "-o", "json"))
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			var s struct {
				Name    string  `json:"name"`
				State   string  `json:"state"`
				Reason  string  `json:"reason"`
				Waiting int     `json:"waiting"`
				Lag     float64 `json:"lag_seconds"`
			}
			if err := json.Unmarshal([]byte(line), &s); err != nil {
				return err
			}
			if s.State != "live" || s.Waiting > 0 || s.Lag > bringing.Seconds() {
				return fmt.Errorf("%w by sink %s, which is %s (%s): %d wait, %.0f s behind",
					errNotBrought, s.Name, s.State, s.Reason, s.Waiting, s.Lag)
			}
		}
		return nil
	})
}
