package mail_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/quotedprintable"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/internal/sink/mail"
	"github.com/renewd/renewd/internal/testkit/smtptest"
	"github.com/renewd/renewd/schema"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// store is a store in which each user has signed out, or whatever change says.
type store struct {
	change func(*grant.Grant, *schema.Profile)
}

func (s store) load(_ context.Context, k grant.Key) (grant.Grant, error) {
	g := grant.Grant{Key: k, Version: 7, Status: grant.ReauthRequired}
	p := schema.Profile{ID: k.User, Email: k.User + "@a.example", Name: "Jane Doe",
		Raw: []byte(`{"contact":{"mail":"work@b.example"}}`)}
	if s.change != nil {
		s.change(&g, &p)
	}
	var err error
	g.Profile, err = grant.NewProfile(p)
	return g, err
}

func config(s *smtptest.Server) mail.Config {
	return mail.Config{
		Server: "smtp://" + s.Addr(), RootCAs: s.Roots(), From: "The app <app@shop.example>",
		Operator: "ops@shop.example", Timeout: 10 * time.Second,
	}
}

func target(t *testing.T, c mail.Config, s store) *mail.Target {
	t.Helper()
	to, err := mail.New(c, s.load)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(to.Close)
	return to
}

func ended(user string) schema.Event {
	return schema.Event{
		ID: "e-" + user, Type: schema.UserReauthRequired, Provider: "propelauth", User: user,
		Time: time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC),
		Data: json.RawMessage(`{"version":7,"reason":"revoked"}`),
	}
}

func deliver(t *testing.T, to *mail.Target, e schema.Event) {
	t.Helper()
	if err := to.Deliver(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

func withheld(t *testing.T, to *mail.Target, e schema.Event) {
	t.Helper()
	if err := to.Deliver(t.Context(), e); !errors.Is(err, sink.ErrWithheld) {
		t.Errorf("a mail not sent is told as %v", err)
	}
}

func body(t *testing.T, m smtptest.Mail) string {
	t.Helper()
	text, err := io.ReadAll(quotedprintable.NewReader(strings.NewReader(m.Body)))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(text), "\r\n", "\n")
}

// A user is mailed over TLS, by STARTTLS or from the first byte, and the password is given. The id
// of the mail stays the same over retries.
func TestMailsTheUser(t *testing.T) {
	for security, scheme := range map[smtptest.Security]string{
		smtptest.StartTLS: "smtp", smtptest.Implicit: "smtps",
	} {
		at := smtptest.Start(t, security)
		at.User, at.Password = "app", "s3cret"
		c := config(at)
		c.Server, c.Password = scheme+"://app@"+at.Addr(), secret.New("s3cret")
		to := target(t, c, store{})
		for range 2 {
			deliver(t, to, ended("jane"))
		}
		mails := at.Mails()
		if len(mails) != 2 {
			t.Fatalf("%s: %d mails", scheme, len(mails))
		}
		m := mails[0]
		if !m.Secure || m.User != "app" || m.From != "app@shop.example" ||
			!slices.Equal(m.To, []string{"jane@a.example"}) {
			t.Errorf("%s: %+v", scheme, m)
		}
		if m.Header.Get("Subject") != mail.DefaultSubject || body(t, m) != mail.DefaultText ||
			m.Header.Get("From") != `"The app" <app@shop.example>` ||
			m.Header.Get("Auto-Submitted") != "auto-generated" ||
			strings.Contains(m.Raw, "Jane") {
			t.Errorf("%s: %s", scheme, m.Raw)
		}
		if id := m.Header.Get("Message-Id"); !strings.HasSuffix(id, "@shop.example>") ||
			id != mails[1].Header.Get("Message-Id") {
			t.Errorf("the id is %q, and once more %q", id, mails[1].Header.Get("Message-Id"))
		}
		if to.Version(ended("jane")) != 7 {
			t.Error("the outcome's version is not known")
		}
	}
}

// Without TLS nothing is sent, and no password is shown, unless the settings allow it.
func TestNoMailWithoutTLS(t *testing.T) {
	at := smtptest.Start(t, smtptest.None)
	at.User, at.Password = "app", "s3cret"
	c := config(at)
	c.Server, c.Password = "smtp://app@"+at.Addr(), secret.New("s3cret")
	faulty(t, target(t, c, store{}).Deliver(t.Context(), ended("jane")), sink.Unreachable,
		"offers no TLS")
	c.RootCAs = nil // that of the system do not know the server below
	c.AllowPlaintext = true
	deliver(t, target(t, c, store{}), ended("jane"))
	if n := len(at.Mails()); n != 1 {
		t.Errorf("%d mails, want the allowed one", n)
	}
	secure := smtptest.Start(t, smtptest.Implicit)
	for _, scheme := range []string{"smtps://", "smtp://"} {
		c := config(secure)
		c.Server, c.RootCAs = scheme+secure.Addr(), nil
		if scheme == "smtp://" {
			secure = smtptest.Start(t, smtptest.StartTLS)
			c.Server = scheme + secure.Addr()
		}
		faulty(t, target(t, c, store{}).Deliver(t.Context(), ended("jane")), sink.Unreachable,
			"certificate cannot be verified")
	}
}

// faulty wants a fault of this blame that says this, and shows neither a password nor an address.
func faulty(t *testing.T, err error, blame sink.Blame, says string) {
	t.Helper()
	got := sink.Unclear
	if f, ok := errors.AsType[*sink.Fault](err); ok {
		got = f.Blame
	}
	if err == nil || got != blame || !strings.Contains(err.Error(), says) ||
		strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "jane") {
		t.Errorf("%v (%s), want %s: %s", err, got, blame, says)
	}
}

// What a profile holds begins no header and no second recipient, whatever templates say.
func TestProfileInjectsNothing(t *testing.T) {
	at := smtptest.Start(t, smtptest.StartTLS)
	c := config(at)
	c.Subject, c.Text = "{{.Name}}, {{.User}}", "{{.Name}} {{.Email}} {{.Reason}} {{.Time}}"
	evil := "Jane\r\nBcc: victim@b.example\r\n\r\nclick\u2028here\u0085\u202e" +
		strings.Repeat("x", 9000)
	to := target(t, c, store{func(_ *grant.Grant, p *schema.Profile) { p.Name = evil }})
	deliver(t, to, ended("jane"))
	m := at.Mails()[0]
	if m.Header.Get("Bcc") != "" || len(m.To) != 1 || len(body(t, m)) > 400 ||
		strings.ContainsAny(strings.TrimSpace(body(t, m)), "\r\n\u2028\u0085\u202e") {
		t.Error(m.Raw)
	}
	for _, address := range []string{
		"", "jane", "a@b.example, c@d.example", "a@b.example\r\nRCPT TO:<c@d.example>",
		"<a@b.example> SIZE=1", `"a b"@c.example`, "a@b@c.example", "a@[127.0.0.1]",
		strings.Repeat("a", 65) + "@b.example", "a\x00@b.example", "a\u2003b@c.example", "a@",
		"a@" + strings.Repeat("b", 256),
	} {
		to := target(t, c, store{func(_ *grant.Grant, p *schema.Profile) { p.Email = address }})
		faulty(t, to.Deliver(t.Context(), ended("jane")), sink.Refused, "no e-mail address")
	}
	if n := len(at.Mails()); n != 1 {
		t.Errorf("%d mails, want one", n)
	}
}

// A mail goes where the settings say, with what they say, and to nobody whose session lives again.
func TestSettings(t *testing.T) {
	at := smtptest.Start(t, smtptest.StartTLS)
	c := config(at)
	c.Field = "raw:/contact/mail"
	subject, text := mail.Templates("Subject: {{.Provider}} {{.Type}}\n\nüber {{.Reason}}\n")
	c.Subject, c.Text = subject, text
	deliver(t, target(t, c, store{}), ended("jane"))
	c = config(at)
	c.To, c.Operator = "support@shop.example", ""
	deliver(t, target(t, c, store{}), ended("jane"))
	again := store{func(g *grant.Grant, _ *schema.Profile) { g.Status = grant.Live }}
	withheld(t, target(t, c, again), ended("jane"))
	deliver(t, target(t, config(at), store{}), schema.Event{Type: schema.ProviderDegraded})
	mails := at.Mails()
	if len(mails) != 2 || mails[0].To[0] != "work@b.example" ||
		mails[0].Header.Get("Subject") != "propelauth user.reauth_required" ||
		body(t, mails[0]) != "über revoked\n" || mails[1].To[0] != "support@shop.example" {
		t.Errorf("%+v", mails)
	}
}

// Of a mass of sign-outs so many users are mailed as the cap says, and the operator once. If the
// operator's mail fails, nothing counts as held back.
func TestMassIsOneDigest(t *testing.T) {
	at := smtptest.Start(t, smtptest.StartTLS)
	var mu sync.Mutex
	full := true
	at.Answer = func(command string) string {
		mu.Lock()
		defer mu.Unlock()
		if full && strings.Contains(command, "RCPT TO:<ops@") {
			return "452 full"
		}
		return ""
	}
	c := config(at)
	c.Cap = 5
	to := target(t, c, store{})
	for i := range 5 {
		deliver(t, to, ended(fmt.Sprint("u", i)))
	}
	faulty(t, to.Deliver(t.Context(), ended("u5")), sink.Refused, "refuses the recipient (452)")
	mu.Lock()
	full = false
	mu.Unlock()
	var delivering sync.WaitGroup
	for i := range 50 {
		delivering.Go(func() {
			withheld(t, to, ended(fmt.Sprint("u", 5+i)))
		})
	}
	delivering.Wait()
	mails := at.Mails()
	if len(mails) != 6 {
		t.Fatalf("%d mails, want 5 to users and a digest", len(mails))
	}
	digest := mails[5]
	if digest.To[0] != "ops@shop.example" || !strings.Contains(body(t, digest), "revoked") ||
		strings.Contains(digest.Raw, "@a.example") {
		t.Error(digest.Raw)
	}
}

// What the mail server answers is blamed on the recipient, or on the server.
func TestAnswers(t *testing.T) {
	for command, c := range map[string]struct {
		answer string
		blame  sink.Blame
		says   string
	}{
		"RCPT": {"550 jane is unknown", sink.Refused, "refuses the recipient (550)"},
		"MAIL": {"550 who are you", sink.Unreachable, "refuses the sender (550)"},
		"DATA": {"451 later, jane", sink.Unclear, "did not take the mail (451)"},
		"EHLO": {"421 later", sink.Unreachable, "cannot be reached"},
	} {
		at := smtptest.Start(t, smtptest.StartTLS)
		at.Answer = func(line string) string {
			if strings.HasPrefix(line, command) || command == "EHLO" &&
				strings.HasPrefix(line, "HELO") {
				return c.answer
			}
			return ""
		}
		faulty(t, target(t, config(at), store{}).Deliver(t.Context(), ended("jane")), c.blame,
			c.says)
	}
	at := smtptest.Start(t, smtptest.StartTLS)
	c := config(at)
	at.Close()
	faulty(t, target(t, c, store{}).Deliver(t.Context(), ended("jane")), sink.Unreachable,
		"cannot be reached")
}

// A server that falls silent is left soon after the delivery was told to end.
func TestDeliveryEndsWithItsContext(t *testing.T) {
	at := smtptest.Start(t, smtptest.StartTLS)
	asked, silent := make(chan struct{}), make(chan struct{})
	at.Answer = func(line string) string {
		if strings.HasPrefix(line, "DATA") {
			close(asked)
			<-silent
		}
		return ""
	}
	defer close(silent)
	ctx, stop := context.WithCancel(t.Context())
	c := config(at)
	c.Timeout = time.Minute
	ended := ended("jane")
	to := target(t, c, store{})
	done := make(chan error, 1)
	go func() { done <- to.Deliver(ctx, ended) }()
	<-asked
	stop()
	if err := <-done; err == nil {
		t.Error("a mail that was cut off counts as delivered")
	}
}

// Mistakes in the settings name the setting, and show no password.
func TestCheck(t *testing.T) {
	for want, change := range map[string]func(*mail.Config){
		"":                    func(*mail.Config) {},
		"smtp_url: missing":   func(c *mail.Config) { c.Server = "" },
		"smtp_url: want smtp": func(c *mail.Config) { c.Server = "mail.example.com" },
		"smtp_url: want no password": func(c *mail.Config) {
			c.Server = "smtp://u:s3cret@mail.example.com"
		},
		"smtp_password: set both": func(c *mail.Config) { c.Password = secret.New("s3cret") },
		"from: want":              func(c *mail.Config) { c.From = "app" },
		"to: want":                func(c *mail.Config) { c.To = "a@b, c@d" },
		"operator: want":          func(c *mail.Config) { c.Operator = "" },
		"to_field: ":              func(c *mail.Config) { c.Field = "name" },
		"subject: ":               func(c *mail.Config) { c.Subject = "{{.Nmae}}" },
		"text: ":                  func(c *mail.Config) { c.Text = "{{" },
	} {
		c := mail.Config{Server: "smtp://mail.example.com", From: "a@b.example",
			Operator: "o@b.example"}
		change(&c)
		err := c.Check()
		if want == "" && err != nil || want != "" && (err == nil ||
			!strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "s3cret")) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
