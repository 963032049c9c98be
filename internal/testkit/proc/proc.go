// Package proc starts programs for tests, for chaos and for the benchmark, and ends programs as an
// operator or the kernel does.
//
// The package never ships. A Process is one life of a program. A Process is safe for concurrent
// use, is waited for by exactly one goroutine, and dies with the process that started it.
package proc

import (
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// Process is a started program.
type Process struct {
	cmd   *exec.Cmd
	began time.Time
	ended chan struct{}
	err   error // of Wait; read it once ended is closed
}

// Start starts cmd. The caller has set the place of cmd's output.
func Start(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd, err)
	}
	p := &Process{cmd: cmd, began: time.Now(), ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		p.err = cmd.Wait()
	}()
	return p, nil
}

// Pid is the process's id, also after its end.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Age is how long ago the process was started.
func (p *Process) Age() time.Duration { return time.Since(p.began) }

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Running reports whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Wait waits for the process's end. Its error is exec.Cmd's: nil for exit code 0.
func (p *Process) Wait() error {
	<-p.ended
	return p.err
}

// BySignal is the exit code of a process ended by a signal, as os.ProcessState has the code.
const BySignal = -1

// Code waits for the process's end and returns its exit code.
func (p *Process) Code() int {
	<-p.ended
	return p.cmd.ProcessState.ExitCode()
}

// Signal sends a signal. Signal does nothing where the process has ended.
func (p *Process) Signal(s syscall.Signal) {
	_ = p.cmd.Process.Signal(s) // the process may end at this very moment
}

// Kill ends the process as the kernel would, and waits for its end.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.ended
}

// Stop ends the process as an operator would. Stop returns an error where the process ends with
// another exit code than 0. A process that still runs after the limit is killed, which is an error
// too.
func (p *Process) Stop(limit time.Duration) error {
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
		return p.err
	case <-time.After(limit):
		p.Kill()
		return fmt.Errorf("still running %v after SIGTERM", limit)
	}
}

// FreePorts finds ports of loopback that no program listens on. Another program may take a port
// before its use.
func FreePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // after the last is found, so that no port is found twice
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// FreeAddr is a loopback address, host:port, with such a port.
func FreeAddr() (string, error) {
	ports, err := FreePorts(1)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0])), nil
}

// FreeAddrFor is FreeAddr for a test. Without a free port the test fails.
func FreeAddrFor(t testing.TB) string {
	t.Helper()
	addr, err := FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}
