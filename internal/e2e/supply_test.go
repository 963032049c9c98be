package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// pinImages runs the script on copies of the two files, with a docker that knows this digest.
func pinImages(t *testing.T, digest string, args ...string) (folder, said string, err error) {
	t.Helper()
	folder = t.TempDir()
	for _, sub := range []string{"scripts", "bin"} {
		if err := os.Mkdir(filepath.Join(folder, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"Dockerfile", "docker-compose.yml", "scripts/pin-images.sh"} {
		copyFile(t, filepath.Join(root, name), filepath.Join(folder, name))
	}
	docker := []byte("#!/bin/sh\n[ -n '" + digest + "' ] && echo '" + digest + "'\n")
	if err := os.WriteFile(filepath.Join(folder, "bin", "docker"), docker, 0o755); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(folder, "scripts/pin-images.sh")
	cmd := exec.Command("bash", append([]string{script}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(folder, "bin")+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	return folder, string(out), err
}

// Each image that is not built here gets its digest, and nothing else changes.
func TestImagesArePinnedByDigest(t *testing.T) {
	t.Parallel()
	digest := "sha256:" + strings.Repeat("a1", 32)
	folder, said, err := pinImages(t, digest)
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	pinned := 0
	for _, name := range []string{"Dockerfile", "docker-compose.yml"} {
		text := string(must(os.ReadFile(filepath.Join(folder, name)))(t))
		pinned += strings.Count(text, "@"+digest)
		if strings.ReplaceAll(text, "@"+digest, "") != readFile(t, name) {
			t.Errorf("%s: more has changed than digests", name)
		}
	}
	if pinned != 3 {
		t.Errorf("%d images have a digest, want Go's, NATS' and PostgreSQL's", pinned)
	}
	for _, bad := range []string{"", "latest"} {
		folder, said, err := pinImages(t, bad)
		text := string(must(os.ReadFile(filepath.Join(folder, "Dockerfile")))(t))
		if err == nil || strings.Contains(text, "@") {
			t.Errorf("a registry that says %q: %s", bad, said)
		}
	}
	_, said, err = pinImages(t, digest, "--check")
	if err == nil || !strings.Contains(said, "has no digest") {
		t.Errorf("--check finds nothing to do: %s", said)
	}
}

// The public pipeline runs the same targets as people do, and uses nothing by a name that can be
// moved.
func TestPipelineRunsMake(t *testing.T) {
	t.Parallel()
	target := regexp.MustCompile(`(?m)^([a-z]+):.*## `)
	targets := target.FindAllStringSubmatch(readFile(t, "Makefile"), -1)
	pinned := regexp.MustCompile(`^actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$`)
	ran := map[string]bool{}
	for _, name := range []string{"ci.yml", "release.yml"} {
		text := readFile(t, ".github/workflows/"+name)
		var flow struct{ Jobs map[string]any }
		if err := yaml.Unmarshal([]byte(text), &flow); err != nil || len(flow.Jobs) == 0 {
			t.Errorf("%s: %d jobs, %v", name, len(flow.Jobs), err)
		}
		for _, uses := range regexp.MustCompile(`uses: (.*)`).FindAllStringSubmatch(text, -1) {
			if !pinned.MatchString(uses[1]) {
				t.Errorf("%s: %s is not pinned to a commit", name, uses[1])
			}
		}
		for _, m := range regexp.MustCompile(`(?m)^[^#]*\bmake ([a-z]+)`).
			FindAllStringSubmatch(text, -1) {
			ran[m[1]] = true
			if !slices.ContainsFunc(targets, func(t []string) bool { return t[1] == m[1] }) {
				t.Errorf("%s: there is no target %s", name, m[1])
			}
		}
	}
	for _, target := range []string{"test", "vuln", "release"} {
		if !ran[target] {
			t.Errorf("nothing runs make %s", target)
		}
	}
}

// A folder that the update bot looks in has the files that the bot looks for.
func TestUpdatesLookWhereThereIsSomething(t *testing.T) {
	t.Parallel()
	var bot struct {
		Updates []struct {
			Ecosystem   string `yaml:"package-ecosystem"`
			Directory   string
			Directories []string
		}
	}
	if err := yaml.Unmarshal([]byte(readFile(t, ".github/dependabot.yml")), &bot); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"gomod": "go.mod", "npm": "package-lock.json",
		"docker": "Dockerfile", "docker-compose": "docker-compose.yml",
		"github-actions": ".github/workflows/ci.yml",
	}
	for _, u := range bot.Updates {
		for _, folder := range append(u.Directories, u.Directory) {
			if folder != "" {
				readFile(t, filepath.Join(folder, files[u.Ecosystem]))
			}
		}
		delete(files, u.Ecosystem)
	}
	if len(files) > 0 {
		t.Errorf("nobody looks for updates of %v", files)
	}
}
