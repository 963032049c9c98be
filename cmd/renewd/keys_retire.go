package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/term"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/schema"
)

// walked is counting for a walk over records.
func (a *app) walked() (tell func(int), end func()) { return a.counting("looked at %d records ") }

// counting returns tell, which shows a number on a line of a terminal, and end, which ends the
// line. format has a %d for the number.
func (a *app) counting(format string) (tell func(int), end func()) {
	f, ok := a.stderr.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return func(int) {}, func() {}
	}
	return func(n int) { fmt.Fprintf(f, "\r"+format, n) },
		func() { fmt.Fprint(f, "\r\x1b[K") }
}

type keysList struct {
	clientFlags
	useFlags
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// listedKey is a key as `keys list` prints it.
type listedKey struct {
	seal.KeyInfo
	// Missing: the key seals records, and the keyring lacks it.
	Missing bool `json:"missing,omitempty"`
	// NeededBy is nil where the uses could not be counted.
	NeededBy *admin.KeyUse `json:"needed_by,omitempty"`
}

// Run lists the keys, with the uses of each key if those can be counted.
func (k keysList) Run(ctx context.Context, a *app, c *cli) error {
	conf, _, ring, err := a.loadRing(ctx, c, k.use())
	if err != nil {
		return err
	}
	uses, err := k.needs(ctx, a, conf)
	if err != nil {
		fmt.Fprintf(a.stderr, "what still needs each key is not shown: %v\n", err)
	}
	keys := listed(ring, uses)
	if k.use() != "" {
		keys = slices.DeleteFunc(keys, func(key listedKey) bool { return key.Use != k.use() })
	}
	if k.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(keys)
	}
	return printKeys(a.stdout, keys)
}

func (k keysList) needs(ctx context.Context, a *app, conf *settings.Settings) (admin.KeyUses,
	error) {
	p, err := k.openInstallation(ctx, a, conf)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	tell, end := a.walked()
	defer end()
	uses, err := admin.CountKeyUses(ctx, p, tell)
	return uses, streamHint(err, a)
}

// listed are the keys of the keyring, and missing keys that something needs. uses is nil where
// unknown.
func listed(ring *seal.Keyring, uses admin.KeyUses) (keys []listedKey) {
	for _, key := range ring.Keys() {
		l := listedKey{KeyInfo: key}
		if uses != nil {
			use := uses[key.ID]
			l.NeededBy = &use
		}
		keys = append(keys, l)
	}
	have := ring.IDs()
	for _, id := range slices.Sorted(maps.Keys(uses)) {
		if slices.Contains(have, id) {
			continue
		}
		use, kind := uses[id], seal.UseStore
		if use.Logins > 0 {
			kind = seal.UseLogin
		}
		if !slices.Contains(ring.Uses(), kind) {
			continue // the file not read may have the key
		}
		lost := seal.KeyInfo{ID: id, Use: kind}
		keys = append(keys, listedKey{KeyInfo: lost, Missing: true, NeededBy: &use})
	}
	return keys
}

func printKeys(to io.Writer, keys []listedKey) error {
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tUSE\tMADE\tSEALS\tNEEDED BY\tTO PIN")
	for _, key := range keys {
		seals := "no, opens only"
		switch {
		case key.Missing:
			seals = "not in the keyring"
		case key.Current:
			seals = "yes"
		case key.Next:
			seals = "not yet: keys promote"
		}
		needed := "?"
		if key.NeededBy != nil {
			needed = key.NeededBy.String()
		}
		id, made := cmp.Or(plain.Text(key.ID), "unknown"), plain.Clock(key.Created)
		row := []string{id, key.Use, made, seals, needed, key.Thumbprint}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// openInstallation is openResources without the keyring, since nothing is opened. It refuses
// settings whose NATS server no other process reaches.
func (f clientFlags) openInstallation(
	ctx context.Context, a *app, conf *settings.Settings,
) (*daemon.Resources, error) {
	if conf.Alone() && f.Server == "" {
		return nil, errors.New("NATS is inside renewd and nothing else reaches it: " +
			"set RENEWD_NATS_LISTEN for it")
	}
	return a.openResourcesWith(ctx, conf, f.Server, nil)
}

type keysRetire struct {
	clientFlags
	operatorFlags
	useFlags
	IDs []string `arg:"" name:"id" help:"Ids of keys list; after -- if one begins with a dash."`
}

// Run takes keys out of the keyring, unless the keys may still be needed.
func (k keysRetire) Run(ctx context.Context, a *app, c *cli) error {
	conf, files, ring, err := a.loadRing(ctx, c, k.use())
	if err != nil {
		return err
	}
	next, err := ring.Retire(k.IDs...)
	switch {
	case errors.Is(err, seal.ErrCurrent):
		return fmt.Errorf("retire keys: %w: %s keys rotate adds one to take its place", err, a.name)
	case err != nil:
		return fmt.Errorf("retire keys: %w: see: %s keys list", err, a.name)
	}
	p, err := k.openInstallation(ctx, a, conf)
	if err != nil {
		return fmt.Errorf("retire keys: %w", err)
	}
	defer p.Close()
	tell, shown := a.walked()
	err = admin.MayRetire(ctx, p, admin.Retirement{
		Ring:    ring,
		IDs:     k.IDs,
		Program: a.name,
		Tell:    tell,
	})
	shown()
	if err != nil {
		return fmt.Errorf("retire keys: %w", streamHint(err, a))
	}
	if again, err := files.Load(ctx); err != nil || !keyfile.SameRing(again, ring) {
		return fmt.Errorf("retire keys: %s was changed meanwhile: try again", files)
	}
	if err := k.record(ctx, a, conf, k.Server, schema.ActKeysRetire, k.IDs...); err != nil {
		return fmt.Errorf("retire keys: %w", err)
	}
	if err := p.Engine.NoteRetired(ctx, k.IDs...); err != nil {
		return err
	}
	if err := files.Write(ctx, ring, next); err != nil {
		return fmt.Errorf("retire keys: %w", err)
	}
	fmt.Fprintf(a.stdout, "%s no longer has %s: give the file to every renewd again, "+
		"and destroy the copies and backups of before\n", files, strings.Join(k.IDs, ", "))
	return nil
}
