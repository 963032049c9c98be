package layout

import (
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
)

// entry says what the code of one package, tests aside, may import beside the standard library.
type entry struct {
	ours    []string // packages of this module
	modules []string // modules of others
	pure    bool     // no network, files, processes, clock: see impure
}

const (
	backoff  = "github.com/cenkalti/backoff/v4"
	nats     = "github.com/nats-io/nats.go"
	oauth2   = "golang.org/x/oauth2"
	nuid     = "github.com/nats-io/nuid"
	pgx      = "github.com/jackc/pgx/v5"
	otel     = "go.opentelemetry.io/otel"
	otelM    = "go.opentelemetry.io/otel/metric"
	otelT    = "go.opentelemetry.io/otel/trace"
	otelHTTP = "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	errgroup = "golang.org/x/sync"
	rate     = "golang.org/x/time"
)

// allowed is the table of imports. They point one way: cmd → internal/daemon → consumers,
// publishers, adapters → internal/grant and schema → the standard library. Adapters never import
// one another, nor do the three consumers. Only cmd, internal/daemon and internal/admin join them,
// and only the daemon loads the OpenTelemetry SDK. Only tests, the chaos program and the benchmark
// import internal/testkit.
var allowed = map[string]entry{
	"schema": {pure: true},
	"publishers": {
		ours:    []string{"schema", "internal/seal", "internal/secret"},
		modules: []string{nats, nuid, backoff, otel, otelT},
	},
	"consumers": {
		ours:    []string{"schema", "internal/pull", "internal/runner", "internal/seal"},
		modules: []string{nats, oauth2, otelM, otelT},
	},
	"internal/pull": {
		modules: []string{nats},
	},
	"internal/runner": {
		ours:    []string{"schema", "internal/pull"},
		modules: []string{nats, otel, otelM, otelT},
	},
	"consumers/login": {
		ours:    []string{"schema", "internal/grant", "internal/runner", "internal/secret"},
		modules: []string{nuid},
	},
	"consumers/request": {
		ours: []string{"schema", "internal/grant", "internal/runner"},
	},
	"consumers/refresh": {
		ours:    []string{"schema", "internal/grant", "internal/runner", "internal/secret"},
		modules: []string{backoff, nuid, otel, otelM},
	},
	"internal/secret": {pure: true},
	"internal/grant": {
		ours:    []string{"schema", "internal/secret"},
		modules: []string{backoff},
		pure:    true,
	},
	"internal/seal": {
		ours:    []string{"internal/secret"},
		modules: []string{"github.com/go-jose/go-jose/v4"},
		pure:    true,
	},
	"internal/idp": {
		ours: []string{"schema", "internal/grant", "internal/secret"},
		modules: []string{
			"github.com/coreos/go-oidc/v3", "github.com/go-jose/go-jose/v4", otelHTTP, otelM,
			otelT,
		},
	},
	"internal/audit": {ours: []string{"schema"}, modules: []string{nats}},
	"internal/senders": {
		ours:    []string{"schema"},
		modules: []string{rate},
		pure:    true,
	},
	"internal/health": {
		ours:    []string{"schema", "internal/grant"},
		modules: []string{nats},
	},
	"internal/topology": {
		ours:    []string{"schema"},
		modules: []string{nats},
	},
	"internal/stream": {
		ours:    []string{"schema", "internal/grant", "internal/pull", "internal/topology"},
		modules: []string{nats, otel, otelM, errgroup},
	},
	"internal/reconcile": {
		ours:    []string{"schema", "internal/grant", "internal/topology", "internal/stream"},
		modules: []string{nats, otel, otelM, errgroup, rate},
	},
	"internal/natskv": {
		ours:    []string{"schema", "internal/grant"},
		modules: []string{nats},
	},
	"internal/postgres": {
		ours:    []string{"schema", "internal/grant", "internal/secret"},
		modules: []string{pgx, "github.com/pressly/goose/v3", "github.com/exaring/otelpgx", otelT},
	},
	"internal/natsd": {
		ours:    []string{"internal/secret"},
		modules: []string{nats, "github.com/nats-io/nats-server/v2", "github.com/nats-io/nkeys"},
	},
	"internal/settings": {
		ours: []string{
			"internal/secret", "schema", "internal/grant", "internal/health", "internal/idp",
			"internal/senders", "internal/clients",
			"internal/sink", "internal/sink/mail", "internal/sink/redis", "internal/sink/sql",
			"internal/sink/webhook", "internal/source/hook", "internal/source/sql",
			"internal/topology",
		},
		modules: []string{nats, pgx, "go.yaml.in/yaml/v3"}, // to check addresses and keys
	},
	"internal/pseudonym": {
		ours: []string{"schema", "internal/grant"},
		pure: true,
	},
	"internal/testkit/storetest": {
		ours: []string{
			"schema", "internal/grant", "internal/seal", "internal/secret", "internal/testkit/link",
		},
	},
	"internal/testkit/pgtest": {
		modules: []string{pgx},
	},
	"internal/testkit":        {},
	"internal/testkit/link":   {},
	"internal/testkit/proc":   {},
	"internal/testkit/golden": {},
	"internal/testkit/hooktest": {
		modules: []string{"github.com/standard-webhooks/standard-webhooks/libraries"},
	},
	"internal/testkit/mariatest": {
		ours: []string{"internal/testkit", "internal/testkit/proc"},
	},
	"internal/testkit/redistest": {
		ours: []string{"internal/testkit", "internal/testkit/proc"},
	},
	"internal/testkit/smtptest": {
		ours: []string{"internal/testkit"},
	},
	"internal/testkit/nats": {
		ours:    []string{"internal/testkit", "internal/testkit/link"},
		modules: []string{nats, "github.com/nats-io/nats-server/v2"},
	},
	"internal/testkit/streams": {
		ours: []string{
			"schema", "internal/grant", "internal/natsd", "internal/topology", "internal/stream",
		},
		modules: []string{nats, "go.opentelemetry.io/otel/sdk/metric"},
	},
	"internal/e2e":        {},
	"internal/systemtest": {},
	"internal/layout":     {},

	// The packages that renewd's interfaces to the outside are built on.
	"internal/clients": {
		ours:    []string{"schema"},
		modules: []string{nats},
	},
	"internal/sink": {
		ours: []string{
			"schema", "internal/bucket", "internal/lease", "internal/pull", "internal/runner",
			"internal/senders", "internal/topology",
		},
		modules: []string{nats, nuid, otel, otelM, otelT},
	},
	"internal/sink/session": {
		ours: []string{"schema", "internal/grant", "internal/sink"},
	},
	"internal/appdb": {
		ours:    []string{"internal/secret"},
		modules: []string{pgx, "github.com/go-sql-driver/mysql"},
	},
	"internal/bucket": {modules: []string{nats}},
	"internal/lease":  {ours: []string{"internal/bucket"}, modules: []string{nats}},
	"internal/source/sql": {
		ours: []string{
			"schema", "publishers", "internal/appdb", "internal/bucket", "internal/lease",
			"internal/secret", "internal/senders", "internal/topology",
		},
		modules: []string{nats, errgroup, otel, otelM},
	},
	"internal/sink/sql": {
		ours: []string{
			"schema", "internal/appdb", "internal/grant", "internal/secret", "internal/senders",
			"internal/sink", "internal/sink/session",
		},
		modules: []string{pgx},
	},
	"internal/sink/redis": {
		ours: []string{
			"schema", "internal/secret", "internal/sink", "internal/sink/session",
		},
		modules: []string{"github.com/redis/go-redis/v9"},
	},
	"internal/sink/mail": {
		ours: []string{
			"schema", "internal/secret", "internal/sink", "internal/sink/session",
		},
		modules: []string{"github.com/wneessen/go-mail"},
	},
	"internal/sink/webhook": {
		ours:    []string{"schema", "internal/secret", "internal/sink"},
		modules: []string{"github.com/go-jose/go-jose/v4"},
	},
	"internal/source/hook": {
		ours: []string{
			"schema", "publishers", "internal/bucket", "internal/grant", "internal/secret",
			"internal/senders", "internal/topology",
		},
		modules: []string{
			nats, otel, otelM, "github.com/coreos/go-oidc/v3", "github.com/go-jose/go-jose/v4",
		},
	},
	"internal/api": {
		ours: []string{
			"schema", "consumers", "publishers", "internal/grant", "internal/clients",
			"internal/senders", "internal/source/hook", "internal/tokens",
		},
		modules: []string{nats, otel, otelM, rate, "github.com/danielgtaylor/huma/v2"},
	},
	"internal/tokens": {
		ours:    []string{"schema", "consumers", "internal/grant", "internal/secret"},
		modules: []string{nats, nuid, otel, otelM},
	},
	"internal/tokens/door": {
		ours: []string{"schema", "internal/seal", "internal/tokens"}, modules: []string{nats},
	},

	// quoted in the README
	"docs/examples/force-logout": {
		ours:    []string{"schema", "consumers"},
		modules: []string{nats},
	},

	// Starts all the rest in separate processes, and looks at what they leave behind.
	"cmd/chaos": {
		ours: []string{
			"internal/secret", "schema", "publishers", "consumers", "internal/grant",
			"internal/seal", "internal/senders", "internal/source/sql",
			"internal/standin", "internal/topology", "internal/natskv", "internal/postgres",
			"internal/testkit/link", "internal/testkit/pgtest", "internal/testkit/proc",
		},
		modules: []string{
			nats, "github.com/nats-io/nats-server/v2", pgx, "github.com/alecthomas/kong",
		},
	},

	// Starts all the rest too, and the programs that it is compared with. It is a separate module,
	// since River is no part of the product.
	"bench": {
		ours: []string{
			"internal/secret", "schema", "publishers", "consumers", "internal/grant",
			"internal/seal", "internal/runner", "internal/idp",
			"internal/standin", "internal/topology", "internal/stream", "internal/postgres",
			"internal/natsd", "internal/testkit/pgtest", "internal/testkit/proc",
			"internal/testkit/storetest",
		},
		modules: []string{
			nats, pgx, otelM, otelT, errgroup, "github.com/alecthomas/kong",
			"github.com/riverqueue/river", "github.com/riverqueue/river/riverdriver/riverpgxv5",
			"github.com/valyala/fasthttp",
		},
	},

	// Only tests. A separate module, since what the providers require is no part of the product.
	"internal/e2e/realidp": {},

	"internal/standin": {}, // also a part of the binary: the dev and demo commands

	"internal/plain": {pure: true},
	"internal/keyfile": {
		ours: []string{"internal/seal", "internal/settings", "internal/plain", "internal/secret"},
	},
	// Knows which options the engine needs of a connection.
	"internal/natsconn": {
		ours:    []string{"internal/settings", "internal/stream", "internal/secret"},
		modules: []string{nats},
	},
	"internal/daemon": {
		ours: []string{
			"internal/secret", "schema", "consumers/login", "consumers/request",
			"consumers/refresh",
			"internal/grant", "internal/runner", "internal/seal", "internal/idp", "internal/health",
			"internal/topology", "internal/stream", "internal/reconcile", "internal/natskv",
			"internal/postgres", "internal/natsd", "internal/pseudonym", "internal/settings",
			"internal/keyfile", "internal/natsconn", "internal/senders", "internal/tokens",
			"internal/tokens/door", "internal/clients", "internal/api", "internal/sink",
			"internal/sink/mail", "internal/sink/redis", "internal/sink/sql",
			"internal/sink/webhook", "internal/source/hook", "internal/source/sql", "publishers",
		},
		modules: []string{
			nats, nuid, otel, otelM, otelT, "go.opentelemetry.io/otel/sdk",
			"go.opentelemetry.io/otel/sdk/metric", "go.opentelemetry.io/otel/exporters/prometheus",
			"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp",
			"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp",
			"github.com/prometheus/client_golang", "github.com/KimMachineGun/automemlimit",
		},
	},

	"internal/admin": {
		ours: []string{
			"internal/secret", "schema", "publishers", "internal/grant", "internal/seal",
			"internal/idp",
			"internal/health", "internal/topology", "internal/stream", "internal/reconcile",
			"internal/settings", "internal/keyfile", "internal/natsconn", "internal/daemon",
			"internal/plain", "internal/audit", "internal/sink", "internal/sink/sql",
			"internal/sink/webhook", "internal/source/hook", "internal/source/sql",
		},
		modules: []string{nats, nuid},
	},
	"internal/demo": {
		ours:    []string{"schema", "publishers", "consumers", "internal/standin"},
		modules: []string{nats, errgroup},
	},

	"cmd/renewd": {
		ours: []string{
			"internal/secret", "schema", "publishers", "consumers", "internal/grant",
			"internal/seal", "internal/idp",
			"internal/standin", "internal/health", "internal/topology", "internal/stream",
			"internal/reconcile", "internal/postgres", "internal/natsd", "internal/pseudonym",
			"internal/settings", "internal/keyfile", "internal/natsconn", "internal/daemon",
			"internal/admin", "internal/api", "internal/audit", "internal/clients", "internal/demo",
			"internal/plain", "internal/senders", "internal/sink", "internal/source/hook",
			"internal/source/sql",
		},
		modules: []string{
			nats, nuid, pgx, errgroup, "github.com/alecthomas/kong", "golang.org/x/term",
		},
	},
}

// impure are the packages of the standard library whose work a pure package leaves to others.
var impure = []string{
	"net", "net/http", "net/smtp", "net/rpc", "os", "os/exec", "os/signal", "os/user",
	"database/sql", "log", "syscall", "testing",
}

func TestImportTable(t *testing.T) {
	r := readRepository(t)
	for _, name := range slices.Sorted(maps.Keys(allowed)) {
		if r.packages[name] == nil {
			t.Errorf("%s is in the table, but there is no such package", name)
		}
	}
	edges := 0
	for _, name := range slices.Sorted(maps.Keys(r.packages)) {
		e, ok := allowed[name]
		if !ok {
			t.Errorf("%s has no entry in the table: say what it may import", name)
			continue
		}
		for _, f := range r.packages[name] {
			if f.test {
				continue
			}
			for _, imported := range f.imports() {
				edges++
				if why := r.forbids(e, imported); why != "" {
					t.Errorf("%s imports %s: %s", f.path, imported, why)
				}
			}
		}
	}
	if edges == 0 {
		t.Error("no import found")
	}
}

// forbids says why e does not allow the import, if so.
func (r repository) forbids(e entry, imported string) string {
	if ours, ok := strings.CutPrefix(imported, r.module+"/"); ok {
		if !slices.Contains(e.ours, ours) {
			return "the table does not allow it"
		}
		return ""
	}
	if first, _, _ := strings.Cut(imported, "/"); !strings.Contains(first, ".") {
		if e.pure && slices.Contains(impure, imported) {
			return "the package is pure"
		}
		return ""
	}
	module := r.moduleOf(imported)
	switch {
	case module == "":
		return "go.mod does not require it"
	case !slices.Contains(e.modules, module):
		return "the table does not allow the module " + module
	}
	return ""
}

// moduleOf returns the module that go.mod requires for a package, which is the longest module path
// that is a folder of the package.
func (r repository) moduleOf(imported string) string {
	for at := imported; at != "."; at = path.Dir(at) {
		if slices.Contains(r.requires, at) {
			return at
		}
	}
	return ""
}

// The table itself keeps the rules that it stands for.
func TestImportTableKeepsTheRules(t *testing.T) {
	testOnly := func(name string) bool {
		tests := []string{
			"internal/systemtest", "internal/e2e", "internal/e2e/realidp", "internal/layout",
		}
		return strings.HasPrefix(name+"/", "internal/testkit/") || slices.Contains(tests, name)
	}
	// in the order of their imports
	engine := []string{"internal/topology", "internal/stream", "internal/reconcile"}
	adapters := []string{
		"internal/postgres", "internal/natskv", "internal/stream", "internal/reconcile",
		"internal/idp", "internal/health", "internal/natsd",
	}
	// The settings hold the options of two adapters, but open neither. A connection is made as the
	// engine wants it.
	options := map[string][]string{
		"internal/settings": {"internal/idp", "internal/health"},
		"internal/natsconn": {"internal/stream"},
	}
	consumers := []string{"consumers/login", "consumers/request", "consumers/refresh"}
	for name, e := range allowed {
		joins := strings.HasPrefix(name, "cmd/") || name == "bench" ||
			name == "internal/daemon" || name == "internal/admin"
		for _, target := range e.ours {
			_, known := allowed[target]
			switch {
			case !known:
				t.Errorf("%s may import %s, which has no entry", name, target)
			case strings.HasPrefix(target, "cmd/") || target == name:
				t.Errorf("%s may import %s", name, target)
			case testOnly(target) && !testOnly(name) && name != "cmd/chaos" && name != "bench":
				t.Errorf("%s may import %s outside tests", name, target)
			case slices.Contains(options[name], target):
			case slices.Contains(engine, name) && slices.Contains(engine, target):
			case !joins && !testOnly(name) &&
				slices.Contains(slices.Concat(adapters, consumers), target):
				t.Errorf("%s may import %s: only cmd, daemon and admin join the parts", name,
					target)
			}
			if reaches(target, name, map[string]bool{}) {
				t.Errorf("%s and %s may import one another", name, target)
			}
		}
		for _, module := range e.modules {
			if strings.Contains(module, "otel/sdk") && name != "internal/daemon" &&
				!testOnly(name) {
				t.Errorf("%s may load the OpenTelemetry SDK", name)
			}
		}
	}
}

func reaches(from, to string, seen map[string]bool) bool {
	if from == to {
		return true
	}
	seen[from] = true
	for _, next := range allowed[from].ours {
		if !seen[next] && reaches(next, to, seen) {
			return true
		}
	}
	return false
}
