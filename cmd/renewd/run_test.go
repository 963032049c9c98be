package main

import (
	"bytes"
	"strings"
	"testing"
)

// runIn runs a command in this process.
func runIn(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"renewd"}, args...), env, strings.NewReader(""), &out,
		&errs)
	return code, out.String(), errs.String()
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args   []string
		env    []string
		code   int
		stdout string
		stderr string
	}{
		"no command": {nil, nil, exitDone, "Commands:", ""},
		"help":       {[]string{"--help"}, nil, exitDone, "publish refresh-due", ""},
		"help of a command": {
			[]string{"subscribe", "--help"}, nil, exitDone, "Usage: renewd subscribe", "",
		},
		"version":           {[]string{"version"}, nil, exitDone, "renewd dev (", ""},
		"version, asked so": {[]string{"--version"}, nil, exitDone, "renewd dev (", ""},
		"version, as JSON":  {[]string{"version", "-o", "json"}, nil, exitDone, `"go":"go1.`, ""},
		"help, asked so": {
			[]string{"help", "user", "show"}, nil, exitDone, "Usage: renewd user show", "",
		},
		"unknown command": {[]string{"publsh"}, nil, exitUsage, "", "publish"},
		"unknown flag":    {[]string{"version", "--no"}, nil, exitUsage, "", "--no"},
		"config check": {
			[]string{"config", "check"}, nil, exitDone, "the settings are fine", "",
		},
		"config print": {[]string{"config", "print"}, nil, exitDone, "# default", ""},
		"config docs": {
			[]string{"config", "print", "--docs"}, nil, exitDone, "| `RENEWD_NATS_URL` |", "",
		},
		"bad setting": {
			[]string{"config", "check"},
			[]string{"RENEWD_LOG_LEVEL=loud"},
			exitUsage,
			"",
			"RENEWD_LOG_LEVEL",
		},
		"bad file": {
			[]string{"-c", "/nowhere.yaml", "config", "check"}, nil, exitUsage, "", "/nowhere.yaml",
		},
	} {
		code, out, errs := runIn(t, c.env, c.args...)
		if code != c.code || !strings.Contains(out, c.stdout) ||
			!strings.Contains(errs, c.stderr) || c.code == exitDone && errs != "" {
			t.Errorf("%s: got %d\nstdout: %s\nstderr: %s", name, code, out, errs)
		}
	}
}

func TestCallName(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"/tmp/go-build123/b001/exe/renewd": "go run ./cmd/renewd",
		"renewd":                           "renewd",
		"./renewd":                         "./renewd",
		"../bin/renewd":                    "../bin/renewd",
	} {
		if got := callName(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}
