package idp

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"mime"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/renewd/renewd/internal/grant"
)

// A provider that has rotated a token has killed the old one, so an answer that can be understood at all is: an oddity in
// one member must not cost the session.

// flexible is a JSON value that is a T, or is left out where it is something else.
type flexible[T any] struct{ value *T }

func (f *flexible[T]) UnmarshalJSON(raw []byte) error {
	switch value := any(&f.value).(type) { // nearly all there are; the decoder has looked at the syntax already
	case **string:
		if s, ok := plain(raw); ok {
			*value = &s
			return nil
		}
	case **bool:
		if b := string(raw) == "true"; b || string(raw) == "false" {
			*value = &b
			return nil
		}
	}
	var v *T
	if json.Unmarshal(raw, &v) == nil {
		f.value = v
	}
	return nil
}

// plain is the text of a JSON string in which nothing is escaped.
func plain(raw []byte) (string, bool) {
	if len(raw) < 2 || raw[0] != '"' || bytes.IndexByte(raw, '\\') >= 0 || !utf8.Valid(raw) {
		return "", false
	}
	return string(raw[1 : len(raw)-1]), true
}

func (f flexible[T]) or(zero T) T {
	if f.value == nil {
		return zero
	}
	return *f.value
}

type (
	str     = flexible[string]
	boolean = flexible[bool]
)

// tokenBody is an answer of a token endpoint, in all the shapes met: access_token is a string, or at PropelAuth's session
// endpoint an object; scope is a string, or at Twitch a list; ok and error are Slack's and everybody's ways to refuse, also
// with status 200.
type tokenBody struct {
	Access    json.RawMessage `json:"access_token"`
	Refresh   str             `json:"refresh_token"`
	ID        str             `json:"id_token"`
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
	if json.Unmarshal(body, &b) != nil {
		return t, ""
	}
	if errorCode = errorOf(b.Error); errorCode == "" && !b.OK.or(true) {
		errorCode = "not_ok"
	}
	access := text(b.Access)
	if access == "" {
		var nested struct {
			Access    str             `json:"access_token"`
			ExpiresAt json.RawMessage `json:"expires_at_seconds"`
		}
		if json.Unmarshal(b.Access, &nested) == nil {
			access = nested.Access.or("")
			if len(b.ExpiresAt) == 0 {
				b.ExpiresAt = nested.ExpiresAt
			}
		}
	}
	return grant.Tokens{
		Access: grant.NewSecret(access), Refresh: grant.NewSecret(b.Refresh.or("")), ID: grant.NewSecret(b.ID.or("")), Scope: scope(b.Scope),
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
		Code str `json:"code"`
	}
	if len(raw) > 0 && raw[0] == '{' && json.Unmarshal(raw, &nested) == nil {
		return nested.Code.or("")
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
		Iat flexible[float64] `json:"iat"`
		Exp flexible[float64] `json:"exp"`
	}
	if json.Unmarshal(payload, &c) != nil {
		return 0, 0
	}
	return c.Iat.or(0), c.Exp.or(0)
}
