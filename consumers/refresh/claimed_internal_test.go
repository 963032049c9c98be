package refresh

import (
	"testing"
	"testing/synctest"
	"time"
)

// A call is ended just before its claim runs out, counted from the last extension; one that is
// answered is not.
func TestTheEndOfAClaimEndsTheCall(t *testing.T) {
	const lasts = 10 * time.Second
	for name, tt := range map[string]struct{ extended, answered, want time.Duration }{
		"never extended": {want: 9500 * time.Millisecond},
		"extended":       {extended: 6 * time.Second, want: 15500 * time.Millisecond},
		"answered":       {answered: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var c claimed
				c.since.Store(&start)
				var ended time.Duration
				stop := c.watch(time.Now, lasts, func() { ended = time.Since(start) })
				if tt.extended > 0 {
					<-time.After(tt.extended)
					now := time.Now()
					c.since.Store(&now)
				}
				if tt.answered > 0 {
					<-time.After(tt.answered)
					stop()
				}
				<-time.After(time.Minute)
				synctest.Wait()
				if tt.answered == 0 {
					stop()
				}
				if ended != tt.want {
					t.Errorf("ended after %v, want %v", ended, tt.want)
				}
			})
		})
	}
}
