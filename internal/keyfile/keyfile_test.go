package keyfile

import (
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/settings"
)

// A program that never ends, and leaves another one behind, is given up.
func TestAProgramWithoutAnEndIsGivenUp(t *testing.T) {
	t.Parallel()
	endless := settings.Command{"sh", "-c", "sleep 5 & exec sleep 600"}
	_, err := pipe(t.Context(), endless, nil, 100*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "longer than 100ms") {
		t.Error(err)
	}
}
