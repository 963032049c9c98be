package refresh

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestTokensArePresentedNoFasterThanPairsAreSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &backlog{limit: 2}
		in := make(chan int, 10)
		enter := func(ctx context.Context, n int) {
			go func() {
				if b.acquire(ctx) == nil {
					in <- n
				}
			}()
			synctest.Wait() // so that they come in order
		}
		for n := range 3 { // none is answered yet: all may
			enter(t.Context(), n)
		}
		b.hold()
		b.hold()
		b.hold()
		gone, leave := context.WithCancelCause(t.Context())
		for n, ctx := range []context.Context{t.Context(), gone, t.Context(), t.Context()} {
			enter(ctx, 10+n)
		}
		if len(in) != 3 {
			t.Fatalf("%d are let in while three pairs wait to be saved", len(in))
		}
		leave(errors.New("shutdown"))
		b.release()
		synctest.Wait()
		if len(in) != 3 {
			t.Fatal("one is let in while as many pairs wait as may")
		}
		b.release()
		synctest.Wait()
		if len(in) != 4 {
			t.Fatalf("%d are let in, want one more for one saved pair", len(in))
		}
		b.cancel() // its call failed
		b.release()
		synctest.Wait()
		if len(in) != 6 || len(b.waiting) != 0 {
			t.Errorf("%d are let in, and %d wait with nothing to wait for", len(in), len(b.waiting))
		}
		for _, want := range []int{0, 1, 2, 10} {
			if got := <-in; got != want {
				t.Errorf("%d is let in before %d", got, want)
			}
		}
	})
}
