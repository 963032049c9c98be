package admin

import (
	"strings"
	"testing"
	"time"
)

// The doctor says when a signed set ends, or is of another key.
func TestDoctorLooksAtTheSignature(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for says, tt := range map[string]struct {
		until time.Time
		same  bool
	}{
		"":             {now.Add(60 * 24 * time.Hour), true},
		"ends at":      {now.Add(24 * time.Hour), true},
		"another than": {now.Add(60 * 24 * time.Hour), false},
	} {
		f := aboutSigned(tt.until, tt.same, now, "renewd")
		if f.Found != "" != (says != "") || !strings.Contains(f.Found, says) {
			t.Errorf("want %q, got %+v", says, f)
		}
	}
}
