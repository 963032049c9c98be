package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/schema"
)

// Config is one endpoint.
type Config struct {
	// URL is the address that outcomes are posted to: https://, or http:// with AllowHTTP.
	// Required.
	URL string
	// Secrets all sign each outcome: set two while one is changed. Each is whsec_ and 24 to 64
	// bytes in base64. Required without SET.
	Secrets []secret.Value
	// SET has Security Event Tokens sent in place of Standard Webhooks. nil: Standard Webhooks.
	SET *SET
	// Headers are sent along.
	Headers map[string]secret.Value
	// RootCAs check the endpoint's certificate. nil: the system's.
	RootCAs *x509.CertPool
	// Timeout of one delivery. Default 15 s, a minute at most.
	Timeout time.Duration
	// AllowPrivate lets the endpoint be in a private network, or on this machine.
	AllowPrivate bool
	// AllowHTTP lets outcomes, with profiles, cross the network in clear text.
	AllowHTTP bool
	// MaxConns is how many connections there may be to the endpoint at a time. Default 8.
	MaxConns int
	// Version is this program's, for the User-Agent.
	Version string
}

// Check names the first wrong field.
func (c Config) Check() error {
	if err := c.checkURL(); err != nil {
		return fmt.Errorf("url: %w", err)
	}
	if c.SET != nil {
		if err := c.SET.check(); err != nil {
			return err
		}
	} else if len(c.Secrets) == 0 {
		return errors.New("secret: missing: make one by: echo whsec_$(openssl rand -base64 32)")
	}
	for _, s := range c.Secrets {
		if _, err := signingKey(s); err != nil {
			return fmt.Errorf("secret: %w", err)
		}
	}
	for name := range c.Headers {
		if reserved(name) {
			return fmt.Errorf("headers: %s is renewd's to set", name)
		}
	}
	return nil
}

// reserved reports whether the settings may not set a header.
func reserved(name string) bool {
	switch http.CanonicalHeaderKey(name) {
	case "Accept", "Content-Type", "Content-Length", "Host", "Transfer-Encoding", "Connection",
		"User-Agent", "Traceparent":
		return true
	}
	return strings.HasPrefix(strings.ToLower(name), "webhook-")
}

func (c Config) checkURL() error {
	u, err := url.Parse(c.URL)
	switch {
	case c.URL == "":
		return errors.New("missing: the endpoint's address")
	case err != nil || u.Host == "":
		return errors.New("want an address such as https://example.com/hooks/renewd")
	case u.User != nil:
		return errors.New("want no user and password in it: set headers")
	case u.Scheme == "https" || u.Scheme == "http" && c.AllowHTTP:
		return nil
	case u.Scheme == "http":
		return errors.New("plain http shows profiles to the network: want https://, or set " +
			"allow_http")
	}
	return errors.New("want https://")
}

// Target delivers to one endpoint.
type Target struct {
	config Config
	keys   [][]byte
	setter *setter // nil: outcomes go as Standard Webhooks
	client *http.Client
	now    func() time.Time
}

// New returns the target of an endpoint. New connects to nothing.
func New(c Config) (*Target, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if c.Timeout == 0 {
		c.Timeout = 15 * time.Second
	}
	if c.MaxConns == 0 {
		c.MaxConns = 8
	}
	t := &Target{config: c, now: time.Now}
	for _, s := range c.Secrets {
		key, err := signingKey(s)
		if err != nil {
			return nil, err
		}
		t.keys = append(t.keys, key)
	}
	if c.SET != nil {
		var err error
		if t.setter, err = newSetter(*c.SET); err != nil {
			return nil, fmt.Errorf("set_key: %w", err)
		}
	}
	// Less than Timeout, so that an endpoint that drops packets counts as absent.
	dialer := &net.Dialer{Timeout: min(10*time.Second, c.Timeout/2), Control: guard(c.AllowPrivate)}
	t.client = &http.Client{
		Timeout: c.Timeout,
		// An endpoint that moves is told to the operator. A redirect could lead anywhere.
		CheckRedirect: func(*http.Request,
			[]*http.Request) error {
			return http.ErrUseLastResponse
		},
		Transport: &http.Transport{
			DialContext: dialer.DialContext, // no proxy: it would connect in renewd's place
			TLSClientConfig: &tls.Config{
				RootCAs: c.RootCAs, MinVersion: tls.VersionTLS12,
			},
			ForceAttemptHTTP2: true, MaxConnsPerHost: c.MaxConns, MaxIdleConnsPerHost: c.MaxConns,
			IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
	return t, nil
}

// Close gives up idle connections.
func (t *Target) Close() { t.client.CloseIdleConnections() }

// answerLimit is how much of an answer is read, so that its connection can be used again.
const answerLimit = 64 << 10

// Deliver posts one outcome. As a Security Event Token it skips outcomes for which CAEP has no
// event.
func (t *Target) Deliver(ctx context.Context, e schema.Event) error {
	body, head, err := t.encode(e)
	if err != nil {
		return &sink.Fault{Blame: sink.Refused, Err: err}
	}
	if body == nil {
		return nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, t.config.URL,
		bytes.NewReader(body))
	if err != nil {
		return errors.New("the address cannot be used")
	}
	for name, value := range t.config.Headers {
		request.Header.Set(name, value.Reveal())
	}
	request.Header.Set("User-Agent", "renewd/"+t.config.Version)
	for name, value := range head {
		request.Header.Set(name, value)
	}
	answer, err := t.client.Do(request)
	if err != nil {
		return t.unanswered(err)
	}
	defer answer.Body.Close()
	// The status is the whole answer, but for a refused SET.
	said, _ := io.ReadAll(io.LimitReader(answer.Body, answerLimit))
	if t.setter != nil && answer.StatusCode == http.StatusBadRequest {
		if f := refusal(said); f != nil {
			return f
		}
	}
	return t.judge(answer)
}

// encode is the body to post for an outcome, and its headers.
func (t *Target) encode(e schema.Event) (body []byte, head map[string]string, err error) {
	at := t.now()
	if t.setter != nil {
		signed, err := t.setter.encode(e, at)
		if signed == "" || err != nil {
			return nil, nil, err
		}
		return []byte(signed), map[string]string{
			"Content-Type": "application/secevent+jwt", "Accept": "application/json",
		}, nil
	}
	if body, err = payload(e); err != nil {
		return nil, nil, err
	}
	id := messageID(e)
	return body, map[string]string{
		"Content-Type": "application/json", "Webhook-Id": id,
		"Webhook-Timestamp": strconv.FormatInt(at.Unix(), 10),
		"Webhook-Signature": signatures(t.keys, id, at, body),
	}, nil
}

// unanswered says why there was no answer. An error of the client quotes the whole address, which
// may have a secret in its path, and the endpoint's bytes, so only a known cause is told.
func (t *Target) unanswered(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	var refused *refusedError
	var op *net.OpError
	isOp := errors.As(err, &op)
	switch {
	case errors.As(err, &refused):
		return &sink.Fault{Blame: sink.Unreachable, Err: refused}
	case isOp && op.Op == "dial": // also a dial with no answer in time
		return &sink.Fault{Blame: sink.Unreachable, Err: fmt.Errorf("no connection: %w", op.Err)}
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err) && !isOp:
		return fmt.Errorf("no answer in %v", t.config.Timeout)
	}
	if certificate, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return &sink.Fault{Blame: sink.Unreachable,
			Err: fmt.Errorf("its certificate: %s", untrusted(certificate.Err))}
	}
	if why := cause(err); why != nil {
		return fmt.Errorf("no answer: %w", why)
	}
	return errors.New("no answer that HTTP knows")
}

// cause is an error of this machine, or of TLS, which quotes nothing that was sent; nil: no such
// cause.
func cause(err error) error {
	if number, ok := errors.AsType[syscall.Errno](err); ok {
		return number
	}
	if alert, ok := errors.AsType[tls.AlertError](err); ok {
		return alert
	}
	for _, known := range []error{io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, known) {
			return known
		}
	}
	return nil
}

// untrusted says why a certificate is not trusted. Errors of x509 quote names of the certificate.
func untrusted(err error) string {
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "it is for another host"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "signed by unknown authority: set ca_file"
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok &&
		invalid.Reason == x509.Expired {
		return "it has expired, or is not valid yet"
	}
	return "it cannot be verified"
}

func isTimeout(err error) bool {
	n, ok := errors.AsType[net.Error](err)
	return ok && n.Timeout()
}

// judge turns an answer into an error: 2xx alone is a success.
func (t *Target) judge(answer *http.Response) error {
	status := answer.StatusCode
	said := fmt.Errorf("answered %d", status)
	switch {
	case status >= 200 && status < 300:
		return nil
	case status == http.StatusGone:
		return &sink.Fault{Blame: sink.Gone,
			Err: errors.New("answered 410: it wants no outcome any more")}
	case status >= 300 && status < 400:
		return fmt.Errorf("answered %d: redirects are not followed: set url to where it is now",
			status)
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		if after := retryAfter(answer.Header.Get("Retry-After"), t.now()); after > 0 {
			return &sink.Fault{Blame: sink.Throttled, After: after, Err: said}
		}
	}
	return said
}

// retryAfter reads the header in both of its forms; 0: no time in it.
func retryAfter(text string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(strings.TrimSpace(text), 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
