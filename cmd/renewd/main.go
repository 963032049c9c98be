// Command renewd keeps the OAuth tokens and profiles of signed-in users fresh, driven by NATS
// JetStream.
//
// The package holds the commands, their flags and their text, and alone reads the environment,
// writes to a terminal and handles signals. The running program is package daemon.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	_ "time/tzdata" // for policy.windows: an image from scratch has no time zones
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	if err := noCoreDumps(); err != nil {
		fmt.Fprintln(os.Stderr, "renewd: a crash may leave a core file with tokens in it:", err)
	}
	os.Exit(run(ctx, os.Args, os.Environ(), os.Stdin, os.Stdout, os.Stderr))
}
