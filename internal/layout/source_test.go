package layout

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// source is one Go file, parsed whatever its build tags.
type source struct {
	path string // from the root, with slashes
	test bool
	tree *ast.File
	set  *token.FileSet
}

func (f source) imports() []string {
	var all []string
	for _, spec := range f.tree.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			panic(err) // the parser took it
		}
		all = append(all, name)
	}
	return all
}

// localName is what the file calls the package imported from the standard library. It is empty if
// the file does not import the package.
func (f source) localName(pkg string) string {
	for _, spec := range f.tree.Imports {
		if spec.Path.Value != strconv.Quote(pkg) {
			continue
		}
		if spec.Name != nil {
			return spec.Name.Name
		}
		return path.Base(pkg)
	}
	return ""
}

func (f source) line(n ast.Node) string {
	return f.path + ":" + strconv.Itoa(f.set.Position(n.Pos()).Line)
}

// repository is all Go source of the module, by package folder.
type repository struct {
	module   string
	requires []string
	packages map[string][]source
}

const root = "../.."

func readRepository(t *testing.T) repository {
	t.Helper()
	r := repository{packages: map[string][]source{}}
	r.readGoMod(t)
	set := token.NewFileSet()
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		switch base := d.Name(); {
		case d.IsDir() && rel != "." &&
			(strings.HasPrefix(base, ".") || base == "testdata" || base == "node_modules"):
			return fs.SkipDir
		case d.IsDir() || path.Ext(base) != ".go":
			return nil
		}
		tree, err := parser.ParseFile(set, name, nil,
			parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		pkg := path.Dir(rel)
		r.packages[pkg] = append(r.packages[pkg],
			source{rel, strings.HasSuffix(rel, "_test.go"), tree, set})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.packages) == 0 {
		t.Fatal("no package found below ", root)
	}
	return r
}

var (
	moduleLine  = regexp.MustCompile(`(?m)^module (\S+)$`)
	requireLine = regexp.MustCompile(`(?m)^(?:require|\t)\s*(\S+) v\S+`)
)

func (r *repository) readGoMod(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	if m := moduleLine.FindSubmatch(text); m != nil {
		r.module = string(m[1])
	}
	for _, m := range requireLine.FindAllSubmatch(text, -1) {
		r.requires = append(r.requires, string(m[1]))
	}
	if r.module == "" || len(r.requires) == 0 {
		t.Fatal("go.mod: no module or no requirement found")
	}
	// The benchmark is a separate module. Only the benchmark itself may import what it requires
	// besides, as the table says.
	text, err = os.ReadFile(filepath.Join(root, "bench", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range requireLine.FindAllSubmatch(text, -1) {
		r.requires = append(r.requires, string(m[1]))
	}
}

// files calls visit for each file of the repository, in order.
func (r repository) files(visit func(source)) {
	var all []source
	for _, files := range r.packages {
		all = append(all, files...)
	}
	slices.SortFunc(all, func(a, b source) int { return strings.Compare(a.path, b.path) })
	for _, f := range all {
		visit(f)
	}
}
