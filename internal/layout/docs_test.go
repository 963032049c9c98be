package layout

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A test that a page names exists, so that no promise rests on a test that was removed.
func TestPagesNameTestsThatThereAre(t *testing.T) {
	known := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range function.FindAllStringSubmatch(string(text), -1) {
			known[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(Test\\w+)(…?)`")
	for _, page := range []string{
		"ARCHITECTURE.md", "docs/reliability.md", "docs/security.md", "docs/backup.md",
		"docs/attacks.md",
	} {
		text, err := os.ReadFile(filepath.Join("../..", page))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllStringSubmatch(string(text), -1) {
			if !known[m[1]] && !(m[2] != "" && begins(known, m[1])) {
				t.Errorf("%s: there is no %s", page, m[1])
			}
		}
	}
}

func begins(known map[string]bool, with string) bool {
	for name := range known {
		if strings.HasPrefix(name, with) {
			return true
		}
	}
	return false
}

// A package that the picture names exists.
func TestArchitectureNamesPackagesThatThereAre(t *testing.T) {
	text, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	paths := regexp.MustCompile(
		`\b(?:internal|cmd|consumers)/[a-z0-9]+`,
	).FindAllString(string(text), -1)
	if len(paths) < 20 {
		t.Fatalf("%d packages are named", len(paths))
	}
	for _, path := range paths {
		if info, err := os.Stat(filepath.Join("../..", path)); err != nil || !info.IsDir() {
			t.Errorf("there is no package %s", path)
		}
	}
}
