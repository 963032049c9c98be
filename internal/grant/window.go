package grant

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Window is a time of the week, the same in each week, in which grants are renewed.
type Window struct {
	days     [7]bool // by time.Weekday, on which the window opens
	from, to clock
	zone     *time.Location
}

// clock is a time of day.
type clock struct{ hour, minute int }

// ParseWindows reads windows as people write them, separated by semicolons: days, times and a time
// zone by its IANA name, UTC without a name. "Mon-Fri 09:00-17:00 Europe/Berlin; Sat 10:00-14:00"
// for instance. Days are ranges or lists of Mon to Sun, or daily. A window whose end is not after
// its beginning closes on the next day. The empty text is no window.
func ParseWindows(text string) (all []Window, err error) {
	for part := range strings.SplitSeq(text, ";") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		w, err := parseWindow(part)
		if err != nil {
			return nil, fmt.Errorf("%q: %w: want days, times and a time zone, "+
				"as in Mon-Fri 09:00-17:00 Europe/Berlin", strings.TrimSpace(part), err)
		}
		all = append(all, w)
	}
	return all, nil
}

func parseWindow(text string) (w Window, err error) {
	words := strings.Fields(text)
	if len(words) < 2 || len(words) > 3 {
		return w, fmt.Errorf("%d words", len(words))
	}
	if err := w.parseDays(words[0]); err != nil {
		return w, err
	}
	from, to, ok := strings.Cut(words[1], "-")
	if !ok {
		return w, fmt.Errorf("%q is not a time to a time", words[1])
	}
	if w.from, err = parseClock(from); err != nil {
		return w, err
	}
	if w.to, err = parseClock(to); err != nil {
		return w, err
	}
	if w.from == (clock{24, 0}) {
		return w, fmt.Errorf("it cannot open at 24:00")
	}
	w.zone = time.UTC
	if len(words) == 3 && words[2] != "Local" { // which means another zone on each machine
		w.zone, err = time.LoadLocation(words[2])
	} else if len(words) == 3 {
		err = fmt.Errorf("unknown time zone %s", words[2])
	}
	return w, err
}

var weekdays = []string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

func (w *Window) parseDays(text string) error {
	if strings.EqualFold(text, "daily") {
		text = "Sun-Sat"
	}
	day := func(name string) int {
		return slices.IndexFunc(weekdays, func(d string) bool { return strings.EqualFold(d, name) })
	}
	for part := range strings.SplitSeq(text, ",") {
		first, last, several := strings.Cut(part, "-")
		if !several {
			last = first
		}
		from, to := day(first), day(last)
		if from < 0 || to < 0 {
			return fmt.Errorf("%q are no days", part)
		}
		for d := from; ; d = (d + 1) % 7 {
			w.days[d] = true
			if d == to {
				break
			}
		}
	}
	return nil
}

func parseClock(text string) (clock, error) {
	if text == "24:00" {
		return clock{24, 0}, nil
	}
	t, err := time.Parse("15:04", text)
	if err != nil {
		return clock{}, fmt.Errorf("%q is no time of day", text)
	}
	return clock{t.Hour(), t.Minute()}, nil
}

// opening is when w opens next after at, and when w closes then. If w has opened before at and is
// still open, that opening is returned.
func (w Window) opening(at time.Time) (opens, closes time.Time) {
	local := at.In(w.zone)
	year, month, today := local.Date()
	over := 0 // days that the window lasts beyond midnight
	if w.to.hour < w.from.hour || w.to.hour == w.from.hour && w.to.minute <= w.from.minute {
		over = 1
	}
	for day := today - 1; ; day++ { // a window that opened yesterday may still be open
		opens = time.Date(year, month, day, w.from.hour, w.from.minute, 0, 0, w.zone)
		closes = time.Date(year, month, day+over, w.to.hour, w.to.minute, 0, 0, w.zone)
		weekday := time.Date(year, month, day, 12, 0, 0, 0, w.zone).Weekday()
		if w.days[weekday] && closes.After(at) && closes.After(opens) {
			return opens, closes
		}
	}
}

// openingSpread is how long after the opening of a window the waiting grants are spread.
const openingSpread = 10 * time.Minute

// Within is at, moved to the next opening of a window if at is in no window. Grants that wait for
// an opening are spread over the minutes after it: draw is in [0,1). Without windows Within is at.
func (p *Policy) Within(at time.Time, draw float64) time.Time {
	var next, end time.Time
	for _, w := range p.Windows {
		opens, closes := w.opening(at)
		if !opens.After(at) {
			return at
		}
		if next.IsZero() || opens.Before(next) {
			next, end = opens, closes
		}
	}
	if next.IsZero() {
		return at
	}
	spread := min(openingSpread, end.Sub(next)/2)
	return next.Add(time.Duration(draw * float64(spread))).UTC()
}
