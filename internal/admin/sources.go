package admin

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/source/hook"
)

// SourceLine is a source of posted messages, as `sources list` prints it.
type SourceLine struct {
	Name     string    `json:"name"`
	Kind     hook.Kind `json:"kind"`
	Provider string    `json:"provider"`
	hook.Figures
	// Owed are the erasures that messages asked for and renewd has not done yet.
	Owed []hook.Owed `json:"erasures_owed,omitempty"`
}

// Sources returns the sources of posted messages, with the figures and owed erasures of each.
func Sources(ctx context.Context, js jetstream.JetStream, conf *settings.Settings) (
	lines []SourceLine, err error) {
	for _, c := range conf.Hooks() {
		l := SourceLine{Name: c.Name, Kind: c.Kind, Provider: c.Provider}
		if l.Figures, err = hook.Look(ctx, js, conf.Subjects(), c.Name); err != nil {
			return nil, err
		}
		if l.Owed, err = hook.LookOwed(ctx, js, conf.Subjects(), c.Name); err != nil {
			return nil, err
		}
		lines = append(lines, l)
	}
	return lines, nil
}

// Refused is how many messages were refused, or could not be taken.
func (l SourceLine) Refused() (n uint64) {
	for result, count := range l.Counts {
		if result.Refused() || result == hook.Failed {
			n += count
		}
	}
	return n
}

// refusedLately is how long after a refused message the doctor warns.
const refusedLately = time.Hour

// sources looks for sources whose messages are refused, and for erasures that fail.
func (x *examination) sources(ctx context.Context) Finding {
	if len(x.on.Conf.Hooks()) == 0 {
		return Finding{State: Fine, Found: "none in the settings that others post to"}
	}
	lines, err := Sources(ctx, x.on.JS, x.on.Conf)
	if err != nil {
		return failed(err, "the streams must be there: see above")
	}
	var wrong []string
	for _, line := range lines {
		if word := line.trouble(x.on.Engine.Now()); word != "" {
			wrong = append(wrong, line.Name+": "+word)
		}
	}
	f := Finding{State: Fine, Found: plain.Counted(len(lines), "source", "sources")}
	if len(wrong) == 0 {
		return f
	}
	f.State, f.Found = Warning, strings.Join(wrong, "; ")
	f.Advice = fmt.Sprintf("%s sources list has the counts. A refused message did nothing; if it "+
		"was meant, compare its sender's settings with renewd's (docs/sources.md)", x.program)
	return f
}

// trouble is what is wrong with a source; empty if all is well.
func (l SourceLine) trouble(now time.Time) string {
	var words []string
	if r := l.Figures.Refused; r != nil && now.Sub(r.At) < refusedLately {
		words = append(words, fmt.Sprintf("%s not taken, the last at %s (%s: %s)",
			plain.Counted(int(l.Refused()), "message was", "messages were"), plain.Clock(r.At),
			r.Result, r.Why))
	}
	for _, o := range l.Owed {
		if o.Error != "" {
			words = append(words, fmt.Sprintf("%s wait, one since %s (%s)",
				plain.Counted(len(l.Owed), "erasure", "erasures"), plain.Clock(o.At),
				plain.Text(o.Error)))
			break
		}
	}
	return strings.Join(words, ", ")
}
