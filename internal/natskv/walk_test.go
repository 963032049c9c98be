package natskv_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/natskv"
	"github.com/renewd/renewd/internal/testkit/storetest"
	"github.com/renewd/renewd/internal/topology"
)

// disturbed does something each time a walk has asked where the stream ends.
type disturbed struct {
	jetstream.JetStream
	looked func()
}

func (d disturbed) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	s, err := d.JetStream.Stream(ctx, name)
	d.looked()
	return s, err
}

// A walk ends even if records are written at any moment. It meets each grant, also a grant that
// moves while the walk looks.
func TestWalkEndsWhileOthersWrite(t *testing.T) {
	const grants = 200
	js := server(t)
	s := open(t, js, 1)
	var all []grant.Grant
	for n := range grants {
		g := grant.Grant{Key: grant.Key{Provider: "p", User: strconv.Itoa(n)}}
		var err error
		if g.Revision, err = s.Save(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		all = append(all, g)
	}
	met, walking := map[string]bool{}, false
	var written [grants]int
	write := func() {
		if !walking {
			return
		}
		// Two records move all the time once they were met, and the records next to be met move as
		// often as a renewal may.
		moved := 0
		for i := range all {
			ahead := !met[all[i].User]
			if ahead && (moved == 3 || written[i] == 6) || !ahead && i != grants/2 && i != 0 {
				continue
			}
			moved, written[i] = moved+1, written[i]+1
			var err error
			if all[i].Revision, err = s.Save(t.Context(), all[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	walker, err := natskv.Open(t.Context(), disturbed{js, write}, natskv.Config{
		Bucket: topology.BucketGrants,
		Cipher: storetest.Cipher{},
		Now:    time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	walking = true
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // of a walk without an end
	defer cancel()
	for cursor, pages := "", 0; ; pages++ {
		page, next, err := walker.ListDue(ctx, cursor, 20)
		if err != nil || pages > 10*grants {
			t.Fatalf("after %d pages, which met %d of %d grants: %v", pages, len(met), grants, err)
		}
		for _, d := range page {
			met[d.User] = true
		}
		if cursor = next; cursor == "" {
			break
		}
	}
	if len(met) != grants {
		t.Errorf("the walk met %d of %d grants", len(met), grants)
	}
}

func TestCursorsOfOthersAreRefused(t *testing.T) {
	s := open(t, server(t), 1)
	for _, cursor := range []string{"x", "1", "1.1", "1.0.0", "1.1.0 ", "-1.1.0", "p/u"} {
		if _, _, err := s.List(t.Context(), cursor, 10); err == nil {
			t.Errorf("took %q", cursor)
		}
	}
}

// remote is server by TCP.
func remote(b *testing.B) jetstream.JetStream {
	b.Helper()
	s, err := natsd.Start(b.Context(), natsd.Config{StoreDir: b.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.Shutdown)
	nc, err := nats.Connect(s.ClientURL())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	return js
}

// BenchmarkWalk lists when each of 100,000 grants is due, as the reconciler does, after each was
// rewritten once, in another order, so that the walk goes over gaps.
func BenchmarkWalk(b *testing.B) {
	const grants, writers = 100_000, 64
	s := open(b, remote(b), 1)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			saved := map[int]grant.Grant{}
			for n := w; n < grants; n += writers {
				g := storetest.Full(grant.Key{Provider: "p", User: fmt.Sprintf("user-%06d", n)})
				g.Claim = nil
				var err error
				if g.Revision, err = s.Save(b.Context(), g); err != nil {
					b.Error(err)
					return
				}
				saved[n] = g
			}
			for _, g := range saved {
				if _, err := s.Save(b.Context(), g); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for b.Loop() {
		met := 0
		for cursor, more := "", true; more; more = cursor != "" {
			page, next, err := s.ListDue(b.Context(), cursor, 500)
			if err != nil {
				b.Fatal(err)
			}
			met += len(page)
			cursor = next
		}
		if met != grants {
			b.Fatalf("met %d of %d grants", met, grants)
		}
	}
	b.ReportMetric(grants*float64(b.N)/b.Elapsed().Seconds(), "grants/s")
}
