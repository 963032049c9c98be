package reconcile

import (
	"hash/maphash"

	"github.com/renewd/renewd/internal/grant"
)

// distinct counts different keys in bounded memory, however often each key comes: a walk meets a
// grant again that was written meanwhile. The count is exact up to distinctExact keys, and off by
// about half a percent beyond. Beyond, distinct keeps only the keys whose hash ends in n zero bits,
// and each kept key counts for 2^n keys.
type distinct struct {
	seed maphash.Seed
	mask uint64
	seen map[uint64]struct{}
}

const distinctExact = 1 << 16

func newDistinct() *distinct {
	return &distinct{seed: maphash.MakeSeed(), seen: map[uint64]struct{}{}}
}

func (d *distinct) add(k grant.Key) {
	h := maphash.Comparable(d.seed, k)
	if h&d.mask != 0 {
		return
	}
	d.seen[h] = struct{}{}
	for len(d.seen) > distinctExact {
		d.mask = d.mask<<1 | 1
		for h := range d.seen {
			if h&d.mask != 0 {
				delete(d.seen, h)
			}
		}
	}
}

func (d *distinct) count() int { return len(d.seen) * int(d.mask+1) }
