package idp

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Answer is a provider's answer to a refresh, as far as its class depends on it.
type Answer struct {
	Status     int
	Code       string // of its error body; empty if there is none
	Usable     bool   // 2xx with an access token
	RetryAfter string // the header, as it came
}

// Rule moves answers of one provider to another class: those with this status (0: any) and code ("": none).
type Rule struct {
	Status int
	Code   string
	Class  grant.Class
	Reason string // for grant.Permanent
}

// permanent are the codes that say that the grant is dead, with the reason we give. Only these may sign a user out.
var permanent = map[string]string{
	"invalid_grant":         schema.ReasonRevoked, // RFC 6749 section 5.2
	"bad_refresh_token":     schema.ReasonRevoked, // GitHub
	"invalid_refresh_token": schema.ReasonRevoked, // Slack
	"token_revoked":         schema.ReasonRevoked, // Slack
	"token_expired":         schema.ReasonExpired, // Slack
	"interaction_required":  schema.ReasonExpired, // Entra
	"login_required":        schema.ReasonExpired, // Entra
	"consent_required":      schema.ReasonRevoked, // Entra
	"mfa_required":          schema.ReasonExpired, // Auth0
}

// config are the codes that blame our settings. RFC 6749 section 5.2 and what providers add to it.
var config = map[string]bool{
	"invalid_client": true, "unauthorized_client": true, "unsupported_grant_type": true, "invalid_request": true, "invalid_scope": true,
	"invalid_target": true, "invalid_resource": true,
	"incorrect_client_credentials": true,                            // GitHub
	"bad_client_secret":            true, "invalid_client_id": true, // Slack
	"deleted_client": true, "disabled_client": true, // Google
}

// throttled are the codes that ask for patience.
var throttled = map[string]bool{
	"temporarily_unavailable": true, "server_error": true, "slow_down": true, "ratelimited": true, "too_many_requests": true,
	"internal_error": true, "fatal_error": true,
}

// Classify sorts an answer that came. First match wins; what nobody knows is Unknown, never Permanent. The empty class is a
// success.
func Classify(a Answer, rules []Rule) (class grant.Class, reason string) {
	for _, r := range rules {
		if (r.Status == 0 || r.Status == a.Status) && r.Code == a.Code && !a.Usable {
			return r.Class, r.Reason
		}
	}
	if reason, ok := permanent[a.Code]; ok && a.Status < 500 {
		return grant.Permanent, reason // any 4xx, and 200 too: GitHub, Slack
	}
	switch {
	case a.Usable:
		return "", ""
	case throttled[a.Code], a.Status == http.StatusTooManyRequests, a.Status == http.StatusRequestTimeout,
		a.Status == http.StatusTooEarly, a.Status == http.StatusServiceUnavailable:
		return grant.Throttled, ""
	case a.Status >= 500, a.Status < 300 && a.Code == "":
		return grant.Ambiguous, "" // it may have rotated
	case config[a.Code], a.Status >= 300 && a.Status < 400, a.Status == http.StatusNotFound, a.Status == http.StatusMethodNotAllowed:
		return grant.Config, ""
	case a.Code == "" && (a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden):
		return grant.Config, "" // client authentication, or a firewall
	}
	return grant.Unknown, ""
}

// maxRetryAfter caps what a provider may ask for: a typo of theirs must not stop renewals for a year.
const maxRetryAfter = time.Hour

// retryAfter reads the header as seconds or as an HTTP date (RFC 9110 section 10.2.3); 0 if it says nothing.
func retryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if seconds, err := strconv.ParseInt(value, 10, 64); err == nil {
		return min(max(0, time.Duration(min(seconds, 1<<32))*time.Second), maxRetryAfter)
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(0, at.Sub(now)), maxRetryAfter)
	}
	return 0
}

// code cuts an error code to what may stand in a log: 64 printable characters.
func code(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x21 || r > 0x7e {
			return -1
		}
		return r
	}, s)
	return s[:min(len(s), 64)]
}
