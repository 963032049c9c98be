package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a program that this one started.
type process struct {
	name string
	log  string // file that its standard error goes to
	cmd  *exec.Cmd
	out  *bufio.Reader // its standard output, line by line
	end  chan struct{}
	// start tells a contestant to go; nil for others.
	start func() error
}

// launch starts cmd with its standard error in a file below dir.
func launch(dir, name string, cmd *exec.Cmd) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), cmd: cmd, end: make(chan struct{})}
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
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		in.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(p.end)
		_ = cmd.Wait() // its state says how it ended
	}()
	return p, nil
}

// line is the next line that it prints; an error once it has ended.
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

func (p *process) running() bool {
	select {
	case <-p.end:
		return false
	default:
		return true
	}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) signal(s syscall.Signal) {
	_ = p.cmd.Process.Signal(s) // it may end at this very moment
}

// kill ends it as the kernel would, and waits for that.
func (p *process) kill() {
	if p == nil {
		return
	}
	p.signal(syscall.SIGKILL)
	<-p.end
}

// stop ends it as an operator would.
func (p *process) stop() {
	p.signal(syscall.SIGTERM)
	select {
	case <-p.end:
	case <-time.After(30 * time.Second):
		p.kill()
	}
}

const tick = 10 * time.Millisecond // of /proc/<pid>/stat: USER_HZ is 100 on every Linux

// cpuOf is the processor time that these processes and all they started have used, the dead
// included.
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
			continue // gone since
		}
		text := string(raw)
		pid, _ := strconv.Atoi(text[:strings.IndexByte(text, ' ')])
		f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // the state is f[0], field 3 in proc(5)
		parent, _ := strconv.Atoi(f[1])
		var ticks int64
		for _, field := range f[11:15] { // utime, stime, and those of children that were waited for
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

// memory is a field of /proc/<pid>/status in bytes: VmHWM, the peak, or VmRSS, what it is now. 0
// for a process that is gone.
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

// freePort finds a loopback port that nobody listens on.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// eventually tries until it works, or the limit is reached.
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
