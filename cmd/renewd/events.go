package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/renewd/renewd/internal/api"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/schema"
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
			return nil, settings.Mistake(fmt.Errorf("--type %s: no such outcome%s: want one of %s",
				t, settings.DidYouMean(t, known), strings.Join(known, ", ")))
		}
		types = append(types, schema.Type(t))
	}
	return types, nil
}

func (f eventFlags) check() error {
	if f.Provider != "" {
		if err := schema.CheckProvider(f.Provider); err != nil {
			return settings.Mistake(fmt.Errorf("--provider: %w", err))
		}
	}
	if f.User != "" {
		if err := schema.CheckUser(f.User); err != nil {
			return settings.Mistake(fmt.Errorf("--user: %w", err))
		}
	}
	return nil
}

// printJSON writes an event as HTTP shows it: the same programs read both.
func printJSON(w io.Writer, e schema.Event) error {
	return json.NewEncoder(w).Encode(api.OutcomeOf(e))
}

// palette colours text for a terminal, or leaves the text as it is.
type palette bool

func colours(w io.Writer, environ []string) palette {
	return palette(isTerminal(w) && settings.Environ(environ).Get("NO_COLOR") == "" &&
		settings.Environ(environ).Get("TERM") != "dumb")
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
	_, err := fmt.Fprintf(w, "%s  %s  %-24s  %s\n",
		p.paint("2", e.Time.Local().Format("15:04:05.000")),
		p.ofType(e.Type, fmt.Sprintf("%-20s", e.Type)),
		plain.Text(who), plain.Text(describe(e, e.Time)))
	return err
}

// describe is an event's message, for people.
func describe(e schema.Event, now time.Time) string {
	switch e.Type {
	case schema.UserSynced:
		return describeAs(e, func(d schema.Synced) string { return describeSynced(d, now) })
	case schema.UserReauthRequired:
		return describeAs(e, func(d schema.ReauthRequired) string {
			return "must sign in again: " + d.Reason + plain.InBrackets(d.ProviderError) +
				because(d.Cause)
		})
	case schema.UserRefreshFailed:
		return describeAs(e, func(d schema.RefreshFailed) string {
			text := d.Reason + plain.InBrackets(d.ProviderError)
			if d.Attempts > 0 {
				text += " after " + tries(d.Attempts)
			}
			if d.NextAttemptAt != nil {
				text += ", next try in " + until(now, *d.NextAttemptAt)
			}
			return text + because(d.Cause)
		})
	case schema.UserSignedOut:
		return describeAs(e, describeSignedOut)
	case schema.UserSuspended:
		return describeAs(e, func(d schema.Suspended) string {
			return "suspended: rests until a user.resume or a login" + because(d.Cause)
		})
	case schema.UserForgotten:
		return describeAs(e, func(d schema.Forgotten) string {
			return "erased" + byOperator(d.By) + because(d.Cause)
		})
	case schema.MessageRejected:
		return describeAs(e, func(d schema.Rejected) string {
			return d.Subject + ": " + d.Reason + plain.InBrackets(d.Field) + ": " + d.Message
		})
	case schema.OperatorActed:
		return describeAs(e, func(d schema.Acted) string {
			about := plain.InBrackets(strings.Join(d.About, ", "))
			return d.By + ": " + strings.ReplaceAll(d.Act, ".", " ") + about
		})
	case schema.TokenRead:
		return describeAs(e, describeReading)
	case schema.ProviderDegraded, schema.ProviderRecovered:
		return describeAs(e, func(d schema.ProviderState) string {
			return fmt.Sprintf("%s since %s, %d waiting", d.Reason, plain.Clock(d.Since), d.Waiting)
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

func describeReading(d schema.Reading) string {
	return fmt.Sprintf("version %d read by %s over %s",
		d.Version, cmp.Or(d.Reader, "a service without a name"), strings.ToUpper(d.Door))
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

func describeSignedOut(d schema.SignedOut) string {
	text := "tokens dropped"
	switch {
	case d.Reason == schema.ReasonSessionMax && d.Cause.Type != schema.UserLogout:
		text += ": the session has reached the limit that is set"
	case d.Revoked:
		text += ", and revoked at the provider"
	case d.RevokeError != "":
		text += ", but not revoked at the provider: " + d.RevokeError
	}
	return text + because(d.Cause)
}

// because names the cause unless it is the usual cause, the grant's own timer.
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
		return settings.FormatDuration(d.Round(time.Second))
	}
}

func tries(n int) string {
	if n == 1 {
		return "1 try"
	}
	return fmt.Sprintf("%d tries", n)
}
