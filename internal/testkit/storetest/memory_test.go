package storetest_test

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/testkit/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(*testing.T) storetest.Fixture {
		m := storetest.NewMemory(time.Now)
		return storetest.Fixture{
			Store:  m,
			Damage: func(_ *testing.T, k grant.Key, d storetest.Damage) { m.Damage(k, d) },
			Traces: func(_ *testing.T, k grant.Key) int { return m.Traces(k) },
		}
	})
}
