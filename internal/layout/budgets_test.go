package layout

import (
	"go/ast"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

const (
	mostLines   = 1000 // of a package, tests aside
	mostColumns = 100  // of a line, a tab counts 4
	mostMethods = 5    // of an interface
	mostUnkeyed = 4    // values of a struct literal without its fields' names
)

// large are the packages that may have more lines, how many, and why they are one package all the
// same.
var large = map[string]struct {
	lines  int
	reason string
}{
	"bench":     {4500, "a program: the legs share the processes that they start"},
	"cmd/chaos": {6300, "a program: faults, users and audit know the same world"},
	"cmd/renewd": {
		6600, "a file a command; what a command does is in internal/admin",
	},
	"consumers": {1500, "the SDK is one import"},
	"consumers/login": {
		1500, "logins and the commands beside them have one order, that of their stream",
	},
	"consumers/refresh": {
		3000, "one renewal: its steps share the record that they rewrite",
	},
	"internal/admin":  {3000, "a file an operation"},
	"internal/api":    {2500, "one HTTP interface: a file a resource"},
	"internal/daemon": {2700, "the place where all parts are joined"},
	"internal/grant": {
		3500, "the rules of one record, without a part that stands alone",
	},
	"internal/health": {2000, "breaker, doubts and pauses decide on one stored state"},
	"internal/idp": {
		3500, "a file an endpoint; presets and classes belong to its calls",
	},
	"internal/postgres":  {2000, "statements, rows and batches of one table"},
	"internal/reconcile": {1500, "three walks that share a lease and a pace"},
	"internal/runner":    {1500, "lease, heartbeat and drain of one message"},
	"internal/seal":      {1500, "one keyring, and the two forms that it seals"},
	"internal/settings":  {2900, "one struct, its checks, its file and its printed form"},
	"internal/sink/sql": {
		2000, "fields, statements, dialects, organisations and erasures of one row",
	},
	"internal/source/hook": {
		2000, "one door: the kinds share what is stored of them, and how they refuse",
	},
	"internal/source/sql": {
		1900, "a row's session, its mark, the import and the watch decide together on one login",
	},
	"internal/sink":    {2500, "line, breaker and ledger decide together on one outcome"},
	"internal/standin": {1500, "one provider, with its faults"},
	"internal/stream": {
		3500,
		"one engine: timers, wakes, outcomes and parked pairs are subjects of the same streams",
	},
	"internal/testkit/storetest": {2000, "one suite for every store"},
	"internal/tokens":            {1500, "one wait for all who ask"},
	"internal/topology":          {1500, "streams as values, and the plan that compares them"},
	"schema":                     {2000, "the contract is one import"},
}

func TestPackagesStaySmall(t *testing.T) {
	for name, files := range readRepository(t).packages {
		lines := 0
		for _, f := range files {
			if !f.test {
				lines += f.set.File(f.tree.Pos()).LineCount()
			}
		}
		most, listed := large[name]
		switch {
		case listed && lines <= mostLines:
			t.Errorf("%s has %d lines: take it off the list of large packages", name, lines)
		case listed && lines > most.lines:
			t.Errorf("%s has %d lines, %d are allowed (%s): which part of it stands alone?",
				name, lines, most.lines, most.reason)
		case !listed && lines > mostLines:
			t.Errorf("%s has %d lines, %d are allowed: split it, or say why not", name, lines,
				mostLines)
		}
	}
	for name := range large {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Errorf("there is no package %s", name)
		}
	}
}

// wide are the interfaces that may have more methods, and why.
var wide = map[string]string{
	"consumers/login.Stream": "the engine, as a login, a logout, a suspension and a deferral " +
		"need it",
	"internal/grant.Store": "the contract of a store: both adapters have all of it",
}

func TestInterfacesStayNarrow(t *testing.T) {
	found := 0
	readRepository(t).files(func(f source) {
		if f.test {
			return
		}
		ast.Inspect(f.tree, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			i, ok := spec.Type.(*ast.InterfaceType)
			if !ok {
				return true
			}
			found++
			name := filepath.Dir(f.path) + "." + spec.Name.Name
			if m := i.Methods.NumFields(); m > mostMethods && wide[name] == "" {
				t.Errorf("%s: %s has %d methods, %d are allowed: its caller needs fewer, or say "+
					"why not",
					f.line(i), name, m, mostMethods)
			}
			return true
		})
	})
	if found == 0 {
		t.Error("no interface found")
	}
}

// unkeyed is how many literals of a package's structs have more values than mostUnkeyed, and no
// names for them. The numbers only fall.
var unkeyed = map[string]int{
	"cmd/renewd":   1,
	"internal/api": 1,
}

// A value without its field's name is taken for its neighbour's, once two fields have one type.
func TestStructLiteralsNameTheirFields(t *testing.T) {
	r := readRepository(t)
	lists := map[string]bool{} // named types that are no structs
	r.files(func(f source) {
		ast.Inspect(f.tree, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if _, isStruct := spec.Type.(*ast.StructType); !isStruct {
					lists[spec.Name.Name] = true
				}
			}
			return true
		})
	})
	found := map[string][]string{}
	r.files(func(f source) {
		if f.test {
			return
		}
		ast.Inspect(f.tree, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok || len(lit.Elts) <= mostUnkeyed {
				return true
			}
			named, ok := lit.Type.(*ast.Ident)
			selected, other := lit.Type.(*ast.SelectorExpr)
			_, keyed := lit.Elts[0].(*ast.KeyValueExpr)
			switch {
			case keyed, !ok && !other, ok && lists[named.Name], other && lists[selected.Sel.Name]:
				return true
			}
			found[filepath.Dir(f.path)] = append(found[filepath.Dir(f.path)], f.line(lit))
			return true
		})
	})
	for name := range r.packages {
		if n := len(found[name]); n != unkeyed[name] {
			t.Errorf("%s: %d struct literals of more than %d values do not name their fields, "+
				"want %d: %q",
				name, n, mostUnkeyed, unkeyed[name], found[name])
		}
	}
}

func TestLinesAreShort(t *testing.T) {
	readRepository(t).files(func(f source) {
		text, err := os.ReadFile(filepath.Join(root, f.path))
		if err != nil {
			t.Fatal(err)
		}
		n, tags := 0, f.tags()
		for line := range strings.Lines(string(text)) {
			n++
			if tag, ok := tags[n]; ok {
				line = strings.TrimRight(line[:tag.from], " ") + line[tag.to:]
			}
			if w := width(line); w > mostColumns {
				t.Errorf("%s:%d: %d columns, %d are allowed: break the line", f.path, n, w,
					mostColumns)
			}
		}
	})
}

// within is a part of a line, in bytes.
type within struct{ from, to int }

// tags are where the tags of fields are, by line. A tag is not counted: reflect.StructTag reads one
// that is on one line only, so that it cannot be broken.
func (f source) tags() map[int]within {
	all := map[int]within{}
	ast.Inspect(f.tree, func(n ast.Node) bool {
		if field, ok := n.(*ast.Field); ok && field.Tag != nil {
			from, to := f.set.Position(field.Tag.Pos()), f.set.Position(field.Tag.End())
			all[from.Line] = within{from.Column - 1, to.Column - 1}
		}
		return true
	})
	return all
}

func width(line string) int {
	line = strings.TrimSuffix(line, "\n")
	tabs := strings.Count(line, "\t")
	return utf8.RuneCountInString(line) + 3*tabs
}

// The checks above find what they look for.
func TestBudgetsAreMeasured(t *testing.T) {
	if got := width("\t\tsé\n"); got != 10 {
		t.Errorf("two tabs and two letters have %d columns", got)
	}
	if !slices.ContainsFunc(readRepository(t).packages["schema"], func(f source) bool {
		return f.set.File(f.tree.Pos()).LineCount() > 10
	}) {
		t.Error("no file of schema has lines")
	}
}
