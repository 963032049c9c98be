// Package smtptest is a mail server for tests. The server speaks SMTP (RFC 5321) over loopback,
// with STARTTLS (RFC 3207), TLS from the first byte, or without TLS, and keeps the mails it gets.
//
// The server never ships, passes no mail on, and ends with the test that started it. A Server is
// safe for concurrent use.
package smtptest

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"net/mail"
	"net/textproto"
	"strings"
	"sync"
	"testing"
)

// Security is how a server protects its connections.
type Security int

// A server offers STARTTLS, has TLS from the first byte, or has no TLS.
const (
	StartTLS Security = iota
	Implicit
	None
)

// Mail is a mail a server got.
type Mail struct {
	From   string
	To     []string
	Secure bool   // came over TLS
	User   string // the client's user; empty: not signed in
	Header mail.Header
	Body   string // as sent, with its transfer encoding
	Raw    string
}

// Server is a mail server. Its fields may be set before the first connection.
type Server struct {
	// User and Password are asked for where User is not empty.
	User, Password string
	// Answer, if set, is asked for the answer to each command before the command is heeded. An
	// empty answer heeds the command.
	Answer func(command string) string

	security Security
	listener net.Listener
	tls      *tls.Config
	roots    *x509.CertPool
	pem      string
	mu       sync.Mutex
	mails    []Mail
	open     map[net.Conn]bool
	serving  sync.WaitGroup
}

// Start runs a server until the test ends.
func Start(t testing.TB, security Security) *Server {
	t.Helper()
	borrowed := httptest.NewUnstartedServer(nil) // for its certificate, which names 127.0.0.1
	borrowed.StartTLS()
	defer borrowed.Close()
	s := &Server{security: security, roots: x509.NewCertPool(), open: map[net.Conn]bool{},
		tls: &tls.Config{Certificates: borrowed.TLS.Certificates}}
	s.roots.AddCert(borrowed.Certificate())
	s.pem = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: borrowed.Certificate().Raw}))
	var err error
	if s.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	s.serving.Go(s.accept)
	t.Cleanup(s.Close)
	return s
}

// Addr is the server's host and port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Roots verify the server's certificate.
func (s *Server) Roots() *x509.CertPool { return s.roots }

// PEM is the certificate that verifies the server's certificate, in a file's form.
func (s *Server) PEM() string { return s.pem }

// Mails are all mails so far.
func (s *Server) Mails() []Mail {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Mail(nil), s.mails...)
}

// Close ends the server and its connections. Close may be called twice.
func (s *Server) Close() {
	_ = s.listener.Close() // an error means: already closed
	s.mu.Lock()
	for c := range s.open {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
}

func (s *Server) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.open[c] = true
		s.mu.Unlock()
		s.serving.Go(func() {
			defer func() {
				_ = c.Close()
				s.mu.Lock()
				delete(s.open, c)
				s.mu.Unlock()
			}()
			v := &visit{Server: s, conn: c}
			if s.security == Implicit {
				v.conn, v.mail.Secure = tls.Server(c, s.tls), true
			}
			v.serve()
		})
	}
}

// visit is one connection.
type visit struct {
	*Server
	conn net.Conn
	text *textproto.Conn
	mail Mail
}

func (v *visit) serve() {
	v.text = textproto.NewConn(v.conn)
	v.say("220 smtptest")
	for {
		line, err := v.text.ReadLine()
		if err != nil {
			return
		}
		answer := ""
		if v.Answer != nil {
			answer = v.Answer(line)
		}
		if answer == "" {
			answer = v.heed(line)
		}
		if answer != "" {
			v.say(answer)
		}
		if strings.EqualFold(line, "QUIT") {
			return
		}
	}
}

func (v *visit) say(line string) { _ = v.text.PrintfLine("%s", line) } // the client may be gone

// heed carries a command out, and returns the answer; empty: the answer is given already.
func (v *visit) heed(line string) string {
	word, rest, _ := strings.Cut(line, " ")
	switch word = strings.ToUpper(word); word {
	case "EHLO", "HELO":
		return v.greet()
	case "STARTTLS":
		v.say("220 go on")
		v.conn = tls.Server(v.conn, v.tls)
		v.text, v.mail = textproto.NewConn(v.conn), Mail{Secure: true}
		return ""
	case "AUTH":
		return v.signIn(rest)
	case "NOOP", "QUIT":
		return "250 so be it"
	case "RSET":
		v.mail = Mail{Secure: v.mail.Secure, User: v.mail.User}
		return "250 so be it"
	case "MAIL":
		if v.User != "" && v.mail.User == "" {
			return "530 sign in first"
		}
		v.mail.From = address(rest)
		return "250 so be it"
	case "RCPT":
		v.mail.To = append(v.mail.To, address(rest))
		return "250 so be it"
	case "DATA":
		return v.take()
	}
	return "500 what is that"
}

func (v *visit) greet() string {
	lines := []string{"smtptest", "8BITMIME", "SMTPUTF8"}
	if v.security == StartTLS && !v.mail.Secure {
		lines = append(lines, "STARTTLS")
	}
	if v.User != "" {
		lines = append(lines, "AUTH PLAIN")
	}
	for _, line := range lines {
		v.say("250-" + line)
	}
	return "250 HELP"
}

func (v *visit) signIn(rest string) string {
	_, said, _ := strings.Cut(rest, " ")
	plain, err := base64.StdEncoding.DecodeString(said)
	parts := strings.Split(string(plain), "\x00")
	if err != nil || len(parts) != 3 || parts[1] != v.User || parts[2] != v.Password {
		return "535 no such user, or another password"
	}
	v.mail.User = parts[1]
	return "235 welcome"
}

func address(rest string) string {
	_, rest, _ = strings.Cut(rest, "<")
	a, _, _ := strings.Cut(rest, ">")
	return a
}

func (v *visit) take() string {
	v.say("354 go on")
	raw, err := io.ReadAll(v.text.DotReader())
	if err != nil {
		return "451 not all came"
	}
	m := v.mail
	m.Raw = string(raw)
	parsed, err := mail.ReadMessage(bufio.NewReader(strings.NewReader(m.Raw)))
	if err == nil {
		var body []byte
		body, err = io.ReadAll(parsed.Body)
		m.Header, m.Body = parsed.Header, string(body)
	}
	if err != nil {
		return fmt.Sprintf("554 no message: %v", err)
	}
	v.mu.Lock()
	v.mails = append(v.mails, m)
	v.mu.Unlock()
	return "250 taken"
}
