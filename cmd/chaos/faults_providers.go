package main

import (
	"context"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/renewd/renewd/internal/idp/idptest"
)

// answers has the provider answer every call like this for a while, or those of some operations.
func answers(from, to time.Duration, f idptest.Fault, ops ...string) func(context.Context, *strike) error {
	return func(ctx context.Context, x *strike) error {
		x.outage = f.Delay == 0 && !slices.Equal(ops, []string{"userinfo"})
		x.provider.SetFault(func(r idptest.Request) *idptest.Fault {
			if ops != nil && !slices.Contains(ops, r.Op) {
				return nil
			}
			return &f
		})
		x.last(ctx, from, to)
		x.provider.SetFault(nil)
		x.healed = time.Now()
		return nil
	}
}

// long503 is an outage that lasts until ctx ends.
func long503(ctx context.Context, x *strike) error {
	x.outage = true
	x.provider.SetFault(func(idptest.Request) *idptest.Fault { return &idptest.Fault{Status: http.StatusServiceUnavailable} })
	<-ctx.Done()
	x.provider.SetFault(nil)
	x.healed = time.Now()
	return nil
}

// some has one token call in five go wrong.
func some(f idptest.Fault) func(context.Context, *strike) error {
	return func(ctx context.Context, x *strike) error {
		var n atomic.Int64
		x.provider.SetFault(func(r idptest.Request) *idptest.Fault {
			if r.Op == "token" && n.Add(1)%5 == 0 {
				return &f
			}
			return nil
		})
		x.last(ctx, 5*time.Second, 12*time.Second)
		x.provider.SetFault(nil)
		return nil
	}
}

// flap has the provider come and go, three times a second.
func flap(ctx context.Context, x *strike) error {
	x.provider.SetFault(func(idptest.Request) *idptest.Fault {
		if time.Now().UnixMilli()/333%2 == 0 {
			return &idptest.Fault{Status: http.StatusBadGateway}
		}
		return nil
	})
	x.last(ctx, 5*time.Second, 12*time.Second)
	x.provider.SetFault(nil)
	x.healed = time.Now()
	return nil
}
