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

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
)

// parseTokens reads a token endpoint's answer, in all known shapes. access_token is a string, or at
// PropelAuth's session endpoint an object. scope is a string, or at Twitch a list. A refusal is in
// the member error, at Slack also in ok, even with status 200. asked is the provider's time.
// errorCode is the error in the body. A body of another kind gives neither tokens nor a code.
// Without any expiry ExpiresIn is 0.
//
// In a body that is not whole, or has a syntax error, parseTokens searches only for a refresh
// token. An error in such a body is not a verdict, but then a token in the body is not used either.
func parseTokens(
	body []byte, whole bool, contentType string, asked time.Time,
) (t grant.Tokens, errorCode string) {
	body = bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")))
	media, _, _ := mime.ParseMediaType(contentType)
	if media == "application/x-www-form-urlencoded" && !bytes.HasPrefix(body, []byte("{")) {
		return parseForm(body, whole, asked)
	}
	b, _, err := members(body)
	if errorCode = errorOf(b.get("error")); errorCode == "" && string(b.get("ok")) == "false" {
		errorCode = "not_ok"
	}
	if err != nil {
		if errorCode == "" {
			t.Refresh = secret.New(text(b.get("refresh_token")))
		}
		return t, ""
	}
	access, expiresAt := text(b.get("access_token")), b.get("expires_at_seconds")
	if nested, _, err := object(b.get("access_token")); err == nil {
		access = text(nested.get("access_token"))
		if len(expiresAt) == 0 {
			expiresAt = nested.get("expires_at_seconds")
		}
	}
	return grant.Tokens{
		Access:    secret.New(access),
		Refresh:   secret.New(text(b.get("refresh_token"))),
		ID:        secret.New(text(b.get("id_token"))),
		Scope:     scope(b.get("scope")),
		ExpiresIn: lifetime(b.get("expires_in"), expiresAt, access, asked),
	}, errorCode
}

// parseForm reads the form-encoded answers of old GitHub Apps. The last value of a body that broke
// off may be incomplete.
func parseForm(body []byte, whole bool, asked time.Time) (t grant.Tokens, errorCode string) {
	if !whole {
		body = body[:max(0, bytes.LastIndexByte(body, '&'))]
	}
	v, err := url.ParseQuery(string(body))
	if err != nil {
		return t, ""
	}
	if !whole {
		if !v.Has("error") {
			t.Refresh = secret.New(v.Get("refresh_token"))
		}
		return t, ""
	}
	access := v.Get("access_token")
	return grant.Tokens{
		Access:    secret.New(access),
		Refresh:   secret.New(v.Get("refresh_token")),
		ID:        secret.New(v.Get("id_token")),
		Scope:     v.Get("scope"),
		ExpiresIn: lifetime(json.RawMessage(v.Get("expires_in")), nil, access, asked),
	}, v.Get("error")
}

// errorOf is the code of an error member: a string, or an object with a code.
func errorOf(raw json.RawMessage) string {
	if s := text(raw); s != "" {
		return s
	}
	nested, _, _ := object(raw)
	return text(nested.get("code"))
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

// lifetime is the access token's life by the answer: expires_in, else an absolute time, else the
// token's own exp. Absolute times count from the token's iat, or without an iat from asked, since
// clocks differ.
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

// duration is 0 for a figure that cannot be a lifetime.
func duration(seconds float64) time.Duration {
	switch {
	case seconds >= maxLifetime.Seconds():
		return maxLifetime
	case seconds > 0:
		return time.Duration(seconds * float64(time.Second))
	}
	return 0
}

// seconds reads a number, also in quotes; 0 for any other value.
func seconds(raw json.RawMessage) float64 {
	s, err := strconv.ParseFloat(strings.Trim(string(raw), `"`), 64)
	if err != nil {
		return 0
	}
	return s
}

// jwtTimes reads iat and exp of a JWT without any check: whether the JWT is good is the provider's
// business.
func jwtTimes(token string) (iat, exp float64) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return 0, 0
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return 0, 0
	}
	c, _, _ := members(payload)
	return seconds(c.get("iat")), seconds(c.get("exp"))
}
