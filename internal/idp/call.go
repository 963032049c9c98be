package idp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

const userAgent = "renewd"

// Headers of the calls, unless the settings say otherwise; only read.
var (
	everyCall = http.Header{"Accept": {"application/json"}, "User-Agent": {userAgent}}
	formType  = []string{"application/x-www-form-urlencoded"}
)

// call is a request to a provider.
type call struct {
	op     string // for the fault
	method string
	url    string
	header http.Header
	form   url.Values // of a POST
	limit  int64      // largest body that is read, in bytes
}

// reply is a provider's answer, body and all.
type reply struct {
	status int
	header http.Header
	body   []byte
	cut    bool // the body is larger than the limit, or broke off: body is only its front
}

// errWritten keeps net/http from sending a request a second time.
var errWritten = errors.New("not sent again: the request may have arrived")

// send makes a request once. Its error is a *grant.Fault: Unsent if nothing of the request can have
// reached the provider, else Ambiguous. If the answer broke off, send returns the part received
// beside the fault.
func (p *Provider) send(ctx context.Context, c call) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	var wrote atomic.Bool
	mark := func() { wrote.Store(true) }
	req, err := c.request(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		// a long header is flushed before its end
		WroteHeaderField: func(string, []string) { mark() },
		WroteHeaders:     mark,
	}), p.header, &wrote)
	if err != nil {
		return reply{},
			&grant.Fault{Class: grant.Config, Op: c.op, Err: errors.New("malformed URL")}
	}
	var r reply
	fault := func(err error) (reply, error) {
		class := grant.Unsent
		if wrote.Load() {
			class = grant.Ambiguous
		}
		if ctx.Err() != nil {
			err = ctx.Err() // not context.Cause: the cause is the caller's, not the network's
		}
		return r, &grant.Fault{Class: class, Op: c.op, Status: r.status, Err: quiet(err)}
	}
	// Not through an http.Client, which follows redirects: a redirected POST would hand the refresh
	// token to any host the answer names.
	resp, err := p.round.RoundTrip(req)
	if err != nil {
		return fault(err)
	}
	defer resp.Body.Close()
	r.status, r.header = resp.StatusCode, resp.Header
	var body bytes.Buffer
	body.Grow(int(min(max(resp.ContentLength, 0), c.limit)) + bytes.MinRead)
	_, err = body.ReadFrom(io.LimitReader(resp.Body, c.limit+1))
	r.body = body.Bytes()
	if int64(len(r.body)) > c.limit {
		r.body, r.cut = r.body[:c.limit], true
	}
	if err != nil {
		r.cut = true
		mark()
		return fault(err)
	}
	return r, nil
}

// date is when the answer with the header r was made. The provider's own clock counts if r has a
// Date, since times in an answer are by the same clock.
func (p *Provider) date(r http.Header) time.Time {
	if at, err := http.ParseTime(r.Get("Date")); err == nil {
		return at
	}
	return p.now()
}

func (c call) request(
	ctx context.Context, every http.Header, wrote *atomic.Bool,
) (*http.Request, error) {
	var body io.Reader
	var text string
	if c.form != nil {
		text = c.form.Encode()
		body = strings.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, c.method, c.url, body)
	if err != nil {
		return nil, err
	}
	req.Header = maps.Clone(every)
	if c.form != nil {
		req.Header["Content-Type"] = formType
		// net/http tries again by itself if a connection turns out to be closed. Over HTTP/2 a
		// reset stream is tried again too, though the server may have read the stream to its end. A
		// second try is allowed until the first byte of the request is out.
		req.GetBody = func() (io.ReadCloser, error) {
			if wrote.Load() {
				return nil, errWritten
			}
			return io.NopCloser(strings.NewReader(text)), nil
		}
	}
	maps.Copy(req.Header, c.header)
	return req, nil
}

// quiet keeps the part of an error that is fit for a log: the kind of failure. Errors of net/http
// can quote the other side.
func quiet(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err // without the URL, whose query could hold anything
	}
	if oe, ok := errors.AsType[*net.OpError](err); ok {
		return oe
	}
	for _, known := range []error{
		context.DeadlineExceeded, context.Canceled, io.ErrUnexpectedEOF, io.EOF, errWritten,
	} {
		if errors.Is(err, known) {
			return known
		}
	}
	if te, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return te
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return errors.New("timeout")
	}
	return fmt.Errorf("%T", err)
}
