package mail

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/url"
	"strings"
	"text/template"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// Config is how mails are sent, their recipients, and their content.
type Config struct {
	// Server is smtp://user@host:587 (STARTTLS) or smtps://user@host:465. Required.
	Server string
	// Password is the password of the user in Server.
	Password secret.Value
	// RootCAs check the server's certificate. nil: the system's.
	RootCAs *x509.CertPool
	// AllowPlaintext lets mails, and the password, go without TLS where the server offers none.
	AllowPlaintext bool
	// Timeout of each step of a delivery. Default 15 s.
	Timeout time.Duration
	// From is the sender's address, with or without a name. Required.
	From string
	// To is the address of all mails. Empty: the address in the user's profile.
	To string
	// Field is the member of the profile with the user's address: "email", or raw:/POINTER into the
	// provider's own JSON. Default "email".
	Field string
	// Operator gets the digest of mails held back. Required without To, which is its default.
	Operator string
	// Cap is how many mails are sent in an hour. Default 100.
	Cap int
	// Subject and Text are templates of package text/template over Facts. Empty: the defaults.
	Subject, Text string
}

// Facts are the values that a template may show. No fact has a control character, so that no fact
// begins a line.
type Facts struct {
	Name     string // the user's, as the profile has it; may be empty
	Email    string // the address of the mail
	User     string // the provider's id of the user
	Provider string // the provider's id in the settings
	Type     string // user.reauth_required, say
	Reason   string // revoked, say; may be empty
	Time     string // of the outcome, RFC 3339
}

// The defaults show nothing from a profile, which the user, or a thief of the account, may have
// written.
const (
	DefaultSubject = "Please sign in again"
	DefaultText    = `Hello,

your session has ended, and you need to sign in again to go on.

If you have signed out yourself, or signed in again since, there is nothing to do.

This message was sent automatically. It has no link: open the app as you always do.
`
)

// Check names the first wrong field, as the settings have it.
func (c Config) Check() error {
	_, err := New(c, nil)
	return err
}

// server is the mail server that takes the mails.
type server struct {
	host, port, user string
	implicit         bool // TLS from the first byte
}

// serverOf reads the address. The error shows nothing of the address.
func serverOf(text string) (s server, err error) {
	u, err := url.Parse(text)
	switch {
	case text == "":
		return s, errors.New("missing: the mail server, as smtp://user@mail.example.com:587")
	case err != nil, u.Hostname() == "", u.Scheme != "smtp" && u.Scheme != "smtps":
		return s, errors.New("want smtp://user@host:587, or smtps://user@host:465")
	}
	if _, has := u.User.Password(); has {
		return s, errors.New("want no password in it: set smtp_password_file")
	}
	s = server{host: u.Hostname(), port: u.Port(), user: u.User.Username(),
		implicit: u.Scheme == "smtps"}
	if s.port == "" {
		s.port = map[bool]string{false: "587", true: "465"}[s.implicit]
	}
	return s, nil
}

// Host names the mail server.
func (c Config) Host() string {
	s, err := serverOf(c.Server)
	if err != nil {
		return ""
	}
	return net.JoinHostPort(s.host, s.port)
}

// plain reports whether an address has no character that SMTP or a header could take for something
// else, and is no longer than RFC 5321 section 4.5.3.1 allows. A regular expression with these
// lengths would keep 7 MB in every process.
func plain(address string) bool {
	local, domain, _ := strings.Cut(address, "@")
	odd := func(r rune) bool {
		return unicode.IsSpace(r) || unicode.Is(unicode.C, r) ||
			strings.ContainsRune(`<>()[]\,;:"@`, r)
	}
	fits := func(part string, longest int) bool {
		return part != "" && utf8.RuneCountInString(part) <= longest &&
			!strings.ContainsFunc(part, odd)
	}
	return fits(local, 64) && fits(domain, 255)
}

// addressOf reads one address, with or without a name.
func addressOf(text string) (*mail.Address, error) {
	a, err := mail.ParseAddress(text)
	if err != nil || !plain(a.Address) {
		return nil, errors.New("want an address such as app@example.com")
	}
	return a, nil
}

// templates read the templates of mails, and try each: a template with a mistake would hold all
// mails up.
func (c Config) templates() (subject, text *template.Template, err error) {
	read := func(name, says, otherwise string) (*template.Template, error) {
		if says == "" {
			says = otherwise
		}
		t, err := template.New(name).Option("missingkey=error").Parse(says)
		if err == nil {
			err = t.Execute(&bytes.Buffer{}, Facts{})
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return t, nil
	}
	if subject, err = read("subject", c.Subject, DefaultSubject); err != nil {
		return nil, nil, err
	}
	text, err = read("text", c.Text, DefaultText)
	return subject, text, err
}

// Templates parts the content of a file of a mail's text: a first line that begins with Subject: is
// the subject's template.
func Templates(file string) (subject, text string) {
	first, rest, _ := strings.Cut(file, "\n")
	if says, ok := strings.CutPrefix(first, "Subject:"); ok {
		return strings.TrimSpace(says), strings.TrimLeft(rest, "\r\n")
	}
	return "", file
}

// most is how much of one fact a mail shows, in letters.
const most = 200

// oneLine is a text without control characters, and not long.
func oneLine(text string) string {
	var b strings.Builder
	n := 0
	for _, r := range strings.ToValidUTF8(text, "") {
		if n++; n > most {
			break
		}
		if unicode.Is(unicode.C, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r) {
			r = ' '
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String())
}

// factsOf is what a template may say of an outcome.
func factsOf(e schema.Event, name, address, reason string) Facts {
	return Facts{
		Name: oneLine(name), Email: oneLine(address), User: oneLine(e.User),
		Provider: e.Provider, Type: string(e.Type), Reason: oneLine(reason),
		Time: e.Time.UTC().Format(time.RFC3339),
	}
}
