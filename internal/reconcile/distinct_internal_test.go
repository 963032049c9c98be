package reconcile

import (
	"strconv"
	"testing"

	"github.com/renewd/renewd/internal/grant"
)

func TestAKeyMetAgainIsCountedOnce(t *testing.T) {
	for _, n := range []int{0, 1, distinctExact, 5 * distinctExact} {
		d := newDistinct()
		for range 3 {
			for i := range n {
				d.add(grant.Key{Provider: "p", User: strconv.Itoa(i)})
			}
		}
		if off := d.count() - n; n <= distinctExact && off != 0 || off*20 > n || off*20 < -n {
			t.Errorf("%d keys counted as %d", n, d.count())
		}
		if len(d.seen) > distinctExact {
			t.Errorf("%d keys kept", len(d.seen))
		}
	}
}
