package schema

import (
	"errors"
	"net/url"
	"strings"
	"unicode/utf8"
)

// percentEncode writes an attribute as the CloudEvents NATS binding wants it in a header: space,
// the double quote, the percent sign and everything outside U+0021-U+007E is percent-encoded.
func percentEncode(v string) string {
	n := 0
	for i := 0; i < len(v); i++ {
		if percentEncoded(v[i]) {
			n++
		}
	}
	if n == 0 {
		return v
	}
	b := make([]byte, 0, len(v)+2*n)
	for i := 0; i < len(v); i++ {
		if c := v[i]; percentEncoded(c) {
			b = append(b, '%', hexDigits[c>>4], hexDigits[c&15])
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}

func percentEncoded(c byte) bool { return c <= ' ' || c == '"' || c == '%' || c > '~' }

// percentDecode takes the double quotes off a quoted value, which older publishers write, and
// undoes exactly one round of percent-encoding.
func percentDecode(v string) (string, error) {
	if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
		var b strings.Builder
		for i := 1; i < len(v)-1; i++ {
			if v[i] == '\\' && i+1 < len(v)-1 {
				i++
			}
			b.WriteByte(v[i])
		}
		v = b.String()
	}
	d, err := url.PathUnescape(v)
	if err != nil {
		return "", errors.New("bad percent-encoding: write the percent sign itself as %25")
	}
	if !utf8.ValidString(d) {
		return "", errors.New("not UTF-8 once percent-decoded")
	}
	return d, nil
}
