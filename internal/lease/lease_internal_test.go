package lease

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A process that stood still learns from the clock that its lease is over, before anything else of
// it has run again.
func TestTermEndsByTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		term := newTerm(t.Context(), time.Now().Add(15*time.Second))
		defer term.lose(nil)
		under, done := context.WithCancel(term)
		defer done()
		<-time.After(15 * time.Second)
		if term.Err() != nil {
			t.Error("the lease is over too early:", term.Err())
		}
		<-time.After(time.Nanosecond)
		if term.Err() == nil || !errors.Is(context.Cause(term), ErrLost) {
			t.Error("the lease lasts longer than it does:", context.Cause(term))
		}
		<-under.Done()
		if !errors.Is(context.Cause(under), ErrLost) {
			t.Error("work under the lease ends with", context.Cause(under))
		}
	})
}
