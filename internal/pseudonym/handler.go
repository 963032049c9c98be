package pseudonym

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/renewd/renewd/internal/grant"
)

// Logger is l without user ids.
func (n *Names) Logger(l *slog.Logger) *slog.Logger {
	if n == nil {
		return l
	}
	return slog.New(handler{l.Handler(), n, nil})
}

// handler is a slog.Handler that replaces ids. users are the users that the attributes so far name.
type handler struct {
	slog.Handler
	names *Names
	users []string
}

func (h handler) WithGroup(name string) slog.Handler {
	return handler{h.Handler.WithGroup(name), h.names, h.users}
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	users := append(h.users[:len(h.users):len(h.users)], usersOf(attrs)...)
	return handler{h.Handler.WithAttrs(h.names.attrs(attrs, users)), h.names, users}
}

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	var attrs []slog.Attr
	r.Attrs(func(a slog.Attr) bool { attrs = append(attrs, a); return true })
	users := append(h.users[:len(h.users):len(h.users)], usersOf(attrs)...)
	clean := slog.NewRecord(r.Time, r.Level, h.names.about(users, r.Message), r.PC)
	clean.AddAttrs(h.names.attrs(attrs, users)...)
	return h.Handler.Handle(ctx, clean)
}

// usersOf are the users that a log line is about.
func usersOf(attrs []slog.Attr) (users []string) {
	for _, a := range attrs {
		if k, ok := a.Value.Any().(grant.Key); ok {
			users = append(users, k.User)
		}
	}
	return users
}

// shortest is how long an id must be to be looked for in words other than renewd's.
const shortest = 4

// about is Text for a text about these users, whose ids may stand in foreign words too: a
// provider's, for instance.
func (n *Names) about(users []string, text string) string {
	text = n.Text(text)
	for _, user := range users {
		if len(user) >= shortest {
			text = strings.ReplaceAll(text, user, n.Of(user))
		}
	}
	return text
}

func (n *Names) attrs(in []slog.Attr, users []string) []slog.Attr {
	out := make([]slog.Attr, len(in))
	for i, a := range in {
		out[i] = slog.Attr{Key: a.Key, Value: n.value(a.Value.Resolve(), users)}
	}
	return out
}

func (n *Names) value(v slog.Value, users []string) slog.Value {
	switch v.Kind() {
	case slog.KindString:
		return slog.StringValue(n.about(users, v.String()))
	case slog.KindGroup:
		return slog.GroupValue(n.attrs(v.Group(), users)...)
	case slog.KindAny:
		if k, ok := v.Any().(grant.Key); ok {
			return slog.AnyValue(grant.Key{Provider: k.Provider, User: n.Of(k.User)})
		}
		text := fmt.Sprint(v.Any())
		if clean := n.about(users, text); clean != text {
			return slog.StringValue(clean)
		}
	}
	return v
}
