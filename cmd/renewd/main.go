// Command renewd keeps the OAuth tokens and profiles of signed-in users fresh, driven by NATS
// JetStream.
//
// It is where everything is joined, and the only package that reads the environment, writes to a
// terminal, handles signals and loads the OpenTelemetry SDK. It holds no rule of a renewal.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	if err := noCoreDumps(); err != nil {
		fmt.Fprintln(os.Stderr, "renewd: a crash may leave a core file with tokens in it:", err)
	}
	os.Exit(run(ctx, os.Args, os.Environ(), os.Stdin, os.Stdout, os.Stderr))
}
