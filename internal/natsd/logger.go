package natsd

import (
	"fmt"
	"log/slog"
)

// logger hands the server's log to slog. Notices are for people who run NATS for its own sake, so
// they become debug.
type logger struct {
	log   *slog.Logger
	fatal chan<- string
}

func (l logger) Noticef(format string, v ...any) {
	l.log.Debug(fmt.Sprintf(format, v...), "from", "nats")
}
func (l logger) Debugf(format string, v ...any) {
	l.log.Debug(fmt.Sprintf(format, v...), "from", "nats")
}
func (l logger) Tracef(format string, v ...any) {
	l.log.Debug(fmt.Sprintf(format, v...), "from", "nats")
}
func (l logger) Warnf(format string, v ...any) {
	l.log.Warn(fmt.Sprintf(format, v...), "from", "nats")
}
func (l logger) Errorf(format string, v ...any) {
	l.log.Error(fmt.Sprintf(format, v...), "from", "nats")
}

// Fatalf does not end the process, unlike the server's own logger. The first text becomes Start's
// error.
func (l logger) Fatalf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	select {
	case l.fatal <- text:
	default:
		l.log.Error(text, "from", "nats")
	}
}
