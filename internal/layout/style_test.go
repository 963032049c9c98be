package layout

import (
	"go/ast"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Each package says once, in three lines or more, what it owns, what it never does and what it
// promises.
func TestPackageDocs(t *testing.T) {
	const fewest = 3
	for name, files := range readRepository(t).packages {
		var docs []string
		code := false
		for _, f := range files {
			code = code || !f.test
			if text := strings.TrimSpace(f.tree.Doc.Text()); text != "" && !f.test {
				docs = append(docs, f.path)
				if lines := strings.Count(text, "\n") + 1; lines < fewest {
					t.Errorf("%s: a package comment of %d lines: say what the package owns, "+
						"never does and promises", f.path, lines)
				}
			}
		}
		if code && len(docs) != 1 {
			t.Errorf("%s: package comments in %q, want one", name, docs)
		}
	}
}

// calls lists the calls of pkg.function in f, for a package of the standard library.
func (f source) calls(pkg string, functions ...string) []ast.Node {
	local := f.localName(pkg)
	if local == "" {
		return nil
	}
	var found []ast.Node
	ast.Inspect(f.tree, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok && slices.Contains(functions, s.Sel.Name) {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == local {
				found = append(found, s)
			}
		}
		return true
	})
	return found
}

// Code that runs before main cannot be given its logger, clock or settings.
func TestNoInit(t *testing.T) {
	readRepository(t).files(func(f source) {
		for _, d := range f.tree.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: func init", f.line(fn))
			}
		}
	})
}

// A test waits for an event, not for a time.
func TestNoSleepInTests(t *testing.T) {
	readRepository(t).files(func(f source) {
		if !f.test {
			return
		}
		for _, n := range f.calls("time", "Sleep") {
			t.Errorf("%s: time.Sleep in a test: wait for a signal, or poll with a deadline",
				f.line(n))
		}
	})
}

// Only programs read the environment; all other code is given what it needs. testkit and pgtest,
// parts of the tests, ask whether this is CI. keyfile passes the environment on to the programs
// that it starts.
func TestEnvironmentIsReadInCmdOnly(t *testing.T) {
	readRepository(t).files(func(f source) {
		if f.test || strings.HasPrefix(f.path, "cmd/") || strings.HasPrefix(f.path, "bench/") ||
			strings.HasPrefix(f.path, "internal/testkit/pgtest/") ||
			f.path == "internal/testkit/testkit.go" || f.path == "internal/keyfile/keyfile.go" {
			return
		}
		for _, n := range f.calls("os", "Getenv", "LookupEnv", "Environ", "ExpandEnv") {
			t.Errorf("%s: reads the environment outside cmd", f.line(n))
		}
	})
}

// Names of streams and buckets are said once, in the package that owns them.
func TestNamesOfStreamsAreSaidOnce(t *testing.T) {
	name := regexp.MustCompile(`^"(KV_)?(LOGINS|REQUESTS|RENEWALS|OUTCOMES|PARKED|renewd_[a-z]+)"$`)
	owners := map[string]int{"schema/names.go": 0, "internal/topology/topology.go": 0}
	readRepository(t).files(func(f source) {
		if f.test {
			return
		}
		ast.Inspect(f.tree, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || !name.MatchString(lit.Value) {
				return true
			}
			if _, owner := owners[f.path]; !owner {
				t.Errorf("%s: %s: take the constant of schema or internal/topology", f.line(lit),
					lit.Value)
			}
			owners[f.path]++
			return true
		})
	})
	for path, n := range owners {
		if n == 0 {
			t.Errorf("%s names no stream: the test looks for the wrong names", path)
		}
	}
}

// A pure package is told the time.
func TestPurePackagesHaveNoClock(t *testing.T) {
	for name, files := range readRepository(t).packages {
		for _, f := range files {
			if f.test || !allowed[name].pure {
				continue
			}
			for _, n := range f.calls(
				"time", "Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer",
				"NewTicker", "Tick",
			) {
				t.Errorf("%s: looks at the clock in a pure package", f.line(n))
			}
		}
	}
}

func TestNothingIsPutOff(t *testing.T) {
	later := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XXX)\b`)
	readRepository(t).files(func(f source) {
		for _, group := range f.tree.Comments {
			for _, c := range group.List {
				if later.MatchString(c.Text) {
					t.Errorf("%s: %s", f.line(c), c.Text)
				}
			}
		}
	})
}

// The checks above find what they look for.
func TestCallsAreFound(t *testing.T) {
	r := readRepository(t)
	now, reads := 0, 0
	r.files(func(f source) {
		now += len(f.calls("time", "Now"))
		reads += len(f.calls("os", "ReadFile"))
	})
	if now == 0 || reads == 0 {
		t.Errorf("time.Now %d times, os.ReadFile %d times", now, reads)
	}
}

// The README's program is the one that compiles.
func TestReadmeQuotesTheProgram(t *testing.T) {
	program, err := os.ReadFile("../../docs/examples/force-logout/main.go")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "```go\n"+string(program)+"```") {
		t.Error("README.md: the program under \"Listen to renewd\" is not " +
			"docs/examples/force-logout/main.go")
	}
}
