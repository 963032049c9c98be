package tokens_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/tokens"
)

// audit is what first reads are told to.
type audit struct {
	mu   sync.Mutex
	told []tokens.FirstRead
	tell func(ctx context.Context) error // nil: works
}

func (a *audit) Tell(ctx context.Context, f tokens.FirstRead) error {
	a.mu.Lock()
	tell := a.tell
	a.mu.Unlock()
	if tell != nil {
		if err := tell(ctx); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.told = append(a.told, f)
	return nil
}

func (a *audit) works(tell func(context.Context) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tell = tell
}

// heard are the readers that were told, with their doors.
func (a *audit) heard() (all []string) {
	synctest.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range a.told {
		all = append(all, f.Reader+" "+string(f.Door))
	}
	slices.Sort(all)
	return all
}

func (w *world) reads(user, reader string, door tokens.Door) {
	w.t.Helper()
	_, err := w.source.Get(w.t.Context(), tokens.Request{
		Provider: "p", User: user, Reader: reader, Door: door,
	})
	w.must(err)
}

// However often a version is read, it is told once for each reader and door.
func TestFirstReadsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &audit{}
		w := newWorld(t, tokens.Config{Tell: a.Tell})
		k := w.has("u", time.Hour)
		for range 100 {
			w.reads("u", "shop", tokens.DoorHTTP)
			w.reads("u", "shop", tokens.DoorNATS)
			w.reads("u", "crm", tokens.DoorNATS)
		}
		if _, err := w.get("nobody"); err == nil {
			t.Error("a token of nobody")
		}
		want := []string{"crm nats", "shop http", "shop nats"}
		if got := a.heard(); !slices.Equal(got, want) {
			t.Errorf("told %v", got)
		}
		first := a.told[0]
		if first.User != "u" || first.Version != 1 || !first.At.Equal(time.Now()) ||
			!first.ExpiresAt.Equal(time.Now().Add(time.Hour)) {
			t.Errorf("%+v", first)
		}
		w.rotate(k)
		w.reads("u", "crm", tokens.DoorNATS)
		if got := a.heard(); len(got) != 4 {
			t.Errorf("of the next version told %v", got)
		}
		ids := map[string]bool{}
		for _, f := range a.told {
			ids[f.ID()] = true
		}
		if again := first; len(ids) != 4 || again.ID() != first.ID() {
			t.Errorf("%d ids", len(ids))
		}
	})
}

// While nothing can be told reads go on, and what was read meanwhile is told later.
func TestNoReadWaitsForItsTelling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &audit{}
		w := newWorld(t, tokens.Config{Tell: a.Tell})
		w.has("u", time.Hour)
		a.works(func(context.Context) error { return errors.New("no leader") })
		began := time.Now()
		w.reads("u", "shop", tokens.DoorHTTP)
		if took := time.Since(began); took > 0 {
			t.Errorf("it waited %v", took)
		}
		a.works(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }) // it hangs
		w.reads("u", "crm", tokens.DoorHTTP)
		<-time.After(time.Minute)
		if got := a.heard(); len(got) > 0 {
			t.Errorf("told %v", got)
		}
		a.works(nil)
		<-time.After(time.Minute)
		if got := a.heard(); !slices.Equal(got, []string{"crm http", "shop http"}) {
			t.Errorf("told %v", got)
		}
	})
}

// What cannot be told is counted, and holds the end up for some seconds only.
func TestWhatIsNotToldIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader := sdk.NewManualReader()
		meter := sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("")
		a := &audit{}
		a.works(func(context.Context) error { return errors.New("no leader") })
		w := newWorld(t, tokens.Config{Tell: a.Tell, Meter: meter})
		w.has("u", time.Hour)
		const readers = 10_000 // more than wait
		for n := range readers {
			w.reads("u", string(rune('a'+n)), tokens.DoorHTTP)
		}
		began := time.Now()
		w.source.Close()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("the end took %v", took)
		}
		var all metricdata.ResourceMetrics
		w.must(reader.Collect(t.Context(), &all))
		for _, m := range all.ScopeMetrics[0].Metrics {
			if m.Name != "renewd.token.reads_untold" {
				continue
			}
			if n := m.Data.(metricdata.Sum[int64]).DataPoints[0].Value; n != readers {
				t.Errorf("%d are counted, want %d", n, readers)
			}
			return
		}
		t.Error("nothing is counted")
	})
}

// An erasure is final: what was read before is not told after it.
func TestNothingIsToldOfAnErasedUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &audit{}
		w := newWorld(t, tokens.Config{Tell: a.Tell})
		k := w.has("u", time.Hour)
		a.works(func(context.Context) error { return errors.New("no leader") })
		w.reads("u", "shop", tokens.DoorHTTP)
		synctest.Wait()
		w.change(k, func(g *grant.Grant) { g.Status, g.Pair = grant.Forgotten, grant.Pair{} })
		a.works(nil)
		<-time.After(time.Minute)
		if got := a.heard(); len(got) > 0 {
			t.Errorf("told %v", got)
		}
	})
}
