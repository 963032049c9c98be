package publishers

import (
	"testing"
	"time"
)

// A set whose signature is over does not serve on, however fresh it is.
func TestSignedKeysExpireInTheCache(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		until time.Time
		stays bool
	}{
		{time.Time{}, true},
		{now.Add(time.Second), true},
		{now, false},
		{now.Add(-time.Hour), false},
	} {
		k := keys{jwks: []byte("{}"), at: now, until: tt.until}
		if k.expire(now); (k.jwks != nil) != tt.stays {
			t.Errorf("until %v: stays %t", tt.until.Sub(now), k.jwks != nil)
		}
	}
}
