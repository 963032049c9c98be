package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// peerOptions are the command line of every contestant in this program.
type peerOptions struct {
	Database string `required:""`
	Provider string `required:""`
	Users    int    `required:""`
	Workers  int    `required:""`
	Long     bool   // the exchange begins with userinfo
}

// peerResult is printed by a contestant at its end.
type peerResult struct {
	Began, Ended time.Time
}

// peerTable is the table of the peers' users.
const peerTable = `CREATE TABLE users (
	id bigint PRIMARY KEY, name text NOT NULL UNIQUE, access_token text NOT NULL,
	refresh_token text NOT NULL, expires_at timestamptz NOT NULL, refresh_at timestamptz NOT NULL,
	claimed_until timestamptz, profile jsonb, updated_at timestamptz NOT NULL DEFAULT now());
	CREATE INDEX users_refresh_at ON users (refresh_at)`

// updateUser is the single commit at the end of each renewal by a peer.
const updateUser = `UPDATE users SET access_token = $2, refresh_token = $3, expires_at = $4,
	refresh_at = $4::timestamptz - interval '5 minutes', claimed_until = NULL, profile = $5,
	updated_at = now() WHERE id = $1`

// seedPeer fills a new database with users whose tokens have run out.
func (b *bench) seedPeer(ctx context.Context, p *provider, users int) (string, error) {
	database, err := b.newDatabase(ctx)
	if err != nil {
		return "", err
	}
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, peerTable); err != nil {
		return "", err
	}
	old := time.Now().Add(-lifetime)
	columns := []string{"id", "name", "access_token", "refresh_token", "expires_at", "refresh_at"}
	for from := 0; from < users; from += page {
		tokens, err := p.signIn(ctx, from, min(page, users-from), time.Hour)
		if err != nil {
			return "", err
		}
		rows := make([][]any, len(tokens))
		for i, t := range tokens {
			rows[i] = []any{int64(from + i), userName(from + i), t[0], t[1], old, old}
		}
		if _, err := conn.CopyFrom(
			ctx, pgx.Identifier{"users"}, columns, pgx.CopyFromRows(rows),
		); err != nil {
			return "", err
		}
	}
	_, err = conn.Exec(ctx, "VACUUM ANALYZE users")
	return database, err
}

// peer starts a contestant of this program and returns once the contestant is ready to go.
func (b *bench) peer(command string, o peerOptions, more ...string) (*process, error) {
	args := append([]string{
		command, "--database", o.Database, "--provider", o.Provider, "--users",
		strconv.Itoa(o.Users), "--workers", strconv.Itoa(o.Workers),
	}, more...)
	if o.Long {
		args = append(args, "--long")
	}
	return b.contestant(command, exec.Command(b.self, args...))
}

// contestant starts a process and returns once the process says "ready". The process then waits to
// be told to go.
func (b *bench) contestant(name string, cmd *exec.Cmd) (*process, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	p, err := launch(b.dir, name, cmd)
	if err != nil {
		return nil, err
	}
	if _, err := p.line(); err != nil {
		return nil, err
	}
	p.start = func() error { _, err := fmt.Fprintln(in, "go"); return err }
	return p, nil
}

// result waits for the contestant's end.
func (p *process) result() (r peerResult, err error) {
	text, err := p.line()
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal([]byte(text), &r)
}

// race is the contestant's side. The contestant says "ready", waits to be told to go, works, and
// prints its result. Then it stays, to be measured, until it is killed.
func race(ctx context.Context, work func(ctx context.Context) error) error {
	fmt.Println("ready")
	var word string
	if _, err := fmt.Scanln(&word); err != nil {
		return err
	}
	r := peerResult{Began: time.Now()}
	if err := work(ctx); err != nil {
		return err
	}
	r.Ended = time.Now()
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func pool(ctx context.Context, url string, conns int) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	config.MaxConns, config.MinConns = int32(conns), int32(conns)
	p, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	return p, p.Ping(ctx)
}
