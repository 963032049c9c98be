package e2e

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// instruction is one instruction of a Dockerfile, with its continuation lines joined.
type instruction struct{ name, rest string }

// dockerfileStages splits the Dockerfile at its FROMs.
func dockerfileStages(t *testing.T) (stages [][]instruction) {
	t.Helper()
	text := regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(readFile(t, "Dockerfile"), "")
	text = regexp.MustCompile(`\\\n\s*`).ReplaceAllString(text, "")
	for line := range strings.Lines(text) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == "" {
			continue
		}
		if name == "FROM" {
			stages = append(stages, nil)
		}
		if len(stages) == 0 {
			t.Fatalf("%s before FROM", name)
		}
		stages[len(stages)-1] = append(stages[len(stages)-1], instruction{name, rest})
	}
	return stages
}

func TestDockerfileBuildsAStaticBinary(t *testing.T) {
	t.Parallel()
	build := dockerfileStages(t)[0]
	image := regexp.MustCompile(`golang:\S+`).FindString(build[0].rest)
	checkPinned(t, "build stage", image)
	wanted := strings.TrimPrefix(strings.TrimSpace(readFile(t, "scripts/release-go")), "go")
	if !strings.HasPrefix(image, "golang:"+wanted+"-") {
		t.Errorf("builds with %s, but releases are built with Go %s", image, wanted)
	}
	i := slices.IndexFunc(build, func(i instruction) bool {
		return strings.Contains(i.rest, "go build")
	})
	if i < 0 {
		t.Fatal("no go build")
	}
	for _, part := range []string{
		"CGO_ENABLED=0", "-trimpath", "-X main.version=${VERSION}", "./cmd/renewd",
	} {
		if !strings.Contains(build[i].rest, part) {
			t.Errorf("go build lacks %s", part)
		}
	}
}

func TestDockerfileImageIsEmptyAndWithoutRights(t *testing.T) {
	t.Parallel()
	stages := dockerfileStages(t)
	last := stages[len(stages)-1]
	want := map[string]string{
		"FROM":        `^scratch$`,
		"USER":        `^65532:65532$`, // numbers: Kubernetes cannot tell that a name is not root
		"EXPOSE":      `^7460$`,
		"HEALTHCHECK": `CMD \["/usr/local/bin/renewd", "healthcheck"\]$`, // there is no shell
		"ENTRYPOINT":  `^\["/usr/local/bin/renewd"\]$`,
		"CMD":         `^\["serve"\]$`,
		"LABEL": `org\.opencontainers\.image\.source=.*` +
			`org\.opencontainers\.image\.licenses="MIT".*` +
			`org\.opencontainers\.image\.version="\$\{VERSION\}"`,
	}
	for name, pattern := range want {
		i := slices.IndexFunc(last, func(i instruction) bool { return i.name == name })
		if i < 0 {
			t.Errorf("no %s", name)
		} else if !regexp.MustCompile(pattern).MatchString(last[i].rest) {
			t.Errorf("%s %s: want %s", name, last[i].rest, pattern)
		}
	}
	known := settingNames(t)
	for _, i := range last {
		for _, name := range regexp.MustCompile(`RENEWD_\w+`).FindAllString(i.rest, -1) {
			if !slices.Contains(known, name) {
				t.Errorf("%s: %s is no setting of renewd", i.name, name)
			}
		}
	}
}

// .dockerignore lists what the build gets. If it leaves out a package, the image breaks but the
// other tests do not.
func TestDockerignoreLetsEveryPackageIn(t *testing.T) {
	t.Parallel()
	allowed := strings.Split(readFile(t, ".dockerignore"), "\n")
	entries := must(os.ReadDir(root))(t)
	checked := 0
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if _, err := os.Stat(filepath.Join(root, e.Name(), "go.mod")); err == nil {
			continue // a separate module: no part of renewd is built from it
		}
		deep, _ := filepath.Glob(filepath.Join(root, e.Name(), "*", "*.go"))
		flat, _ := filepath.Glob(filepath.Join(root, e.Name(), "*.go"))
		if len(deep)+len(flat) == 0 {
			continue
		}
		checked++
		if !slices.Contains(allowed, "!"+e.Name()) {
			t.Errorf("%s has Go packages but is not let into the image build", e.Name())
		}
	}
	if checked == 0 {
		t.Error("no package found")
	}
}

// settingNames lists the environment variables that renewd reads, from the tags of its settings:
// RENEWD_ and the key, or env. A secret has a variable with _FILE too.
func settingNames(t *testing.T) (names []string) {
	t.Helper()
	names = []string{"RENEWD_CONFIG"}
	for _, path := range must(filepath.Glob(filepath.Join(root, "internal/settings/*.go")))(t) {
		file := must(parser.ParseFile(token.NewFileSet(), path, nil, 0))(t)
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if def, ok := spec.Type.(*ast.StructType); ok {
				for _, field := range def.Fields.List {
					names = append(names, settingName(spec.Name.Name, field)...)
				}
			}
			return false
		})
	}
	if len(names) < 10 {
		t.Fatalf("found the settings %v only", names)
	}
	return names
}

func settingName(owner string, field *ast.Field) []string {
	if field.Tag == nil {
		return nil
	}
	raw, _ := strconv.Unquote(field.Tag.Value)
	tag := reflect.StructTag(raw)
	name := tag.Get("env")
	if name == "" && owner == "Settings" {
		name = "RENEWD_" + strings.ToUpper(tag.Get("key"))
	}
	if name == "" {
		return nil
	}
	if sel, ok := field.Type.(*ast.SelectorExpr); ok && sel.Sel.Name == "Value" {
		return []string{name, name + "_FILE"}
	}
	return []string{name}
}
