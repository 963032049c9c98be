package refresh

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/grant"
)

// What a provider says may name a user: it is in the log of who asked for it, and nowhere else.
func TestAProvidersWordsAreLoggedAtDebugLevelOnly(t *testing.T) {
	f := &grant.Fault{
		Class:  grant.Config,
		Op:     "refresh",
		Code:   "invalid_client",
		Detail: "wanted: client_secret_basic",
	}
	for level, want := range map[slog.Level]bool{slog.LevelDebug: true, slog.LevelInfo: false} {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level}))
		(&faults{&job{Consumer: &Consumer{Config: Config{Logger: log}}}}).log(t.Context(), f)
		got := strings.Contains(out.String(), "wanted")
		if got != want || !strings.Contains(out.String(), "invalid_client") {
			t.Errorf("%s: %s", level, out.String())
		}
	}
}
