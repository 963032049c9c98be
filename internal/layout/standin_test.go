package layout

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The stand-in for a provider is in the binary, since `renewd dev` needs it. Nothing that serves
// may reach it. Only the files of the commands for development import it. Only the command stand-in
// has its admin endpoints. The rest of the program knows only the commands of those files.
func TestServeDoesNotReachTheStandIn(t *testing.T) {
	own := []string{"dev.go", "dev_view.go", "demo.go", "standin.go"}
	commands := []string{"devCommand", "devOptions", "standInCommand"}
	declared := map[string]bool{}
	imports, admins, known := 0, 0, 0
	of := func(f source) bool {
		return slices.Contains(own,
			f.path[strings.LastIndex(f.path, "/")+1:])
	}
	files := readRepository(t).packages["cmd/renewd"]
	for _, f := range files {
		if f.test {
			continue
		}
		if slices.ContainsFunc(
			f.imports(),
			func(name string) bool { return strings.HasSuffix(name, "internal/standin") },
		) {
			if imports++; !of(f) {
				t.Errorf("%s imports the stand-in", f.path)
			}
		}
		ast.Inspect(f.tree, func(n ast.Node) bool {
			if kv, ok := n.(*ast.KeyValueExpr); ok {
				if key, ok := kv.Key.(*ast.Ident); ok && key.Name == "Admin" {
					if admins++; !strings.HasSuffix(f.path, "/standin.go") {
						t.Errorf("%s: admin endpoints outside the command stand-in", f.line(n))
					}
				}
			}
			return true
		})
		if of(f) {
			for _, name := range names(f.tree) {
				declared[name] = true
			}
		}
	}
	for _, f := range files {
		if f.test || of(f) {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, f.path), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range tree.Unresolved { // in this file: declared in another
			switch {
			case slices.Contains(commands, id.Name):
				known++
			case declared[id.Name]:
				t.Errorf("%s: %s is part of a command for development", f.path, id.Name)
			}
		}
	}
	if imports == 0 || admins == 0 || known < len(commands) {
		t.Errorf(
			"%d files import the stand-in, %d have its admin endpoints, %d commands: the test "+
				"looks at the wrong place",
			imports,
			admins,
			known,
		)
	}
}

// names returns the names that a file declares for its package, methods aside.
func names(f *ast.File) (all []string) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				all = append(all, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.TypeSpec:
					all = append(all, s.Name.Name)
				case *ast.ValueSpec:
					for _, name := range s.Names {
						all = append(all, name.Name)
					}
				}
			}
		}
	}
	return all
}
