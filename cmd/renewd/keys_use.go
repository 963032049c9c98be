package main

import (
	"bytes"
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
	"time"

	"golang.org/x/term"

	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/schema"
)

// keyUse is what still needs a key.
type keyUse struct {
	Grants int `json:"grants"` // stored records
	Parked int `json:"parked"` // pairs that the store would not take yet
	Logins int `json:"logins"` // logins that wait
}

func (u keyUse) String() string {
	var all []string
	say := func(n int, one, many string) {
		if n > 0 {
			all = append(all, counted(n, one, many))
		}
	}
	say(u.Grants, "grant", "grants")
	say(u.Parked, "parked pair", "parked pairs")
	say(u.Logins, "login", "logins")
	return cmp.Or(strings.Join(all, ", "), "nothing")
}

// keyUses is what needs each key, by the key's id. Under the empty id is what names no key: it is
// damaged, or not renewd's.
type keyUses map[string]keyUse

func (u keyUses) add(id string, one keyUse) {
	was := u[id]
	u[id] = keyUse{was.Grants + one.Grants, was.Parked + one.Parked, was.Logins + one.Logins}
}

// keyUses walks over all that is sealed and opens none of it. First what waits, since that ends in
// the store. tell hears now and then how many were met.
func (p *plant) keyUses(ctx context.Context, tell func(n int)) (keyUses, error) {
	uses, n := keyUses{}, 0
	met := func(id string, one keyUse) {
		uses.add(id, one)
		if n++; n%1000 == 0 {
			tell(n)
		}
	}
	err := p.engine.EachLogin(ctx, func(e schema.Event, err error) {
		var id string
		if err == nil {
			if data, err := schema.Data[schema.Login](e); err == nil {
				id = seal.LoginKeyOf(data.Tokens)
			}
		}
		met(id, keyUse{Logins: 1})
	})
	if err == nil {
		err = p.engine.EachParked(ctx, func(sealed []byte) {
			met(seal.StoreKeyOf(sealed), keyUse{Parked: 1})
		})
	}
	for cursor, more := "", true; more && err == nil; more = cursor != "" {
		page, next, listed := p.store.ListSealed(ctx, cursor, 1000)
		for _, s := range page {
			met(seal.StoreKeyOf(s.Head), keyUse{Grants: 1})
		}
		cursor, err = next, listed
	}
	return uses, err
}

// keyUses counts what needs each key of the settings' installation, with a line on a terminal that
// says how far it is.
func (a *app) keyUses(ctx context.Context, p *plant) (keyUses, error) {
	tell := func(int) {}
	if f, ok := a.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		tell = func(n int) { fmt.Fprintf(f, "\rlooked at %d records ", n) }
		defer fmt.Fprint(f, "\r\x1b[K")
	}
	uses, err := p.keyUses(ctx, tell)
	return uses, streamHint(err, a)
}

type keysList struct {
	clientFlags
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// listedKey is a key as `keys list` prints it.
type listedKey struct {
	seal.KeyInfo
	// Missing: records are sealed with it, and the keyring does not have it.
	Missing bool `json:"missing,omitempty"`
	// NeededBy is nil where it could not be counted.
	NeededBy *keyUse `json:"needed_by,omitempty"`
}

// Run lists the keys, with what needs them if that can be found out.
func (k keysList) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	ring, err := conf.keyFile().load(ctx)
	if err != nil {
		return a.keysHint(err)
	}
	uses, err := k.uses(ctx, a, conf)
	if err != nil {
		fmt.Fprintf(a.stderr, "what still needs each key is not shown: %v\n", err)
	}
	keys := listed(ring, uses)
	if k.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(keys)
	}
	return printKeys(a.stdout, keys)
}

func (k keysList) uses(ctx context.Context, a *app, conf *configuration) (keyUses, error) {
	p, err := k.openInstallation(ctx, a, conf)
	if err != nil {
		return nil, err
	}
	defer p.close()
	return a.keyUses(ctx, p)
}

// listed are the keys of the keyring, and those that it lacks though something needs them. uses is
// nil where that is not known.
func listed(ring *seal.Keyring, uses keyUses) (keys []listedKey) {
	for _, key := range ring.Keys() {
		l := listedKey{KeyInfo: key}
		if uses != nil {
			use := uses[key.ID]
			l.NeededBy = &use
		}
		keys = append(keys, l)
	}
	have := idsOf(ring)
	for _, id := range slices.Sorted(maps.Keys(uses)) {
		if slices.Contains(have, id) {
			continue
		}
		use, kind := uses[id], seal.UseStore
		if use.Logins > 0 {
			kind = seal.UseLogin
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
		id, made := cmp.Or(printable(key.ID), "unknown"), clock(key.Created)
		row := []string{id, key.Use, made, seals, needed, key.Thumbprint}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// openInstallation is openPlant without the keyring, which nothing is opened with, and for where
// the settings' own renewd is to be met, no other.
func (f clientFlags) openInstallation(
	ctx context.Context, a *app, conf *configuration,
) (*plant, error) {
	if conf.alone() && f.Server == "" {
		return nil, errors.New("NATS is inside renewd and nothing else reaches it: " +
			"set RENEWD_NATS_LISTEN for it")
	}
	return a.openPlantWith(ctx, conf, f.Server, nil)
}

type keysRetire struct {
	clientFlags
	operatorFlags
	IDs []string `arg:"" name:"id" help:"Ids of keys list; after -- if one begins with a dash."`
}

// names reports whether the key of this id is to be retired.
func (k keysRetire) names(id string) bool { return slices.Contains(k.IDs, id) }

// Run takes keys out of the keyring, unless something may need them.
func (k keysRetire) Run(ctx context.Context, a *app, c *cli) error {
	conf, file, ring, err := a.loadRing(ctx, c)
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
	defer p.close()
	if err := k.nothingNeeds(ctx, a, p, ring); err != nil {
		return fmt.Errorf("retire keys: %w", err)
	}
	if again, err := file.load(ctx); err != nil || !sameRing(again, ring) {
		return fmt.Errorf("retire keys: %s was changed meanwhile: try again", file.path)
	}
	if err := k.record(ctx, a, conf, k.Server, schema.ActKeysRetire, k.IDs...); err != nil {
		return fmt.Errorf("retire keys: %w", err)
	}
	if err := p.engine.NoteRetired(ctx, k.IDs...); err != nil {
		return err
	}
	if err := file.write(ctx, next); err != nil {
		return fmt.Errorf("retire keys: %w", err)
	}
	fmt.Fprintf(a.stdout, "%s no longer has %s: give the file to every renewd again, "+
		"and destroy the copies and backups of before\n", file.path, strings.Join(k.IDs, ", "))
	return nil
}

// nothingNeeds refuses while something is sealed with one of the keys, or may still come sealed
// with it. Nothing can once no worker seals with it, which is looked at before and after the walk.
func (k keysRetire) nothingNeeds(ctx context.Context, a *app, p *plant, ring *seal.Keyring) error {
	if err := k.noWorkerSeals(ctx, p, ring); err != nil {
		return streamHint(err, a)
	}
	if err := k.noLoginComes(ctx, a, p, ring); err != nil {
		return streamHint(err, a)
	}
	if err := k.nothingIsLeft(ctx, a, p, ring); err != nil {
		return err
	}
	return k.noWorkerSeals(ctx, p, ring)
}

// nothingIsLeft refuses while something is sealed with one of the keys.
func (k keysRetire) nothingIsLeft(ctx context.Context, a *app, p *plant, ring *seal.Keyring) error {
	uses, err := a.keyUses(ctx, p)
	if err != nil {
		return err
	}
	var left []string
	for _, key := range ring.Keys() {
		use := uses[key.ID]
		if key.Use == seal.UseLogin {
			use.Logins += uses[""].Logins // those may be sealed to any of them
		}
		if k.names(key.ID) && use != (keyUse{}) {
			left = append(left, fmt.Sprintf("%s is needed by %s", key.ID, use))
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("%s: running workers seal grants anew, those in use when they are renewed; "+
			"see renewd_grants_old_key, and: %s keys list", strings.Join(left, "; "), a.name)
	}
	return nil
}

// noWorkerSeals refuses unless every worker has read the keyring as it is.
func (k keysRetire) noWorkerSeals(ctx context.Context, p *plant, ring *seal.Keyring) error {
	keep := slices.DeleteFunc(idsOf(ring), k.names)
	_, lacking, err := lackingWorkers(ctx, p.engine, keep, sealing(ring))
	if err == nil && len(lacking) > 0 {
		err = fmt.Errorf("%s: give %s to it, which it reads within seconds, or the present version of "+
			"renewd; a worker that is gone is forgotten after two minutes",
			strings.Join(lacking, "; "), p.conf.keysFile())
	}
	return err
}

// noLoginComes refuses while a login may come, or wait, that was sealed to a key of the past.
func (k keysRetire) noLoginComes(ctx context.Context, a *app, p *plant, ring *seal.Keyring) error {
	login := func(key seal.KeyInfo) bool { return key.Use == seal.UseLogin && k.names(key.ID) }
	if !slices.ContainsFunc(ring.Keys(), login) {
		return nil
	}
	jwks, since, err := p.engine.KeysSince(ctx)
	if err != nil {
		return err
	}
	if !bytes.Equal(jwks, ring.JWKS()) {
		return fmt.Errorf("the published public key is not this keyring's: start renewd with it; "+
			"see: %s doctor", a.name)
	}
	kept, err := p.engine.LoginsKept(ctx)
	if err != nil {
		return err
	}
	// A publisher uses a key that it has fetched for minutes, and may send what it sealed later.
	if until := since.Add(kept + p.conf.LoginMaxAge + time.Hour); p.engine.Now().Before(until) {
		return fmt.Errorf("logins sealed to a login key of before may come until %s: try again then",
			clock(until))
	}
	return nil
}
