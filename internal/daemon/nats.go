package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/internal/settings"
)

// natsEvents has the connection's troubles logged, by host only.
func natsEvents(logger *slog.Logger) []nats.Option {
	return []nats.Option{
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			if nc.IsClosed() || err == nil {
				return
			}
			logger.Warn("lost the connection to NATS; work waits until it is back", "error", err)
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			logger.Info("connected to NATS again", "server", nc.ConnectedAddr())
		}),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			logger.Error("NATS refused something", "subject", subject, "error", err)
		}),
	}
}

// Patiently calls try until it succeeds, with a line in the log for each failure, for at most
// limit.
func Patiently(
	ctx context.Context, logger *slog.Logger, limit time.Duration, what, setting string,
	try func(context.Context) error,
) error {
	deadline := time.Now().Add(limit)
	for wait := 250 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, ok := errors.AsType[settings.MistakeError](err); ok {
			return err
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("%s: not reached within %s (start_timeout): "+
				"start it, or correct %s: %w", what, settings.FormatDuration(limit), setting, err)
		}
		logger.Warn("waiting for "+what, "error", err, "setting", setting,
			"give_up_in", left.Round(time.Second).String())
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(min(wait, left)):
		}
	}
}
