package daemon

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// diary notes who ended when.
type diary struct {
	mu    sync.Mutex
	ended []string
}

func (d *diary) part(name string, err error, after time.Duration) Service {
	return func(ctx context.Context) error {
		if err != nil {
			<-time.After(after)
		} else {
			<-ctx.Done()
			<-time.After(after)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.ended = append(d.ended, name)
		return err
	}
}

func TestLayersEndInReverse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, stop)
		var d diary
		err := Supervise(ctx, []Service{d.part("ground", nil, 0)},
			[]Service{d.part("support", nil, time.Second)},
			[]Service{d.part("slow", nil, time.Minute), d.part("quick", nil, 0)})
		if err != nil {
			t.Error(err)
		}
		if want := []string{"quick", "slow", "support", "ground"}; !slices.Equal(d.ended, want) {
			t.Errorf("ended as %v, want %v", d.ended, want)
		}
	})
}

func TestLayersEndWhenAPartFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var d diary
		broken := errors.New("broken")
		err := Supervise(t.Context(), []Service{d.part("ground", nil, 0)},
			[]Service{d.part("support", broken, time.Second)}, []Service{d.part("work", nil, 0)})
		if !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
		if want := []string{"support", "work", "ground"}; !slices.Equal(d.ended, want) {
			t.Errorf("ended as %v, want %v", d.ended, want)
		}
	})
}

func TestLayersGoOnWhenAPartIsDone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		time.AfterFunc(time.Hour, stop)
		began := time.Now()
		err := Supervise(ctx, []Service{func(context.Context) error { return nil }},
			[]Service{atEnd(func() {})})
		if err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d != time.Hour {
			t.Errorf("ended after %v", d)
		}
	})
}
