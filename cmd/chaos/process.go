package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/renewd/renewd/internal/testkit/proc"
)

// process is a program, started and ended in different ways again and again.
type process struct {
	name string
	log  string // file of its output, over all its lives
	make func() *exec.Cmd

	mu   sync.Mutex
	life *proc.Process // the present or the last; nil before the first
}

// infancy is how long a process may take until it handles signals. SIGTERM ends a younger process
// at once, which does no harm.
const infancy = time.Second

// start starts the process, unless the process runs already.
func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.life != nil && p.life.Running() {
		return nil
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := p.make()
	cmd.Stdout, cmd.Stderr = log, log
	life, err := proc.Start(cmd)
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	p.life = life
	return nil
}

// last is the present or the last life; nil before the first.
func (p *process) last() *proc.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.life
}

// pid is the process id of the present or last life, or 0 before the first.
func (p *process) pid() int {
	if life := p.last(); life != nil {
		return life.Pid()
	}
	return 0
}

func (p *process) signal(s syscall.Signal) {
	if life := p.last(); life != nil {
		life.Signal(s)
	}
}

// kill ends the process as the kernel would, and waits for its end.
func (p *process) kill() {
	if life := p.last(); life != nil {
		life.Kill()
	}
}

// neverUp reports whether a worker ended itself because its start took too long, as after a stall.
func (p *process) neverUp() bool {
	log, err := os.ReadFile(p.log)
	last := bytes.TrimSpace(log)
	return err == nil && bytes.Contains(last[bytes.LastIndexByte(last, '\n')+1:],
		[]byte("(start_timeout)"))
}

// stop ends the process as an operator would, and returns an error unless the process leaves in
// order within the limit.
func (p *process) stop(limit time.Duration) error {
	life := p.last()
	if life == nil || !life.Running() {
		return nil
	}
	young := life.Age() < infancy
	err := life.Stop(limit)
	if err == nil || young && life.Code() == proc.BySignal || p.neverUp() {
		return nil
	}
	return fmt.Errorf("%s: %w after SIGTERM: see %s", p.name, err, p.log)
}

// ended returns an error if the process ended by itself.
func (p *process) ended() error {
	if life := p.last(); life != nil && !life.Running() {
		return fmt.Errorf("%s ended by itself, exit code %d: see %s", p.name, life.Code(), p.log)
	}
	return nil
}

var errNotReady = errors.New("not ready")
