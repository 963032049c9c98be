package admin

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

// KeyUse counts the data that still needs a key.
type KeyUse struct {
	Grants int `json:"grants"` // stored records
	Parked int `json:"parked"` // pairs that the store did not take yet
	Logins int `json:"logins"` // waiting logins
	// Files: the key of the embedded NATS server's files, on this machine.
	Files int `json:"files,omitempty"`
}

func (u KeyUse) String() string {
	var all []string
	say := func(n int, one, many string) {
		if n > 0 {
			all = append(all, plain.Counted(n, one, many))
		}
	}
	say(u.Grants, "grant", "grants")
	say(u.Parked, "parked pair", "parked pairs")
	say(u.Logins, "login", "logins")
	say(u.Files, "key of NATS' files", "keys of NATS' files")
	return cmp.Or(strings.Join(all, ", "), "nothing")
}

// KeyUses has the uses of each key, by the key's id. Data that names no key is under the empty id:
// it is damaged, or not renewd's.
type KeyUses map[string]KeyUse

func (u KeyUses) add(id string, one KeyUse) {
	was := u[id]
	u[id] = KeyUse{
		was.Grants + one.Grants, was.Parked + one.Parked, was.Logins + one.Logins,
		was.Files + one.Files,
	}
}

// CountKeyUses walks over all sealed data and opens nothing. It counts waiting data first, since
// waiting data ends in the store. tell hears now and then how many uses were met.
func CountKeyUses(ctx context.Context, p *daemon.Resources, tell func(n int)) (KeyUses, error) {
	uses, n := KeyUses{}, 0
	met := func(id string, one KeyUse) {
		uses.add(id, one)
		if n++; n%1000 == 0 {
			tell(n)
		}
	}
	err := p.Engine.EachLogin(ctx, func(e schema.Event, err error) {
		var id string
		if err == nil {
			if data, err := schema.Data[schema.Login](e); err == nil {
				id = seal.LoginKeyOf(data.Tokens)
			}
		}
		met(id, KeyUse{Logins: 1})
	})
	if err == nil {
		err = p.Engine.EachParked(ctx, func(sealed []byte) {
			met(seal.StoreKeyOf(sealed), KeyUse{Parked: 1})
		})
	}
	if id, ofFiles := daemon.FileKey(p.Conf); id != "" {
		met(id, KeyUse{Files: 1})
	} else if err == nil {
		err = ofFiles
	}
	for cursor, more := "", true; more && err == nil; more = cursor != "" {
		page, next, listed := p.Store.ListSealed(ctx, cursor, 1000)
		for _, s := range page {
			met(seal.StoreKeyOf(s.Head), KeyUse{Grants: 1})
		}
		cursor, err = next, listed
	}
	return uses, err
}

// LackingWorkers counts the workers, and names the workers that cannot open with all of these keys,
// or, if seals, do not say that they seal with the current keys. A worker that takes no logins
// needs no login key.
func LackingWorkers(
	ctx context.Context, engine *stream.Engine, keys []seal.KeyInfo, seals bool,
) (n int, lacking []string, err error) {
	if err := engine.SyncClock(ctx); err != nil {
		return 0, nil, err
	}
	workers, err := engine.Workers(ctx)
	if err != nil {
		return 0, nil, err
	}
	for _, w := range workers {
		wanted := slices.DeleteFunc(slices.Clone(keys), func(key seal.KeyInfo) bool {
			return w.NoLogins && key.Use == seal.UseLogin
		})
		lacks := func(key seal.KeyInfo) bool { return !slices.Contains(w.Keys, key.ID) }
		silent := func(key seal.KeyInfo) bool {
			return seals && key.Current && !slices.Contains(w.Seals, key.ID)
		}
		if i := slices.IndexFunc(wanted, lacks); i >= 0 {
			lacking = append(lacking,
				fmt.Sprintf("the worker on %s lacks key %s", w.Host, wanted[i].ID))
		} else if i := slices.IndexFunc(wanted, silent); i >= 0 {
			lacking = append(lacking,
				fmt.Sprintf("the worker on %s does not say that it seals with key %s",
					w.Host, wanted[i].ID))
		}
	}
	return len(workers), lacking, nil
}
