package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The settings that the pages on providers show are settings that there are.
func TestSettingsOfTheProvidersPages(t *testing.T) {
	pages, err := filepath.Glob("../../docs/providers/*.md")
	if err != nil || len(pages) < 16 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	block := regexp.MustCompile("(?s)```yaml\n(.*?)```")
	secret := regexp.MustCompile(`client_secret_file: \S+`)
	shown := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range block.FindAllStringSubmatch(string(text), -1) {
			settings := secret.ReplaceAllString(found[1], "client_secret: x")
			if !strings.HasPrefix(settings, "providers:") {
				continue
			}
			shown++
			env := []string{"RENEWD_CONFIG=" + write(t, filepath.Base(page)+".yaml", settings)}
			if code, out, errs := runIn(t, env, "config", "check"); code != exitDone {
				t.Errorf("%s: %s%s", page, out, errs)
			}
		}
	}
	if shown < 16 {
		t.Errorf("%d pages show settings", shown)
	}
}
