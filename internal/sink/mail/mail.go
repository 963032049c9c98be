package mail

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"strconv"
	"strings"
	"text/template"
	"time"

	gomail "github.com/wneessen/go-mail"

	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/internal/sink/session"
	"github.com/renewd/renewd/schema"
)

// Target mails users.
type Target struct {
	config         Config
	server         server
	from, operator *mail.Address
	to             *mail.Address // nil: to each user's own
	subject, text  *template.Template
	load           session.Loader
	tally          tally
	now            func() time.Time
}

// New returns the target of a mail server. New connects to nothing yet. Its errors name the
// setting.
func New(c Config, load session.Loader) (*Target, error) {
	t := &Target{config: c, load: load, now: time.Now}
	var err error
	if t.server, err = serverOf(c.Server); err != nil {
		return nil, fmt.Errorf("smtp_url: %w", err)
	}
	if (t.server.user == "") != c.Password.IsZero() {
		return nil, errors.New("smtp_password: set both it and a user in smtp_url, or neither")
	}
	if t.from, err = addressOf(c.From); err != nil {
		return nil, fmt.Errorf("from: %w", err)
	}
	if c.Operator == "" {
		c.Operator = c.To
	}
	if c.To != "" {
		if t.to, err = addressOf(c.To); err != nil {
			return nil, fmt.Errorf("to: %w", err)
		}
	}
	if t.operator, err = addressOf(c.Operator); err != nil {
		return nil, fmt.Errorf("operator: %w: it gets a digest in place of a mass of mails", err)
	}
	if c.Field != "" && c.Field != "email" && !strings.HasPrefix(c.Field, "raw:/") {
		return nil, fmt.Errorf("to_field: %q: want email, or raw:/POINTER (RFC 6901)", c.Field)
	}
	if t.subject, t.text, err = c.templates(); err != nil {
		return nil, err
	}
	if t.config.Timeout == 0 {
		t.config.Timeout = 15 * time.Second
	}
	if t.config.Cap == 0 {
		t.config.Cap = 100
	}
	return t, nil
}

// Close does nothing: each mail has its own connection.
func (t *Target) Close() {}

// Version orders one user's outcomes: an outcome that is not newer than the last mailed is not
// mailed.
func (t *Target) Version(e schema.Event) int64 {
	var data struct {
		Version int64 `json:"version"`
	}
	if json.Unmarshal(e.Data, &data) != nil {
		return 0
	}
	return data.Version
}

// Deliver mails the user of an outcome, unless the session lives again. Above the cap Deliver mails
// the operator, once an hour.
func (t *Target) Deliver(ctx context.Context, e schema.Event) error {
	if e.User == "" {
		return nil
	}
	s, err := session.Read(ctx, t.load, e)
	if err != nil {
		return err
	}
	if s == nil || s.Lives() || s.Forgotten() && t.to == nil {
		return sink.ErrWithheld // no address, or nothing to tell
	}
	to, err := t.recipient(s)
	if err != nil {
		return err
	}
	var data struct {
		Reason string `json:"reason"`
	}
	if json.Unmarshal(e.Data, &data) != nil {
		data.Reason = ""
	}
	facts := factsOf(e, s.Profile.Name, to.Address, data.Reason)
	return t.tally.pass(t.now(), t.config.Cap, facts.Reason,
		func() error { return t.tell(ctx, e, to, facts) },
		func(d digest) error { return t.report(ctx, d) })
}

// errNoAddress: a user cannot be mailed.
var errNoAddress = errors.New("the profile has no e-mail address that can be used")

// recipient is the address that hears of a user's session.
func (t *Target) recipient(s *session.Session) (*mail.Address, error) {
	if t.to != nil {
		return t.to, nil
	}
	text := s.Profile.Email
	if pointer, ok := strings.CutPrefix(t.config.Field, "raw:"); ok {
		text, _ = session.Pointed(s.Profile.Raw, pointer).(string)
	}
	a, err := addressOf(text)
	if err != nil {
		return nil, &sink.Fault{Blame: sink.Refused, Err: errNoAddress}
	}
	return &mail.Address{Address: a.Address}, nil
}

// tell mails the text of the templates.
func (t *Target) tell(ctx context.Context, e schema.Event, to *mail.Address, facts Facts) error {
	var subject, text bytes.Buffer
	if t.subject.Execute(&subject, facts) != nil || t.text.Execute(&text, facts) != nil {
		return &sink.Fault{Blame: sink.Refused, Err: errors.New("a template failed")}
	}
	return t.send(ctx, letter{
		to: to, subject: oneLine(subject.String()), text: text.String(),
		// The same over retries, so that a mail that comes twice is recognised.
		id: e.ID + "\x00" + string(e.Type),
	})
}

// letter is a mail to send.
type letter struct {
	to                *mail.Address
	subject, text, id string
}

// message is a letter in the form for sending.
func (t *Target) message(l letter) *gomail.Msg {
	m := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	m.FromMailAddress(t.from)
	m.ToMailAddress(l.to)
	m.Subject(l.subject)
	m.SetDateWithValue(t.now())
	sum := sha256.Sum256([]byte(l.id))
	_, domain, _ := strings.Cut(t.from.Address, "@")
	m.SetMessageIDWithValue(base64.RawURLEncoding.EncodeToString(sum[:16]) + "@" + domain)
	m.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: no out-of-office answers it
	m.SetBodyString(gomail.TypeTextPlain, l.text)
	return m
}

// deliveryLimit is how long a delivery may take, all its steps together.
const deliveryLimit = 50 * time.Second

// send hands a letter to the mail server.
func (t *Target) send(ctx context.Context, l letter) error {
	ctx, done := context.WithTimeout(ctx, deliveryLimit)
	defer done()
	port, err := strconv.Atoi(t.server.port)
	if err != nil {
		return errors.New("the address cannot be used")
	}
	// A connected go-mail heeds no context, so the end of ctx closes the connection.
	var release []func() bool
	defer func() {
		for _, stop := range release {
			stop()
		}
	}()
	policy := gomail.TLSMandatory
	if t.config.AllowPlaintext || t.server.implicit {
		policy = gomail.TLSOpportunistic // implicit TLS is made below, in any case
	}
	options := []gomail.Option{
		gomail.WithPort(port), gomail.WithTimeout(t.config.Timeout), gomail.WithTLSPolicy(policy),
		gomail.WithTLSConfig(t.tls()),
		gomail.WithDialContextFunc(func(dialing context.Context, network,
			address string) (net.Conn, error) {
			c, err := t.dial(dialing, network, address)
			if err == nil {
				release = append(release, context.AfterFunc(ctx, func() { _ = c.Close() }))
			}
			return c, err
		}),
	}
	if t.server.user != "" {
		auth := gomail.SMTPAuthAutoDiscover // never in clear text
		if t.config.AllowPlaintext {
			auth = gomail.SMTPAuthPlainNoEnc
		}
		options = append(options, gomail.WithSMTPAuth(auth), gomail.WithUsername(t.server.user),
			gomail.WithPassword(t.config.Password.Reveal()))
	}
	client, err := gomail.NewClient(t.server.host, options...)
	if err != nil {
		return errors.New("the mail server's address cannot be used")
	}
	m := t.message(l)
	err = client.DialAndSendWithContext(ctx, m)
	if m.IsDelivered() {
		return nil // a later error is no concern of this mail
	}
	return blame(err)
}

func (t *Target) tls() *tls.Config {
	return &tls.Config{
		ServerName: t.server.host, RootCAs: t.config.RootCAs, MinVersion: tls.VersionTLS12,
	}
}

// dial connects, with TLS from the first byte where the address says so.
func (t *Target) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := &net.Dialer{Timeout: t.config.Timeout / 2}
	if !t.server.implicit {
		return d.DialContext(ctx, network, address)
	}
	return (&tls.Dialer{NetDialer: d, Config: t.tls()}).DialContext(ctx, network, address)
}

// closing is the code with which a mail server closes a connection (RFC 5321, section 4.2.3).
const closing = 421

// blame is an error of a mail for the sink. A mail server's text may quote an address, so only its
// code is told.
func blame(err error) error {
	if err == nil {
		return nil
	}
	failed, sending := errors.AsType[*gomail.SendError](err)
	if !sending {
		return &sink.Fault{Blame: sink.Unreachable, Err: errors.New(unreached(err))}
	}
	code := ""
	if n := failed.ErrorCode(); n > 0 {
		code = fmt.Sprintf(" (%d)", n)
	}
	switch failed.Reason {
	case gomail.ErrSMTPRcptTo:
		if n := failed.ErrorCode(); n == 0 || n == closing {
			return errors.New("the connection to the mail server broke")
		}
		return &sink.Fault{Blame: sink.Refused,
			Err: errors.New("the mail server refuses the recipient" + code)}
	case gomail.ErrSMTPMailFrom:
		return &sink.Fault{Blame: sink.Unreachable,
			Err: errors.New("the mail server refuses the sender" + code)}
	}
	return errors.New("the mail server did not take the mail" + code)
}

// unreached says why no mail could be sent at all.
func unreached(err error) string {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok { // its text quotes names
		return "the mail server's certificate cannot be verified: set ca_file"
	}
	text := err.Error()
	switch {
	case strings.Contains(text, "STARTTLS"):
		return "the mail server offers no TLS: set allow_plaintext if its network is encrypted"
	case strings.Contains(text, "AUTH"), strings.Contains(text, "authentication"):
		return "the mail server did not take the user and the password"
	}
	return "the mail server cannot be reached"
}
