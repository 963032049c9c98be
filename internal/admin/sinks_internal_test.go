package admin

import (
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/sink"
)

// An operator hears of a sink that no erasure reaches before a user is erased.
func TestSinkThatMissesErasures(t *testing.T) {
	line := SinkLine{Standing: sink.Standing{Name: "app", State: sink.Live}}
	if said := line.trouble(); said != "" {
		t.Errorf("of a sink in order: %s", said)
	}
	line.MissesErasures = true
	if said := line.trouble(); !strings.Contains(said, "have a column hold the field user") {
		t.Errorf("of a sink that misses erasures: %q", said)
	}
}
