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
)

// parseTokens reads an answer of a token endpoint, in all the shapes met: access_token is a string,
// or at PropelAuth's session endpoint an object; scope is a string, or at Twitch a list; ok and
// error are Slack's and everybody's ways to refuse, also with status 200. asked is the provider's
// time. errorCode is the error that the body names; a body that is nothing of the kind gives
// neither tokens nor a code. Without any expiry ExpiresIn is 0.
//
// A body that is not whole, or whose syntax breaks somewhere, is looked through for a refresh token
// alone. What it says of an error is no verdict, but then its token is none either.
func parseTokens(body []byte, whole bool, contentType string, asked time.Time) (t grant.Tokens, errorCode string) {
	body = bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")))
	media, _, _ := mime.ParseMediaType(contentType)
	if media == "application/x-www-form-urlencoded" && !bytes.HasPrefix(body, []byte("{")) {
		return parseForm(body, whole, asked)
	}
	b, _, err := members(body)
	if errorCode = errorOf(b["error"]); errorCode == "" && string(b["ok"]) == "false" {
		errorCode = "not_ok"
	}
	if err != nil {
		if errorCode == "" {
			t.Refresh = grant.NewSecret(text(b["refresh_token"]))
		}
		return t, ""
	}
	access, expiresAt := text(b["access_token"]), b["expires_at_seconds"]
	if nested, _, err := object(b["access_token"]); err == nil {
		access = text(nested["access_token"])
		if len(expiresAt) == 0 {
			expiresAt = nested["expires_at_seconds"]
		}
	}
	return grant.Tokens{
		Access: grant.NewSecret(access), Refresh: grant.NewSecret(text(b["refresh_token"])), ID: grant.NewSecret(text(b["id_token"])),
		Scope: scope(b["scope"]), ExpiresIn: lifetime(b["expires_in"], expiresAt, access, asked),
	}, errorCode
}

// parseForm reads the form-encoded answers of old GitHub Apps. The last value of one that broke off
// may be half of it.
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
			t.Refresh = grant.NewSecret(v.Get("refresh_token"))
		}
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
	nested, _, _ := object(raw)
	return text(nested["code"])
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

// lifetime is what the answer says of the access token's life: expires_in, else an absolute time,
// else the token's own exp. Absolute times are taken against the token's iat, or against asked
// where there is none, since clocks differ.
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

// jwtTimes reads iat and exp of a JWT without checking anything: whether it is good is the
// provider's business.
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
	return seconds(c["iat"]), seconds(c["exp"])
}
