package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/renewd/renewd/internal/standin"
)

// answers has the provider answer every call, or the calls of some operations, with this fault for
// a while.
func answers(
	from, to time.Duration, f standin.Fault, ops ...string,
) func(context.Context, *strike) error {
	return func(ctx context.Context, x *strike) error {
		x.outage = f.Delay == 0 && !slices.Equal(ops, []string{"userinfo"})
		x.provider.SetFault(func(r standin.Request) *standin.Fault {
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

// long503 is an outage until ctx ends.
func long503(ctx context.Context, x *strike) error {
	x.outage = true
	x.provider.SetFault(func(standin.Request) *standin.Fault {
		return &standin.Fault{Status: http.StatusServiceUnavailable}
	})
	<-ctx.Done()
	x.provider.SetFault(nil)
	x.healed = time.Now()
	return nil
}

// pauseProvider pauses a provider as an operator does, and resumes the provider. A command refused
// by busy servers is tried again.
func pauseProvider(ctx context.Context, x *strike) error {
	x.outage = true
	provider := func(ctx context.Context, args ...string) error {
		for {
			again := time.After(time.Second)
			out, err := x.world.command(nil, append([]string{"provider"},
				args...)...).CombinedOutput()
			if err == nil {
				return nil
			}
			select {
			case <-again:
			case <-ctx.Done():
				return fmt.Errorf("provider %v: %w: %s", args, err, out)
			}
		}
	}
	if err := provider(
		ctx, "pause", x.provider.id, "--by", "chaos", "--note", "a fault",
	); err != nil {
		return err
	}
	x.last(ctx, 5*time.Second, 12*time.Second)
	// Resume even when ctx has ended, or the provider's users are not renewed any more.
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	err := provider(limit, "resume", x.provider.id, "--by", "chaos")
	x.healed = time.Now()
	return err
}

// some has every fifth token call go wrong.
func some(f standin.Fault) func(context.Context, *strike) error {
	return func(ctx context.Context, x *strike) error {
		var n atomic.Int64
		x.provider.SetFault(func(r standin.Request) *standin.Fault {
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
	x.provider.SetFault(func(standin.Request) *standin.Fault {
		if time.Now().UnixMilli()/333%2 == 0 {
			return &standin.Fault{Status: http.StatusBadGateway}
		}
		return nil
	})
	x.last(ctx, 5*time.Second, 12*time.Second)
	x.provider.SetFault(nil)
	x.healed = time.Now()
	return nil
}
