// Package plain makes texts for people: counts, times of day, and other people's texts made fit to
// be shown.
//
// Ids, reasons and the output of programs come from outside. Shown as they are, they could command
// a terminal. The package is pure: it prints nothing and looks at no clock.
package plain

import (
	"strings"
	"unicode"
)

// Text is s without characters that could command a terminal: ids and reasons are other people's
// text.
func Text(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' ||
			unicode.Is(unicode.Bidi_Control, r) {
			return '\uFFFD'
		}
		return r
	}, s)
}
