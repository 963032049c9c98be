package hook

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/secret"
)

// claims are the claims of a token that the checks below need.
type claims struct {
	Issuer   string                     `json:"iss"`
	Audience audience                   `json:"aud"`
	ID       string                     `json:"jti"`
	IssuedAt seconds                    `json:"iat"`
	Expires  seconds                    `json:"exp"`
	Happened seconds                    `json:"toe"`
	Subject  string                     `json:"sub"`
	Nonce    json.RawMessage            `json:"nonce"`
	Events   map[string]json.RawMessage `json:"events"`
	Named    json.RawMessage            `json:"sub_id"`
}

// audience is one text, or a list of texts (RFC 7519, section 4.1.3).
type audience []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audience) UnmarshalJSON(raw []byte) error {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(raw, (*[]string)(a))
}

// seconds are a NumericDate (RFC 7519, section 2).
type seconds float64

func (s seconds) time() time.Time { return time.Unix(int64(s), 0) }

// latest is the year 9999: larger values are no time.
const latest = 253402300799

// claims reads a token's claims, and checks the issuer and the audience.
func (i *issuer) claims(ctx context.Context, token string) (typ string, c claims, err error) {
	typ, raw, err := i.verify(ctx, token)
	if err != nil {
		return typ, c, err
	}
	switch err := json.Unmarshal(raw, &c); {
	case err != nil || c.IssuedAt <= 0 || c.IssuedAt > latest || c.Expires < 0 ||
		c.Expires > latest || c.Happened < 0 || c.Happened > latest:
		return typ, c, refuse(Malformed, "the token's claims cannot be read, or it has no iat")
	case c.ID == "":
		return typ, c, refuse(Malformed, "the token has no jti")
	case len(c.Events) == 0:
		return typ, c, refuse(Malformed, "the token has no events")
	case !same(c.Issuer, i.Issuer):
		return typ, c, &refusal{
			result: Foreign, words: "the token's iss is not the issuer in renewd's settings",
			code: "invalid_issuer",
		}
	case !slices.ContainsFunc(c.Audience, func(a string) bool {
		return slices.Contains(i.Config.Audience, a)
	}):
		return typ, c, &refusal{
			result: Foreign, words: "the token's aud is not the audience in renewd's settings",
			code: "invalid_audience",
		}
	}
	return typ, c, nil
}

// eventLogout is the member of events of a logout token.
const eventLogout = "http://schemas.openid.net/event/backchannel-logout"

// logout reads logout tokens: OpenID Connect Back-Channel Logout 1.0, sections 2.5 and 2.6.
type logout struct{ *issuer }

// read implements reader.
func (l logout) read(ctx context.Context, p Post, now time.Time) (message, error) {
	form, err := url.ParseQuery(string(p.Body))
	kind, _, _ := mime.ParseMediaType(p.Header("Content-Type"))
	token := form.Get("logout_token")
	if err != nil || kind != "application/x-www-form-urlencoded" || token == "" {
		return message{}, refuse(Malformed, "want a form with logout_token")
	}
	typ, c, err := l.claims(ctx, token)
	if err != nil {
		return message{}, err
	}
	var event map[string]json.RawMessage
	at, until := c.IssuedAt.time(), c.Expires.time()
	switch {
	case typ != "" && typ != "logout+jwt" && typ != "jwt":
		return message{}, refuse(Malformed, "the token's typ is not logout+jwt")
	case json.Unmarshal(c.Events[eventLogout], &event) != nil || event == nil:
		return message{}, refuse(Malformed, "the token's events has no object under "+eventLogout)
	case c.Nonce != nil:
		return message{}, refuse(Malformed, "a logout token has no nonce")
	case c.Expires == 0:
		return message{}, refuse(Malformed, "the token has no exp")
	case now.After(until.Add(leeway)), at.After(now.Add(tolerance)), now.Sub(at) > oldest:
		return message{}, refuse(Stale, "the token has expired, or is of the future")
	case c.Subject == "":
		return message{}, refuse(Malformed, "the token has no sub: renewd knows users by their "+
			"sub, not by sid")
	}
	m := message{id: c.ID, at: at, what: "logout", users: []string{c.Subject}, do: Ask}
	if l.SignOut {
		m.do = SignOut
	}
	return m, nil
}

const (
	// leeway is by how much an issuer's clock may be behind.
	leeway = time.Minute
	// oldest is the greatest age of a token: it is shorter than topology.SeenAge, so that no token
	// is taken twice.
	oldest = 24 * time.Hour
)

// The types of events of CAEP 1.0 and RISC 1.0 begin with these.
const (
	caep = "https://schemas.openid.net/secevent/caep/event-type/"
	risc = "https://schemas.openid.net/secevent/risc/event-type/"
)

// asks is the action of a type of event, if the settings allow it: see allowed. Other types ask for
// nothing.
func asks(of string) Action {
	switch of {
	case caep + "session-revoked", risc + "sessions-revoked", risc + "account-disabled":
		return SignOut
	case risc + "account-purged":
		return Forget
	case caep + "token-claims-change", caep + "credential-change",
		risc + "account-credential-change-required", risc + "credential-compromise":
		return Ask
	case risc + "account-enabled":
		return Sync
	}
	return Ignore
}

// set reads security event tokens (RFC 8417) that are pushed (RFC 8935).
type set struct{ *issuer }

// read implements reader.
func (s set) read(ctx context.Context, p Post, now time.Time) (message, error) {
	if !shows(p.Header("Authorization"), s.Secrets) {
		return message{}, &refusal{
			result: Forged, words: "want Authorization: Bearer and the secret of this source",
			code: "authentication_failed",
		}
	}
	kind, _, _ := mime.ParseMediaType(p.Header("Content-Type"))
	if kind != "application/secevent+jwt" {
		return message{}, refuse(Malformed, "want a body of type application/secevent+jwt")
	}
	typ, c, err := s.claims(ctx, strings.TrimSpace(string(p.Body)))
	if err != nil {
		return message{}, err
	}
	at := c.IssuedAt.time()
	switch {
	case typ != "secevent+jwt":
		return message{}, refuse(Malformed, "the token's typ is not secevent+jwt")
	case at.After(now.Add(tolerance)), now.Sub(at) > oldest:
		return message{}, refuse(Stale, "the token is older than a day, or of the future")
	}
	if c.Happened > 0 && c.Happened.time().Before(at) {
		at = c.Happened.time()
	}
	m := message{id: c.ID, at: at, do: Ignore}
	for _, of := range slices.Sorted(maps.Keys(c.Events)) {
		do := s.allowed(asks(of))
		if do == Ignore || stronger(m.do, do) != do {
			continue
		}
		if do != m.do {
			m.users = nil // a weaker event may be about another user
		}
		m.do, m.what = do, of[strings.LastIndexByte(of, '/')+1:]
		m.users = append(m.users, s.subjects(c, c.Events[of])...)
	}
	if m.do != Ignore && len(m.users) == 0 {
		return m, refuse(Malformed, "the token names no user: want sub_id in the format iss_sub, "+
			"opaque, email or aliases")
	}
	return m, nil
}

// allowed is the action that the settings allow for an event's action.
func (s set) allowed(do Action) Action {
	switch {
	case do == Forget && s.Forget:
		return Forget
	case (do == Forget || do == SignOut) && s.SignOut:
		return SignOut
	case do == Forget, do == SignOut:
		return Ask
	}
	return do
}

// subjects are the ids that an event's user may have at the provider: of the token's sub_id (RFC
// 9493), else of the event's own subject, as the drafts of CAEP and RISC had it.
func (s set) subjects(c claims, event json.RawMessage) []string {
	var older struct {
		Subject json.RawMessage `json:"subject"`
	}
	_ = json.Unmarshal(event, &older) // an event that is no object names no user
	named := c.Named
	if len(named) == 0 {
		named = older.Subject
	}
	return s.identifiers(named, 2)
}

// identified is a subject identifier (RFC 9493, section 3), or a subject of the drafts.
type identified struct {
	Format      string            `json:"format"`
	Draft       string            `json:"subject_type"`
	Issuer      string            `json:"iss"`
	Subject     string            `json:"sub"`
	ID          string            `json:"id"`
	Email       string            `json:"email"`
	User        json.RawMessage   `json:"user"` // of a complex subject (SSF 1.0)
	Identifiers []json.RawMessage `json:"identifiers"`
}

// mostAliases is how many of a subject's identifiers are looked at.
const mostAliases = 8

func (s set) identifiers(raw json.RawMessage, depth int) (ids []string) {
	var of identified
	if json.Unmarshal(raw, &of) != nil || depth == 0 {
		return nil
	}
	switch strings.ReplaceAll(cmp.Or(of.Format, of.Draft), "-", "_") {
	case "iss_sub":
		if same(of.Issuer, s.Issuer) || same(of.Issuer, s.Config.Subjects) {
			ids = []string{of.Subject}
		}
	case "opaque":
		ids = []string{of.ID}
	case "email":
		ids = []string{of.Email}
	case "aliases":
		for _, one := range of.Identifiers[:min(len(of.Identifiers), mostAliases)] {
			ids = append(ids, s.identifiers(one, depth-1)...)
		}
	default: // complex, which the drafts did not name
		if len(of.User) > 0 {
			ids = s.identifiers(of.User, depth-1)
		}
	}
	return slices.DeleteFunc(ids, func(id string) bool { return id == "" })
}

// shows reports whether a header shows any of the secrets; without secrets it need not. The time
// for the check tells nothing of the secrets.
func shows(header string, secrets []secret.Value) bool {
	given, _ := strings.CutPrefix(header, "Bearer ")
	got, found := sha256.Sum256([]byte(given)), len(secrets) == 0
	for _, one := range secrets {
		want := sha256.Sum256([]byte(one.Reveal()))
		if subtle.ConstantTimeCompare(got[:], want[:]) == 1 {
			found = true
		}
	}
	return found
}

// form gives an answer the form of the kind's standard: section 2.8 of Back-Channel Logout,
// sections 2.2 to 2.4 of RFC 8935.
func (s *source) form(a Answer, err error) Answer {
	switch {
	case a.Again:
	case s.Kind == Logout && !a.Result.Refused():
		a.Status = http.StatusOK
	case s.Kind == Logout:
		a.Status = http.StatusBadRequest
		a.Body = map[string]string{"error": "invalid_request", "error_description": a.Detail}
	case s.Kind == SET && a.Result.Refused():
		a.Status = http.StatusBadRequest
		a.Body = map[string]string{"err": errOf(a.Result, err), "description": a.Detail}
	}
	return a
}

// errOf is the error code of RFC 8935, section 2.4.
func errOf(result Result, err error) string {
	if why, ok := errors.AsType[*refusal](err); ok && why.code != "" {
		return why.code
	}
	if result == Forged {
		return "invalid_key"
	}
	return "invalid_request"
}
