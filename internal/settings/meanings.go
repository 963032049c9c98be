package settings

import (
	"embed"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
)

// source is where the settings are declared.
//
//go:embed settings.go provider.go sinks.go sources.go
var source embed.FS

// meanings are the comments of all fields an operator can set, by struct and field: each setting's
// meaning. The comments are read from this package's source, where a reader looks for a meaning.
func meanings() map[string]string {
	all := map[string]string{}
	files, err := source.ReadDir(".")
	if err != nil {
		panic("settings: " + err.Error()) // the folder is in the program
	}
	for _, f := range files {
		text, _ := source.ReadFile(f.Name())
		tree, err := parser.ParseFile(token.NewFileSet(), f.Name(), text, parser.ParseComments)
		if err != nil {
			panic("settings: " + err.Error()) // the compiler took it
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				addMeanings(all, spec)
			}
			return true
		})
	}
	return all
}

func addMeanings(all map[string]string, of *ast.TypeSpec) {
	s, ok := of.Type.(*ast.StructType)
	if !ok {
		return
	}
	for _, field := range s.Fields.List {
		for _, name := range field.Names {
			text := strings.Join(strings.Fields(field.Doc.Text()), " ")
			all[of.Name.Name+"."+name.Name] = strings.TrimSuffix(text, ".")
		}
	}
}
