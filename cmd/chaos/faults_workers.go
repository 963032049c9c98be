package main

import (
	"context"
	"syscall"
	"time"
)

func killWorker(ctx context.Context, x *strike) error {
	x.lost = true
	x.worker.kill()
	x.to = time.Now()
	x.last(ctx, 0, 1500*time.Millisecond)
	return x.worker.start()
}

func stallWorker(from, to time.Duration, lost bool) func(context.Context, *strike) error {
	return func(ctx context.Context, x *strike) error {
		x.lost, x.frozen = lost, true
		x.worker.signal(syscall.SIGSTOP)
		x.last(ctx, from, to)
		x.worker.signal(syscall.SIGCONT)
		return nil
	}
}

func stopWorker(_ context.Context, x *strike) error {
	if err := x.worker.stop(40 * time.Second); err != nil {
		return err
	}
	return x.worker.start()
}
