package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/testkit/proc"
)

// process is a program started by this program.
type process struct {
	*proc.Process
	name string
	log  string        // file of its standard error
	out  *bufio.Reader // its standard output, line by line
	// start tells a contestant to go. It is nil for other processes.
	start func() error
}

// launch starts cmd with its standard error in a file below dir.
func launch(dir, name string, cmd *exec.Cmd) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log")}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stderr = log
	in, out, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd.Stdout, p.out = out, bufio.NewReader(in)
	if p.Process, err = proc.Start(cmd); err != nil {
		in.Close()
		return nil, err
	}
	return p, nil
}

// line is the next line printed by the process, or an error once the process has ended.
func (p *process) line() (string, error) {
	text, err := p.out.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("%s ended early: %w: %s", p.name, err, p.lastWords())
	}
	return strings.TrimSpace(text), nil
}

func (p *process) lastWords() string {
	raw, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(raw[max(0, len(raw)-2000):])
}

// kill ends the process, if it was started, as the kernel would.
func (p *process) kill() {
	if p != nil {
		p.Kill()
	}
}

const tick = 10 * time.Millisecond // of /proc/<pid>/stat: USER_HZ is 100 on every Linux

// cpuOf is the processor time used by these processes and all their descendants, including
// descendants that have ended.
func cpuOf(pids ...int) time.Duration {
	type line struct {
		parent int
		used   time.Duration
	}
	all := map[int]line{}
	found, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range found {
		raw, err := os.ReadFile(name)
		if err != nil {
			continue // the process has ended
		}
		text := string(raw)
		pid, _ := strconv.Atoi(text[:strings.IndexByte(text, ' ')])
		// the state is f[0], field 3 in proc(5)
		f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
		parent, _ := strconv.Atoi(f[1])
		var ticks int64
		for _, field := range f[11:15] { // utime, stime, and the same of children waited for
			n, _ := strconv.ParseInt(field, 10, 64)
			ticks += n
		}
		all[pid] = line{parent, time.Duration(ticks) * tick}
	}
	ours := map[int]bool{}
	for _, pid := range pids {
		ours[pid] = true
	}
	var sum time.Duration
	for pid, l := range all {
		for at := pid; at > 1; at = all[at].parent {
			if ours[at] {
				sum += l.used
				break
			}
		}
	}
	return sum
}

// memory is a field of /proc/<pid>/status in bytes: VmHWM, the peak, or VmRSS, the present value.
// The result is 0 for a process that is gone.
func memory(pid int, field string) int64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		if text, ok := strings.CutPrefix(line, field+":"); ok {
			kb, _ := strconv.ParseInt(strings.Fields(text)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}

// eventually calls try until try returns no error, or the limit is reached.
func eventually(limit time.Duration, try func() error) error {
	for end := time.Now().Add(limit); ; {
		err := try()
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return errors.Join(err, fmt.Errorf("not within %v", limit))
		}
		<-time.After(10 * time.Millisecond)
	}
}
