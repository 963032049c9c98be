package plain

import (
	"fmt"
	"time"
)

// Plural is n and a noun whose plural ends in s.
func Plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// Counted puts a number before the noun, one or many, for the things counted.
func Counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// InBrackets is s in brackets after a blank; empty where s is.
func InBrackets(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

// clockFormat is how times are shown to people, in their own zone.
const clockFormat = "2006-01-02 15:04:05"

// Clock is a time in the zone of this machine, or a dash for the zero time.
func Clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format(clockFormat)
}
