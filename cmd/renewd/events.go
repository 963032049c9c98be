package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/renewd/renewd/schema"
	"golang.org/x/term"
)

// eventFlags choose among outcomes.
type eventFlags struct {
	Type     []string `placeholder:"TYPE" help:"Only this type of event, user.reauth_required for instance; may be repeated."`
	Provider string   `placeholder:"ID" help:"Only this provider."`
	User     string   `placeholder:"ID" help:"Only this user, as the provider writes it."`
}

// types are the types asked for.
func (f eventFlags) types() ([]schema.Type, error) {
	var known []string
	for _, t := range schema.Outcomes() {
		known = append(known, string(t))
	}
	var types []schema.Type
	for _, t := range f.Type {
		if !slices.Contains(known, t) {
			return nil, usageError{fmt.Errorf("--type %s: no such outcome%s: want one of %s", t, didYouMean(t, known), strings.Join(known, ", "))}
		}
		types = append(types, schema.Type(t))
	}
	return types, nil
}

func (f eventFlags) check() error {
	if f.Provider != "" {
		if err := schema.CheckProvider(f.Provider); err != nil {
			return usageError{fmt.Errorf("--provider: %w", err)}
		}
	}
	if f.User != "" {
		if err := schema.CheckUser(f.User); err != nil {
			return usageError{fmt.Errorf("--user: %w", err)}
		}
	}
	return nil
}

// cloudEvent is an event in the CloudEvents JSON format, with the provider as an extension.
type cloudEvent struct {
	SpecVersion string          `json:"specversion"`
	ID          string          `json:"id"`
	Source      string          `json:"source"`
	Type        schema.Type     `json:"type"`
	Provider    string          `json:"provider,omitempty"`
	Subject     string          `json:"subject,omitempty"`
	Time        time.Time       `json:"time"`
	DataSchema  string          `json:"dataschema,omitempty"`
	Data        json.RawMessage `json:"data,omitempty"`
}

func printJSON(w io.Writer, e schema.Event) error {
	return json.NewEncoder(w).Encode(cloudEvent{"1.0", e.ID, e.Source, e.Type, e.Provider, e.User, e.Time, e.DataSchema, e.Data})
}

// palette colours text for a terminal, or leaves it as it is.
type palette bool

func colours(w io.Writer, environ []string) palette {
	return palette(isTerminal(w) && otelEnv(environ).get("NO_COLOR") == "" && otelEnv(environ).get("TERM") != "dumb")
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func (p palette) paint(code, text string) string {
	if !p {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (p palette) ofType(t schema.Type, text string) string {
	switch t {
	case schema.UserSynced, schema.ProviderRecovered:
		return p.paint("32", text)
	case schema.UserReauthRequired, schema.MessageRejected, schema.ProviderDegraded:
		return p.paint("31", text)
	default:
		return p.paint("33", text)
	}
}

// printLine writes an event as one line for people.
func printLine(w io.Writer, p palette, e schema.Event) error {
	who := e.Provider
	if e.User != "" {
		who += "/" + e.User
	}
	_, err := fmt.Fprintf(w, "%s  %s  %-24s  %s\n", p.paint("2", e.Time.Local().Format("15:04:05.000")),
		p.ofType(e.Type, fmt.Sprintf("%-20s", e.Type)), printable(who), printable(describe(e, e.Time)))
	return err
}

// printable is s without what could command a terminal: ids and reasons are other people's text.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Bidi_Control, r) {
			return '\uFFFD'
		}
		return r
	}, s)
}

// describe says what an event tells, for people.
func describe(e schema.Event, now time.Time) string {
	switch e.Type {
	case schema.UserSynced:
		return describeAs(e, func(d schema.Synced) string { return describeSynced(d, now) })
	case schema.UserReauthRequired:
		return describeAs(e, func(d schema.ReauthRequired) string {
			return "must sign in again: " + d.Reason + inBrackets(d.ProviderError) + because(d.Cause)
		})
	case schema.UserRefreshFailed:
		return describeAs(e, func(d schema.RefreshFailed) string {
			text := d.Reason + inBrackets(d.ProviderError)
			if d.Attempts > 0 {
				text += " after " + tries(d.Attempts)
			}
			if d.NextAttemptAt != nil {
				text += ", next try in " + until(now, *d.NextAttemptAt)
			}
			return text + because(d.Cause)
		})
	case schema.UserForgotten:
		return describeAs(e, func(d schema.Forgotten) string {
			return "erased" + byOperator(d.By) + because(d.Cause)
		})
	case schema.MessageRejected:
		return describeAs(e, func(d schema.Rejected) string {
			return d.Subject + ": " + d.Reason + inBrackets(d.Field) + ": " + d.Message
		})
	case schema.OperatorActed:
		return describeAs(e, func(d schema.Acted) string {
			about := inBrackets(strings.Join(d.About, ", "))
			return d.By + ": " + strings.ReplaceAll(d.Act, ".", " ") + about
		})
	case schema.ProviderDegraded, schema.ProviderRecovered:
		return describeAs(e, func(d schema.ProviderState) string {
			return fmt.Sprintf("%s since %s, %d waiting", d.Reason, clock(d.Since), d.Waiting)
		})
	default:
		return string(e.Data)
	}
}

func describeAs[T any](e schema.Event, say func(T) string) string {
	d, err := schema.Data[T](e)
	if err != nil {
		return err.Error()
	}
	return say(d)
}

func describeSynced(d schema.Synced, now time.Time) string {
	text := "profile synced"
	if d.Refreshed {
		text = "tokens renewed"
	}
	if d.Recovered {
		text += ", recovered"
	}
	switch n := len(d.Changed); {
	case n > 4:
		text += fmt.Sprintf(", changed %d fields", n)
	case n > 0:
		text += ", changed " + strings.Join(d.Changed, " ")
	}
	if !d.NextDueAt.IsZero() {
		text += ", next in " + until(now, d.NextDueAt)
	}
	return text + because(d.Cause)
}

func inBrackets(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

// because names the cause unless it is the grant's own timer, which is the usual one.
func because(c schema.Cause) string {
	if c.Type == "" || c.Type == schema.CauseTimer {
		return ""
	}
	return " [" + string(c.Type) + strings.TrimRight(" "+c.Reason, " ") + "]"
}

func byOperator(name string) string {
	if name == "" {
		return ""
	}
	return " by " + name
}

// until is the time from now to at, rounded for reading.
func until(now, at time.Time) string {
	d := at.Sub(now)
	switch {
	case d <= 0:
		return "0s"
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	default:
		return formatDuration(d.Round(time.Second))
	}
}

func tries(n int) string {
	if n == 1 {
		return "1 try"
	}
	return fmt.Sprintf("%d tries", n)
}
