package idp

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Answer is a provider's answer to a refresh, as far as its class depends on it.
type Answer struct {
	Status   int
	Code     string // the error code in the body; empty: no such code
	UserInfo bool   // the answer is of userinfo, not of the token endpoint
	Usable   bool   // 2xx with an access token, or with a new refresh token
	Body     string // for the rules that search the body; empty if cut off; used nowhere else
	Empty    bool   // the answer has no body
}

// permanent are the codes of a dead grant, each with the reason renewd gives. Without a rule no
// other code makes an answer Permanent.
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

// Advice to an operator whose settings a provider refuses.
const (
	checkClient = "the provider refuses the client, not the user: check client_id, client_secret " +
		"and client_auth"
	checkGrant = "the provider does not let this client refresh: allow it the refresh_token " +
		"grant there"
	checkScope = "the provider refuses what was asked for: check scope"
	checkDPoP  = "the provider wants proof of possession (DPoP), which renewd does not speak: " +
		"switch it off for this client"
	checkAddr = "no token endpoint is there: check auth_url, or token_url and revoke_url"
)

// config are the codes that blame renewd's settings, each with the advice to the operator: the
// codes of RFC 6749 section 5.2 and additions of providers.
var config = map[string]string{
	"invalid_client":               checkClient,
	"unauthorized_client":          checkGrant,
	"unsupported_grant_type":       checkGrant,
	"invalid_scope":                checkScope,
	"invalid_target":               checkScope,
	"invalid_resource":             checkScope,  // RFC 8707, Entra
	"incorrect_client_credentials": checkClient, // GitHub
	"bad_client_secret":            checkClient,
	"invalid_client_id":            checkClient, // Slack
	"deleted_client":               checkClient,
	"disabled_client":              checkClient, // Google
	"use_dpop_nonce":               checkDPoP,
	"invalid_dpop_proof":           checkDPoP, // RFC 9449
}

// throttled are the codes that ask for patience.
var throttled = map[string]bool{
	"temporarily_unavailable": true,
	"server_error":            true,
	"slow_down":               true,
	"ratelimited":             true,
	"too_many_requests":       true,
	"internal_error":          true,
	"fatal_error":             true,
}

// Classify sorts a provider's answer into a class. The first match wins. An answer without a match
// is Unknown, never Permanent. The empty class is a success.
func Classify(a Answer, rules []Rule) (class grant.Class, reason string) {
	for _, r := range rules {
		if r.matches(a) {
			return r.Class, r.Reason
		}
	}
	if reason, ok := permanent[a.Code]; ok && a.Status < 500 &&
		a.Status != http.StatusTooManyRequests {
		return grant.Permanent, reason // any other 4xx, and 200 too: GitHub, Slack
	}
	_, ours := config[a.Code]
	switch {
	case a.Usable:
		return "", ""
	case throttled[a.Code], a.Status == http.StatusTooManyRequests,
		a.Status == http.StatusRequestTimeout,
		a.Status == http.StatusTooEarly, a.Status == http.StatusServiceUnavailable:
		return grant.Throttled, ""
	case a.Status >= 500, a.Status < 300 && a.Code == "":
		return grant.Ambiguous, "" // the provider may have rotated the token
	case ours, a.Status >= 300 && a.Status < 400, a.Status == http.StatusNotFound,
		a.Status == http.StatusMethodNotAllowed:
		return grant.Config, ""
	case a.Status == http.StatusUnauthorized, a.Status == http.StatusForbidden:
		return grant.Config, "" // client authentication, or a firewall
	}
	return grant.Unknown, ""
}

// advice is the operator's next step if the provider refuses the settings; nil: no advice.
func advice(status int, code string) error {
	switch hint, ok := config[code]; {
	case status == http.StatusUnauthorized && code == "unauthorized_client": // Keycloak
		return errors.New(checkClient)
	case ok:
		return errors.New(hint)
	case status >= 300 && status < 400:
		return errors.New("a redirect, which is never followed: check auth_url or token_url")
	case status == http.StatusNotFound, status == http.StatusMethodNotAllowed:
		return errors.New(checkAddr)
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return errors.New("neither the client nor the user is named as the cause: check " +
			"client_id, client_secret and client_auth, and what stands in front of the provider")
	}
	return nil
}

// maxRetryAfter caps the wait a provider may ask for: a provider's typo must not stop renewals for
// a year.
const maxRetryAfter = time.Hour

// retryAfter reads the header Retry-After as seconds or as an HTTP date (RFC 9110 section 10.2.3),
// else GitHub's own headers. Without any of these retryAfter is 0.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(h.Get("Retry-After"))
	if seconds, err := strconv.ParseInt(value, 10, 64); err == nil {
		return min(max(0, time.Duration(min(seconds, 1<<32))*time.Second), maxRetryAfter)
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(0, at.Sub(now)), maxRetryAfter)
	}
	// GitHub's own headers say when the user has calls left again.
	if at, err := strconv.ParseInt(h.Get("X-RateLimit-Reset"), 10, 64); err == nil &&
		h.Get("X-RateLimit-Remaining") == "0" {
		return min(max(0, time.Unix(at, 0).Sub(now)), maxRetryAfter)
	}
	return 0
}

// code cuts an error code to 64 printable characters, fit for a log.
func code(s string) string { return printable(s, 64) }

func printable(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x21 || r > 0x7e {
			return -1
		}
		return r
	}, s)
	return s[:min(len(s), most)]
}
