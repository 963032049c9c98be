package admin

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/seal"
)

// Retirement is which keys are to be retired.
type Retirement struct {
	Ring    *seal.Keyring // as the file has it, with these keys
	IDs     []string
	Program string      // how to call renewd, for the advice
	Tell    func(n int) // hears now and then how many records were looked at
}

// names reports whether the key of this id is to be retired.
func (k Retirement) names(id string) bool { return slices.Contains(k.IDs, id) }

// MayRetire refuses while data is sealed with one of the keys, or may still come sealed with such a
// key. Once no worker seals with a key, no more such data comes. The workers are looked at before
// and after the walk.
func MayRetire(ctx context.Context, p *daemon.Resources, k Retirement) error {
	if err := k.noWorkerSeals(ctx, p); err != nil {
		return err
	}
	if err := k.NoLoginComes(ctx, p); err != nil {
		return err
	}
	if err := k.NothingIsLeft(ctx, p); err != nil {
		return err
	}
	return k.noWorkerSeals(ctx, p)
}

// NothingIsLeft refuses while data is sealed with one of the keys.
func (k Retirement) NothingIsLeft(ctx context.Context, p *daemon.Resources) error {
	uses, err := CountKeyUses(ctx, p, k.Tell)
	if err != nil {
		return err
	}
	var left []string
	for _, key := range k.Ring.Keys() {
		use := uses[key.ID]
		if key.Use == seal.UseLogin {
			use.Logins += uses[""].Logins // these logins may be sealed to any key
		}
		if k.names(key.ID) && use != (KeyUse{}) {
			left = append(left, fmt.Sprintf("%s is needed by %s", key.ID, use))
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("%s: running workers seal grants again, those in use when they are "+
			"renewed; see renewd_grants_old_key, and: %s keys list", strings.Join(left, "; "),
			k.Program)
	}
	return nil
}

// noWorkerSeals refuses unless every worker has read the keyring as it is.
func (k Retirement) noWorkerSeals(ctx context.Context, p *daemon.Resources) error {
	keep := slices.DeleteFunc(k.Ring.Keys(), func(key seal.KeyInfo) bool { return k.names(key.ID) })
	_, lacking, err := LackingWorkers(ctx, p.Engine, keep, true)
	if err == nil && len(lacking) > 0 {
		err = fmt.Errorf("%s: give %s to it, which it reads within seconds, "+
			"or the present version of renewd; a worker that is gone is "+
			"forgotten after two minutes",
			strings.Join(lacking, "; "), keyfile.Of(p.Conf))
	}
	return err
}

// NoLoginComes refuses while a login sealed to a key of the past may come, or wait.
func (k Retirement) NoLoginComes(ctx context.Context, p *daemon.Resources) error {
	login := func(key seal.KeyInfo) bool { return key.Use == seal.UseLogin && k.names(key.ID) }
	if !slices.ContainsFunc(k.Ring.Keys(), login) {
		return nil
	}
	jwks, since, err := p.Engine.KeysSince(ctx)
	if err != nil {
		return err
	}
	if !bytes.Equal(jwks, k.Ring.JWKS()) {
		return fmt.Errorf("the published public key is not this keyring's: start renewd with it; "+
			"see: %s doctor", k.Program)
	}
	kept, err := p.Engine.LoginsKept(ctx)
	if err != nil {
		return err
	}
	// A publisher uses a fetched key for minutes, and may send a sealed login later.
	if until := since.Add(kept + p.Conf.LoginMaxAge + time.Hour); p.Engine.Now().Before(until) {
		return fmt.Errorf("logins sealed to a login key of before may come "+
			"until %s: try again then",
			plain.Clock(until))
	}
	return nil
}
