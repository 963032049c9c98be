package idp

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// maxTokenBody is the largest answer of a token endpoint that is read, in bytes.
const maxTokenBody = 64 << 10

// Refresh presents a refresh token, once (RFC 6749 section 6). Its errors are *grant.Fault.
func (p *Provider) Refresh(ctx context.Context, refresh grant.Secret) (grant.Tokens, error) {
	e, err := p.discover(ctx)
	if err != nil {
		return grant.Tokens{}, err
	}
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh.Reveal()}}
	r, written, err := p.send(ctx, http.MethodPost, e.Token, p.authenticate(form), form, maxTokenBody)
	if err != nil {
		class := grant.Unsent
		if written {
			class = grant.Ambiguous
		}
		return grant.Tokens{}, &grant.Fault{Class: class, Op: "refresh", Status: r.status, Err: err}
	}
	tokens, errorCode := parseTokens(r.body, r.header.Get("Content-Type"))
	tokens.SentAt = r.sentAt
	class, reason := Classify(Answer{
		Status: r.status, Code: errorCode, Usable: r.status >= 200 && r.status < 300 && errorCode == "" && !tokens.Access.IsZero(),
	}, append(p.config.Rules, p.preset.Rules...))
	if class == "" {
		return tokens, nil
	}
	f := &grant.Fault{Class: class, Op: "refresh", Status: r.status, Code: code(errorCode), Reason: reason}
	if class == grant.Throttled || r.status >= 500 {
		f.RetryAfter = retryAfter(r.header.Get("Retry-After"), p.now())
	}
	switch {
	case r.full:
		f.Err = errors.New("the answer is larger than 64 KiB")
	case class == grant.Ambiguous && r.status < 300:
		f.Err = errors.New("the answer has no access_token")
	}
	return grant.Tokens{}, f
}

// authenticate names the client in one way, never two (RFC 6749 section 2.3), in the form or in the header it returns.
func (p *Provider) authenticate(form url.Values) http.Header {
	c := p.config
	switch c.ClientAuth {
	case AuthBasic:
		// Form-encoded before base64, RFC 6749 section 2.3.1.
		pair := url.QueryEscape(c.ClientID) + ":" + url.QueryEscape(c.ClientSecret.Reveal())
		return http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(pair))}}
	case AuthPost:
		form.Set("client_secret", c.ClientSecret.Reveal())
	}
	form.Set("client_id", c.ClientID)
	return nil
}

// tokenBody is an answer of a token endpoint, in all the shapes met: access_token is a string, or at PropelAuth's session
// endpoint an object; ok and error are Slack's and everybody's ways to refuse, also with status 200.
type tokenBody struct {
	Access    json.RawMessage `json:"access_token"`
	Refresh   string          `json:"refresh_token"`
	ID        string          `json:"id_token"`
	Scope     string          `json:"scope"`
	ExpiresIn json.RawMessage `json:"expires_in"`
	ExpiresAt json.RawMessage `json:"expires_at_seconds"`
	Error     json.RawMessage `json:"error"`
	OK        *bool           `json:"ok"`
}

// parseTokens reads an answer tolerantly. errorCode is the error that the body names; a body that is nothing of the kind
// gives neither tokens nor a code. Without any expiry ExpiresIn is 0.
func parseTokens(body []byte, contentType string) (t grant.Tokens, errorCode string) {
	if media, _, _ := mime.ParseMediaType(contentType); media == "application/x-www-form-urlencoded" {
		return parseForm(body)
	}
	var b tokenBody
	if json.Unmarshal(body, &b) != nil {
		return t, ""
	}
	if errorCode = errorOf(b.Error); errorCode == "" && b.OK != nil && !*b.OK {
		errorCode = "not_ok"
	}
	access, nested := text(b.Access), struct {
		Access    string          `json:"access_token"`
		ExpiresAt json.RawMessage `json:"expires_at_seconds"`
	}{}
	if access == "" && len(b.Access) > 0 && b.Access[0] == '{' && json.Unmarshal(b.Access, &nested) == nil {
		access = nested.Access
		if len(b.ExpiresAt) == 0 {
			b.ExpiresAt = nested.ExpiresAt
		}
	}
	t = grant.Tokens{Access: grant.NewSecret(access), Refresh: grant.NewSecret(b.Refresh), ID: grant.NewSecret(b.ID), Scope: b.Scope}
	t.ExpiresIn = lifetime(b.ExpiresIn, b.ExpiresAt, access)
	return t, errorCode
}

// parseForm reads the form-encoded answers of old GitHub Apps.
func parseForm(body []byte) (t grant.Tokens, errorCode string) {
	v, err := url.ParseQuery(string(body))
	if err != nil {
		return t, ""
	}
	t = grant.Tokens{
		Access: grant.NewSecret(v.Get("access_token")), Refresh: grant.NewSecret(v.Get("refresh_token")), Scope: v.Get("scope"),
	}
	t.ExpiresIn = lifetime(json.RawMessage(v.Get("expires_in")), nil, v.Get("access_token"))
	return t, v.Get("error")
}

func errorOf(raw json.RawMessage) string {
	if s := text(raw); s != "" {
		return s
	}
	var nested struct {
		Code string `json:"code"`
	}
	if len(raw) > 0 && raw[0] == '{' && json.Unmarshal(raw, &nested) == nil && nested.Code != "" {
		return nested.Code
	}
	return ""
}

func text(raw json.RawMessage) string {
	var s string
	if len(raw) == 0 || json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// lifetime is what the answer says of the access token's life: expires_in, else an absolute time, else the token's own exp.
// Absolute times are taken against the token's iat, or against now where there is none, since clocks differ.
func lifetime(in, at json.RawMessage, access string) time.Duration {
	if s, ok := seconds(in); ok && s > 0 {
		return time.Duration(s * float64(time.Second))
	}
	issued, expires := jwtTimes(access)
	if s, ok := seconds(at); ok && s > 0 {
		expires = s
	}
	if issued == 0 {
		issued = float64(time.Now().Unix())
	}
	if expires <= issued {
		return 0
	}
	return time.Duration((expires - issued) * float64(time.Second))
}

func seconds(raw json.RawMessage) (float64, bool) {
	s, err := strconv.ParseFloat(strings.Trim(string(raw), `"`), 64)
	return s, err == nil && !math.IsNaN(s) && s < 1e11
}

// jwtTimes reads iat and exp of a JWT without checking anything: whether it is good is the provider's business.
func jwtTimes(token string) (iat, exp float64) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return 0, 0
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return 0, 0
	}
	var c struct {
		Iat float64 `json:"iat"`
		Exp float64 `json:"exp"`
	}
	if json.Unmarshal(payload, &c) != nil || c.Exp < 0 || c.Exp > 1e11 || c.Iat < 0 || c.Iat > 1e11 {
		return 0, 0
	}
	return c.Iat, c.Exp
}

// Revoke ends a refresh token at the provider (RFC 7009). ok is false where the provider has no endpoint for it. 200 is
// also the answer for a token that it does not know.
func (p *Provider) Revoke(ctx context.Context, refresh grant.Secret) (ok bool, _ error) {
	e, err := p.discover(ctx)
	if err != nil || e.Revoke == "" {
		return false, err
	}
	form := url.Values{"token": {refresh.Reveal()}, "token_type_hint": {"refresh_token"}}
	r, _, err := p.send(ctx, http.MethodPost, e.Revoke, p.authenticate(form), form, maxTokenBody)
	if err != nil {
		return false, &grant.Fault{Class: grant.Ambiguous, Op: "revoke", Err: err}
	}
	if r.status != http.StatusOK {
		return false, &grant.Fault{Class: grant.Unknown, Op: "revoke", Status: r.status, RetryAfter: retryAfter(r.header.Get("Retry-After"), p.now())}
	}
	return true, nil
}
