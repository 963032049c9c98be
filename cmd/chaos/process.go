package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// process is a program that is started, and ended in every way there is, again and again.
type process struct {
	name string
	log  string // file that its output goes to, over all its lives
	make func() *exec.Cmd

	mu    sync.Mutex
	cmd   *exec.Cmd
	began time.Time
	end   chan struct{} // closed when cmd has ended
	code  int
}

// infancy is how long a process may take until it hears signals. SIGTERM ends it before that, which
// takes nothing from anybody.
const infancy = time.Second

// start starts it, unless it runs.
func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		return nil
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := p.make()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	p.cmd, p.began, p.end = cmd, time.Now(), make(chan struct{})
	go func(end chan struct{}) {
		_ = cmd.Wait() // its state says how it ended
		p.code = cmd.ProcessState.ExitCode()
		close(end)
	}(p.end)
	return nil
}

// running reports whether it has not ended. The caller holds mu.
func (p *process) running() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.end:
		return false
	default:
		return true
	}
}

// pid is that of its present or last life; 0 before the first.
func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

func (p *process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		_ = p.cmd.Process.Signal(s) // it may end at this very moment
	}
}

// kill ends it as the kernel would, and waits for that.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	p.mu.Lock()
	end := p.end
	p.mu.Unlock()
	if end != nil {
		<-end
	}
}

// stop ends it as an operator would, and returns an error unless it leaves in order within the
// limit.
func (p *process) stop(limit time.Duration) error {
	p.mu.Lock()
	end, running, young := p.end, p.running(), time.Since(p.began) < infancy
	p.mu.Unlock()
	if !running {
		return nil
	}
	p.signal(syscall.SIGTERM)
	select {
	case <-end:
		if p.code != 0 && !(young && p.code == bySignal) {
			return fmt.Errorf("%s: exit code %d after SIGTERM: see %s", p.name, p.code, p.log)
		}
		return nil
	case <-time.After(limit):
		p.kill()
		return fmt.Errorf("%s: still running %v after SIGTERM: see %s", p.name, limit, p.log)
	}
}

// ended returns an error if it ended by itself.
func (p *process) ended() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil && !p.running() {
		return fmt.Errorf("%s ended by itself, exit code %d: see %s", p.name, p.code, p.log)
	}
	return nil
}

// bySignal is the exit code of a process that a signal ended (os.ProcessState).
const bySignal = -1

var errNotReady = errors.New("not ready")
