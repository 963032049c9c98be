package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"

	"github.com/jackc/pgx/v5"
)

// tokenForms are the form of the stand-in's refresh tokens, and of its access tokens' beginning.
var tokenForms = regexp.MustCompile(
	`rt\.\d+\.\d+\.[A-Za-z0-9_-]{8}|` +
		`eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}`,
)

// leaks looks for tokens in everything written: logs, metrics, streams, tables.
func (a *audit) leaks(ctx context.Context) error {
	c := a.count("tokens in any output, stream or table")
	look := func(where string, b []byte) {
		if m := tokenForms.Find(b); m != nil {
			c.add("%s: %d bytes that look like a token", where, len(m))
		}
	}
	for _, k := range a.world.workers {
		if res, err := http.Get("http://" + k.http + "/metrics"); err == nil {
			body, _ := io.ReadAll(res.Body) // a part of the body is checked too
			_ = res.Body.Close()
			look(k.name+" /metrics", body)
		}
	}
	err := filepath.WalkDir(a.world.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path == a.world.binary {
			return nil // a stream's file may vanish meanwhile
		}
		b, err := os.ReadFile(path)
		if err == nil {
			look(path, b)
		}
		return nil
	})
	if err != nil || a.world.database == nil {
		return err
	}
	return a.table(ctx, look)
}

func (a *audit) table(ctx context.Context, look func(string, []byte)) error {
	conn, err := pgx.Connect(ctx, a.world.database.URL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx,
		`SELECT table_name FROM information_schema.tables WHERE table_schema = 'renewd'`)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, name := range names {
		var out bytes.Buffer
		if _, err := conn.PgConn().CopyTo(ctx, &out, fmt.Sprintf(
			`COPY renewd.%s TO STDOUT (FORMAT binary)`, pgx.Identifier{name}.Sanitize(),
		)); err != nil {
			return err
		}
		look("table "+name, out.Bytes())
	}
	return nil
}
