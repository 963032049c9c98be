package idp

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"mime"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// lenient decodes raw into what to points at. A provider that has rotated a token has killed the old one, so an answer that
// can be understood at all is: what is not of its kind is left out, and must not cost the session. Its error is of the syntax.
func lenient(raw []byte, to any) error {
	err := json.Unmarshal(raw, to)
	if _, odd := errors.AsType[*json.UnmarshalTypeError](err); odd {
		return nil // the rest is decoded all the same
	}
	return err
}

// boolean is true, false, or nil where there is none: a decoder leaves a *bool that it cannot fill false.
type boolean struct{ value *bool }

func (b *boolean) UnmarshalJSON(raw []byte) error {
	if is := string(raw) == "true"; is || string(raw) == "false" {
		b.value = &is
	}
	return nil
}

// tokenBody is an answer of a token endpoint, in all the shapes met: access_token is a string, or at PropelAuth's session
// endpoint an object; scope is a string, or at Twitch a list; ok and error are Slack's and everybody's ways to refuse, also
// with status 200.
type tokenBody struct {
	Access    json.RawMessage `json:"access_token"`
	Refresh   string          `json:"refresh_token"`
	ID        string          `json:"id_token"`
	Scope     json.RawMessage `json:"scope"`
	ExpiresIn json.RawMessage `json:"expires_in"`
	ExpiresAt json.RawMessage `json:"expires_at_seconds"`
	Error     json.RawMessage `json:"error"`
	OK        boolean         `json:"ok"`
}

// parseTokens reads an answer that was asked for at asked. errorCode is the error that the body names; a body that is
// nothing of the kind gives neither tokens nor a code. Without any expiry ExpiresIn is 0.
func parseTokens(body []byte, contentType string, asked time.Time) (t grant.Tokens, errorCode string) {
	body = bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")))
	media, _, _ := mime.ParseMediaType(contentType)
	if media == "application/x-www-form-urlencoded" && !bytes.HasPrefix(body, []byte("{")) {
		return parseForm(body, asked)
	}
	var b tokenBody
	if lenient(body, &b) != nil {
		return t, ""
	}
	if errorCode = errorOf(b.Error); errorCode == "" && b.OK.value != nil && !*b.OK.value {
		errorCode = "not_ok"
	}
	access := text(b.Access)
	if access == "" {
		var nested struct {
			Access    string          `json:"access_token"`
			ExpiresAt json.RawMessage `json:"expires_at_seconds"`
		}
		if lenient(b.Access, &nested) == nil {
			access = nested.Access
			if len(b.ExpiresAt) == 0 {
				b.ExpiresAt = nested.ExpiresAt
			}
		}
	}
	return grant.Tokens{
		Access: grant.NewSecret(access), Refresh: grant.NewSecret(b.Refresh), ID: grant.NewSecret(b.ID), Scope: scope(b.Scope),
		ExpiresIn: lifetime(b.ExpiresIn, b.ExpiresAt, access, asked),
	}, errorCode
}

// parseForm reads the form-encoded answers of old GitHub Apps.
func parseForm(body []byte, asked time.Time) (t grant.Tokens, errorCode string) {
	v, err := url.ParseQuery(string(body))
	if err != nil {
		return t, ""
	}
	access := v.Get("access_token")
	return grant.Tokens{
		Access: grant.NewSecret(access), Refresh: grant.NewSecret(v.Get("refresh_token")), ID: grant.NewSecret(v.Get("id_token")), Scope: v.Get("scope"),
		ExpiresIn: lifetime(json.RawMessage(v.Get("expires_in")), nil, access, asked),
	}, v.Get("error")
}

// errorOf is the code of an error member: a string, or an object that has one.
func errorOf(raw json.RawMessage) string {
	if s := text(raw); s != "" {
		return s
	}
	var nested struct {
		Code string `json:"code"`
	}
	_ = lenient(raw, &nested) // without one it is none
	return nested.Code
}

func text(raw json.RawMessage) string {
	var s string
	if len(raw) == 0 || json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

func scope(raw json.RawMessage) string {
	var list []string
	if len(raw) > 0 && json.Unmarshal(raw, &list) == nil {
		return strings.Join(list, " ")
	}
	return text(raw)
}

// maxLifetime caps the life of an access token: no provider means more.
const maxLifetime = 10 * 365 * 24 * time.Hour

// lifetime is what the answer says of the access token's life: expires_in, else an absolute time, else the token's own exp.
// Absolute times are taken against the token's iat, or against asked where there is none, since clocks differ.
func lifetime(in, at json.RawMessage, access string, asked time.Time) time.Duration {
	if s := seconds(in); s > 0 {
		return duration(s)
	}
	issued, expires := jwtTimes(access)
	if s := seconds(at); s > 0 {
		expires = s
	}
	if issued <= 0 {
		issued = float64(asked.Unix())
	}
	return duration(expires - issued)
}

// duration is 0 for what is no life at all.
func duration(seconds float64) time.Duration {
	switch {
	case seconds >= maxLifetime.Seconds():
		return maxLifetime
	case seconds > 0:
		return time.Duration(seconds * float64(time.Second))
	}
	return 0
}

// seconds reads a number, or one in quotes; 0 for anything else.
func seconds(raw json.RawMessage) float64 {
	s, err := strconv.ParseFloat(strings.Trim(string(raw), `"`), 64)
	if err != nil {
		return 0
	}
	return s
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
	_ = lenient(payload, &c)
	return c.Iat, c.Exp
}
