package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A worker's clock steps because its binary is built with another package time, and with an
// additional file in its main package. Both exist only in the folder of the run (go help build,
// -overlay). Only the wall clock steps, as the kernel's monotonic clock never does.
var (
	//go:embed overlay/step.go.txt
	stepSource []byte
	//go:embed overlay/clock.go.txt
	clockSource []byte
)

// clockFileEnv names the file with the distance of a worker's clock from the machine's. Only
// clockSource knows this variable.
const clockFileEnv = "CHAOS_CLOCK_FILE"

// The beginning of time.Now, and its replacement.
const (
	nowSource   = "\tsec, nsec, mono := runtimeNow()\n\tif mono == 0 {"
	nowStepping = "\tsec, nsec, mono := runtimeNow()\n\tsec, nsec = stepped(sec, nsec)\n\tif " +
		"mono == 0 {"
	productOfRun = "github.com/renewd/renewd"
)

// build makes the tested binary, unless a binary was given. The clock of a given binary cannot be
// stepped.
func (w *world) build(ctx context.Context) error {
	if w.binary = w.Binary; w.binary != "" {
		return nil
	}
	overlay, err := w.overlay(ctx)
	if err != nil {
		return err
	}
	w.binary = filepath.Join(w.dir, "renewd")
	_, err = output(exec.CommandContext(ctx, "go", "build", "-overlay", overlay, "-o", w.binary,
		productOfRun+"/cmd/renewd"))
	return err
}

// overlay writes the replacement files for the build, and returns the file which lists them for the
// go command.
func (w *world) overlay(ctx context.Context) (string, error) {
	root, err := output(exec.CommandContext(ctx, "go", "env", "GOROOT"))
	if err != nil {
		return "", err
	}
	module, err := output(exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}",
		productOfRun))
	if err != nil {
		return "", err
	}
	folder := filepath.Join(root, "src", "time")
	now, err := os.ReadFile(filepath.Join(folder, "time.go"))
	if err != nil {
		return "", err
	}
	if bytes.Count(now, []byte(nowSource)) != 1 {
		return "", errors.New("time.Now of this Go is not what it was: see nowSource, or give a " +
			"renewd by --binary, whose clock will not step")
	}
	now = bytes.Replace(now, []byte(nowSource), []byte(nowStepping), 1)
	replace := map[string]string{}
	for _, f := range []struct {
		name, in string
		source   []byte
	}{
		{"time.go", folder, now},
		{"step.go", folder, stepSource},
		{"clock.go", filepath.Join(module, "cmd", "renewd"), clockSource},
	} {
		made := filepath.Join(w.dir, f.name)
		if err := os.WriteFile(made, f.source, 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(f.in, f.name)] = made
	}
	raw, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	file := filepath.Join(w.dir, "overlay.json")
	return file, os.WriteFile(file, raw, 0o600)
}

// output is a command's standard output, without the line's end.
func output(cmd *exec.Cmd) (string, error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// step sets the worker's wall clock d ahead of the machine's, and returns when the worker sees the
// new time.
func (k *worker) step(ctx context.Context, d time.Duration) error {
	shows := k.clock + ".shows"
	_ = os.Remove(shows) // of the step before, if any
	if err := os.WriteFile(k.clock, strconv.AppendInt(nil, int64(d), 10), 0o600); err != nil {
		return err
	}
	k.signal(syscall.SIGUSR2)
	return eventually(context.WithoutCancel(ctx), 10*time.Second, func() error {
		raw, err := os.ReadFile(shows)
		if err != nil {
			return err
		}
		ns, err := strconv.ParseInt(string(raw), 10, 64)
		if off := time.Until(time.Unix(0, ns)) - d; err != nil || off.Abs() > 5*time.Second {
			return fmt.Errorf("%s: its clock is %v away from where it was set", k.name, off)
		}
		return nil
	})
}

// stepClock makes a worker's clock wrong for a while. Users and providers must not notice, except
// for the step ahead. To the worker the step looks as if the machine had slept, so the worker
// leaves the work it is handling to other workers. They get the work when AckWait is over.
func stepClock(d time.Duration) func(context.Context, *strike) error {
	return func(ctx context.Context, x *strike) error {
		x.unfelt = true
		if err := eventually(ctx, 30*time.Second, x.worker.ready); err != nil {
			return nil // not up yet when the run ended
		}
		step := func(to, by time.Duration) error {
			part := &strike{
				world:  x.world,
				worker: x.worker,
				lane:   x.lane,
				kind:   "worker's clock set ahead",
				from:   time.Now(),
			}
			err := x.worker.step(ctx, to)
			if part.to = time.Now(); by > 0 {
				x.parts = append(x.parts, part)
			}
			return err
		}
		err := step(d, d)
		x.last(ctx, 6*time.Second, 70*time.Second)
		return errors.Join(err, step(0, -d))
	}
}
