package idp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
)

// maxTokenBody is how much of a token endpoint's answer is read, in bytes. Of a larger answer only
// the front is read.
const maxTokenBody = 256 << 10

// Refresh presents a refresh token once (RFC 6749 section 6). See post for a client that is
// refused. Its errors are *grant.Fault. Refresh cannot know which user the tokens are for: UserInfo
// checks the user. The caller sets SentAt, by the clock all workers share.
//
// A new refresh token has replaced the old one, whatever else the answer is: too long, broken off,
// without an access token. So Refresh returns the new token without an error, beside the readable
// rest. A zero Access then stands for an expired access token.
func (p *Provider) Refresh(ctx context.Context, refresh secret.Value) (grant.Tokens, error) {
	e, err := p.discover(ctx)
	if err != nil {
		return grant.Tokens{}, err
	}
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh.Reveal()}}
	maps.Copy(form, p.config.Params)
	if p.config.Scope != "" {
		form.Set("scope", p.config.Scope)
	}
	r, used, err := p.post(ctx, "refresh", e.Token, e, form)
	tokens, errorCode := r.tokens, r.code
	rotated := !tokens.Refresh.IsZero() && tokens.Refresh.Reveal() != refresh.Reveal()
	a := Answer{Status: r.status, Code: errorCode}
	a.Usable = r.status >= 200 && r.status < 300 && errorCode == "" &&
		(rotated || !tokens.Access.IsZero())
	if err != nil && !a.Usable {
		return grant.Tokens{}, err
	}
	if !r.cut {
		a.Body, a.Empty = string(r.body), len(bytes.TrimSpace(r.body)) == 0
	}
	class, reason := Classify(a, p.rules)
	if class == "" {
		p.credentials.proven(used)
		return tokens, nil
	}
	f := &grant.Fault{
		Class:      class,
		Op:         "refresh",
		Status:     r.status,
		Code:       code(errorCode),
		Reason:     reason,
		RetryAfter: p.patience(class, r.reply),
		Detail:     p.detail(r.reply, refresh),
	}
	switch {
	case r.cut:
		f.Err = errors.New("the answer is larger than 256 KiB")
	case class == grant.Config:
		f.Err = advice(r.status, errorCode)
	case class == grant.Ambiguous && r.status < 300 && errorCode == "":
		f.Err = errors.New("the answer has neither an access_token nor a new refresh_token")
	}
	return grant.Tokens{}, f
}

// patience is the wait the provider asks for; 0 if the answer is neither Throttled nor a 5xx.
func (p *Provider) patience(class grant.Class, r reply) time.Duration {
	if class != grant.Throttled && r.status < 500 {
		return 0
	}
	return retryAfter(r.header, p.date(r.header))
}

// Revoke ends a refresh token at the provider (RFC 7009), and at most providers all tokens that
// came of it. A token that the provider does not know, or holds for dead, counts as revoked. The
// error is grant.ErrNoRevocation if no revocation endpoint is known, else a *grant.Fault, never
// Permanent. After an error the token may still be good. After a fault that is Throttled, Unsent or
// Ambiguous the call may be made again.
func (p *Provider) Revoke(ctx context.Context, refresh secret.Value) error {
	e, err := p.discover(ctx)
	switch {
	case err != nil:
		return err
	case e.Revoke == "":
		return fmt.Errorf("provider %s: %w", p.config.ID, grant.ErrNoRevocation)
	}
	form := url.Values{"token": {refresh.Reveal()}, "token_type_hint": {"refresh_token"}}
	r, _, err := p.post(ctx, "revoke", e.Revoke, e, form)
	if err != nil {
		return err
	}
	errorCode := r.code
	class, _ := Classify(Answer{
		Status: r.status,
		Code:   errorCode,
		Usable: r.status >= 200 && r.status < 300 && errorCode == "",
	}, nil)
	// Section 2.2 wants 200 for a dead token, but some providers (Google) refuse such a token in
	// words.
	if class == "" || class == grant.Permanent || errorCode == "invalid_token" {
		return nil
	}
	f := &grant.Fault{
		Class:      class,
		Op:         "revoke",
		Status:     r.status,
		Code:       code(errorCode),
		RetryAfter: p.patience(class, r.reply),
		Detail:     p.detail(r.reply, refresh),
	}
	if class == grant.Config {
		f.Err = advice(r.status, errorCode)
	}
	return f
}

// Reach finds out whether the provider answers at all, at its discovery document, if any, and at
// its token endpoint. The token endpoint is shown neither credentials nor tokens. Any answer below
// 500 will do. The error is a *grant.Fault.
func (p *Provider) Reach(ctx context.Context) error {
	e, err := p.discover(ctx)
	if err != nil {
		return err
	}
	r, err := p.send(ctx, call{
		op:     "reach",
		method: http.MethodGet,
		url:    e.Token,
		limit:  maxTokenBody,
	})
	if err == nil && r.status >= http.StatusInternalServerError {
		err = &grant.Fault{Class: grant.Ambiguous, Op: "reach", Status: r.status}
	}
	return err
}
