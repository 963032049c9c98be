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
	nuid     = "github.com/nats-io/nuid"
	pgx      = "github.com/jackc/pgx/v5"
	otel     = "go.opentelemetry.io/otel"
	otelM    = "go.opentelemetry.io/otel/metric"
	otelT    = "go.opentelemetry.io/otel/trace"
	otelHTTP = "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	errgroup = "golang.org/x/sync"
	rate     = "golang.org/x/time"
)

// allowed is the table of imports. They point one way: cmd → consumers, publishers, adapters →
// internal/grant and schema → the standard library. Adapters never import one another, nor do the
// three consumers; only cmd loads the OpenTelemetry SDK; nobody but tests, the chaos program and
// the benchmark imports internal/storetest and internal/pgtest.
var allowed = map[string]entry{
	"schema":                  {pure: true},
	"publishers":              {ours: []string{"schema", "internal/seal"}, modules: []string{nats, nuid, backoff, otel, otelT}},
	"consumers":               {ours: []string{"schema"}, modules: []string{nats, otel, otelM, otelT}},
	"consumers/login":         {ours: []string{"schema", "consumers", "internal/grant"}, modules: []string{nuid}},
	"consumers/request":       {ours: []string{"schema", "consumers", "internal/grant"}},
	"consumers/refresh":       {ours: []string{"schema", "consumers", "internal/grant"}, modules: []string{backoff, nuid, otel, otelM}},
	"internal/grant":          {ours: []string{"schema"}, modules: []string{backoff}, pure: true},
	"internal/seal":           {modules: []string{"github.com/go-jose/go-jose/v4"}, pure: true},
	"internal/idp":            {ours: []string{"schema", "internal/grant"}, modules: []string{"github.com/coreos/go-oidc/v3", "github.com/go-jose/go-jose/v4", otelHTTP, otelM, otelT}},
	"internal/senders":        {ours: []string{"schema"}, pure: true},
	"internal/guard":          {ours: []string{"schema", "internal/grant"}, modules: []string{nats}},
	"internal/stream":         {ours: []string{"schema", "internal/grant"}, modules: []string{nats, otel, otelM, errgroup, rate}},
	"internal/natskv":         {ours: []string{"schema", "internal/grant"}, modules: []string{nats}},
	"internal/postgres":       {ours: []string{"schema", "internal/grant"}, modules: []string{pgx, "github.com/pressly/goose/v3", "github.com/exaring/otelpgx", otelT}},
	"internal/natsd":          {ours: []string{"internal/grant"}, modules: []string{nats, "github.com/nats-io/nats-server/v2", "github.com/nats-io/nkeys"}}, // grant.Secret alone
	"internal/pseudonym":      {ours: []string{"schema", "internal/grant"}, pure: true},
	"internal/storetest":      {ours: []string{"schema", "internal/grant", "internal/seal"}},
	"internal/pgtest":         {modules: []string{pgx}},
	"internal/testkit/golden": {},
	"internal/natstest":       {modules: []string{"github.com/nats-io/nats-server/v2"}},
	"internal/e2e":            {},
	"internal/systemtest":     {},
	"internal/layout":         {},

	"docs/examples/force-logout": {ours: []string{"schema", "consumers"}, modules: []string{nats}}, // quoted in the README

	// Starts all the rest in processes of their own, and looks at what they leave behind.
	"cmd/chaos": {
		ours: []string{
			"schema", "publishers", "consumers", "internal/grant", "internal/seal", "internal/idp/idptest", "internal/stream", "internal/natskv",
			"internal/postgres", "internal/pgtest",
		},
		modules: []string{nats, "github.com/nats-io/nats-server/v2", pgx, "github.com/alecthomas/kong"},
	},

	// Starts all the rest too, and what it is measured against. A module of its own: River is no
	// part of the product.
	"bench": {
		ours: []string{
			"schema", "publishers", "consumers", "internal/grant", "internal/seal", "internal/idp", "internal/idp/idptest", "internal/stream",
			"internal/postgres", "internal/pgtest", "internal/natsd", "internal/storetest",
		},
		modules: []string{
			nats, pgx, otelM, otelT, errgroup, "github.com/alecthomas/kong", "github.com/riverqueue/river", "github.com/riverqueue/river/riverdriver/riverpgxv5",
			"github.com/valyala/fasthttp",
		},
	},

	// Only tests. A module of its own: what the providers require is no part of the product.
	"internal/e2e/realidp": {},

	"internal/idp/idptest": {}, // also a part of the binary: the dev and demo commands

	"cmd/renewd": {
		ours: []string{
			"schema", "publishers", "consumers", "consumers/login", "consumers/request", "consumers/refresh", "internal/grant", "internal/seal",
			"internal/idp", "internal/idp/idptest", "internal/guard", "internal/senders", "internal/stream", "internal/natskv", "internal/postgres", "internal/natsd",
			"internal/pseudonym",
		},
		modules: []string{
			nats, "github.com/nats-io/nats-server/v2", "github.com/nats-io/nkeys", nuid, pgx, otel, otelM, otelT, otelHTTP, errgroup, rate, backoff,
			"go.opentelemetry.io/otel/sdk", "go.opentelemetry.io/otel/sdk/metric", "go.opentelemetry.io/otel/exporters/prometheus",
			"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp", "go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp",
			"github.com/prometheus/client_golang", "github.com/alecthomas/kong", "go.yaml.in/yaml/v3", "golang.org/x/term",
		},
	},
}

// impure are the packages of the standard library that do what a pure package leaves to others.
var impure = []string{"net", "net/http", "net/smtp", "net/rpc", "os", "os/exec", "os/signal", "os/user", "database/sql", "log", "syscall", "testing"}

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

// moduleOf returns the module that go.mod requires for a package: the longest that is a folder of
// it.
func (r repository) moduleOf(imported string) string {
	for at := imported; at != "."; at = path.Dir(at) {
		if slices.Contains(r.requires, at) {
			return at
		}
	}
	return ""
}

// The table itself keeps to the rules that it stands for.
func TestImportTableKeepsTheRules(t *testing.T) {
	testOnly := []string{
		"internal/storetest", "internal/pgtest", "internal/natstest", "internal/testkit/golden", "internal/systemtest", "internal/e2e", "internal/e2e/realidp", "internal/layout",
	}
	adapters := []string{"internal/postgres", "internal/natskv", "internal/stream", "internal/idp", "internal/guard", "internal/natsd"}
	consumers := []string{"consumers/login", "consumers/request", "consumers/refresh"}
	for name, e := range allowed {
		program := strings.HasPrefix(name, "cmd/") || name == "bench"
		for _, target := range e.ours {
			_, known := allowed[target]
			switch {
			case !known:
				t.Errorf("%s may import %s, which has no entry", name, target)
			case strings.HasPrefix(target, "cmd/") || target == name:
				t.Errorf("%s may import %s", name, target)
			case slices.Contains(testOnly, target) && name != "cmd/chaos" && name != "bench":
				t.Errorf("%s may import %s outside tests", name, target)
			case !program && slices.Contains(slices.Concat(adapters, consumers), target):
				t.Errorf("%s may import %s: only cmd joins the parts", name, target)
			}
			if reaches(target, name, map[string]bool{}) {
				t.Errorf("%s and %s may import one another", name, target)
			}
		}
		for _, module := range e.modules {
			if strings.Contains(module, "otel/sdk") && name != "cmd/renewd" {
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
