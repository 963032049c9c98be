package idp

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// maxUserInfo is the size limit of a profile, in bytes: users can be in many organisations.
const maxUserInfo = 1 << 20

// UserInfo fetches the profile of user with an access token. The error is grant.ErrAccessRefused if
// the provider refuses the token, grant.ErrSubjectMismatch if the answer is about another user,
// else a *grant.Fault. The fault is never a verdict on the user: Ambiguous is an answer that broke
// off or is no profile, Unknown is a profile that names no user.
func (p *Provider) UserInfo(
	ctx context.Context, access secret.Value, user string,
) (schema.Profile, error) {
	_, profile, err := p.userInfo(ctx, access, func(named string) bool { return named == user })
	return profile, err
}

// userInfo is UserInfo for any wanted user, and returns the user's id.
func (p *Provider) userInfo(
	ctx context.Context, access secret.Value, wanted func(user string) bool,
) (string, schema.Profile, error) {
	e, err := p.discover(ctx)
	if err != nil {
		return "", schema.Profile{}, err
	}
	r, err := p.send(ctx, call{
		op: "userinfo", method: http.MethodGet, url: e.UserInfo, limit: maxUserInfo,
		header: http.Header{"Authorization": {"Bearer " + access.Reveal()}},
	})
	if err != nil {
		return "", schema.Profile{}, err
	}
	fault := func(class grant.Class, err error) (string, schema.Profile, error) {
		return "", schema.Profile{}, &grant.Fault{
			Class:      class,
			Op:         "userinfo",
			Status:     r.status,
			RetryAfter: p.patience(class, r),
			Err:        err,
			Detail:     p.detail(r, access),
		}
	}
	if r.status == http.StatusUnauthorized {
		return "", schema.Profile{}, grant.ErrAccessRefused
	}
	if r.cut {
		return fault(grant.Unknown, errors.New("the profile is larger than 1 MiB"))
	}
	if r.status != http.StatusOK {
		class, _ := Classify(p.userInfoAnswer(r), p.rules)
		if class == Refused {
			return "", schema.Profile{}, grant.ErrAccessRefused
		}
		if class == "" || class == grant.Permanent {
			class = grant.Unknown
		}
		if class == grant.Config {
			err = errors.New("check userinfo_url, and that the user's login asked for the scopes " +
				"that the profile needs")
		}
		return fault(class, err)
	}
	u, err := parseProfile(r.body, p.config.Subject, p.mapping)
	if errors.Is(err, errTwice) {
		return fault(grant.Unknown, err)
	}
	if err != nil {
		return fault(grant.Ambiguous, errors.New("the profile is no JSON object"))
	}
	switch id := u.subject(p.config.Subject); {
	case id != "" && wanted(id):
		return id, u.profile(id), nil
	case id != "":
		return "", schema.Profile{}, grant.ErrSubjectMismatch
	case refusals[text(u.members.get("error"))]:
		return "", schema.Profile{}, grant.ErrAccessRefused
	}
	return fault(grant.Unknown, fmt.Errorf("the profile has no %s: it names no user",
		p.config.Subject))
}

// userInfoAnswer is the part of a userinfo answer that rules look at. Its code is not a verdict.
func (p *Provider) userInfoAnswer(r reply) Answer {
	a := Answer{
		UserInfo: true,
		Status:   r.status,
		Body:     string(r.body),
		Empty:    len(bytes.TrimSpace(r.body)) == 0,
	}
	if b, _, err := members(r.body); err == nil {
		a.Code = errorOf(b.get("error"))
	}
	return a
}

// refusals are the codes by which a 200 refuses the access token, as a 401 does elsewhere: Slack.
var refusals = map[string]bool{
	"invalid_auth":     true,
	"not_authed":       true,
	"token_expired":    true,
	"token_revoked":    true,
	"invalid_token":    true,
	"account_inactive": true,
}

// userInfo is a profile taken apart: PropelAuth's user and OpenID Connect's standard claims (Core
// section 5.1) in one.
type userInfo struct {
	raw           json.RawMessage
	members       memberSet
	organisations []schema.Organisation
	// values for which the settings give another place, by the profile's member
	elsewhere map[string]json.RawMessage
}

// mapped are the members that a profile is made of. No such member may occur twice, since renewd
// cannot tell which of the two counts.
var mapped = []string{
	"user_id", "sub", "email", "email_confirmed", "email_verified", "first_name", "given_name",
	"last_name", "family_name", "name", "username",
	"preferred_username", "picture_url", "picture", "enabled", "locked", "mfa_enabled",
	"has_password", "org_id_to_org_info",
	"org_id_to_org_member_info", "groups", "roles", "locale", "zoneinfo",
}

// errTwice is wrapped by the error of a profile in which a member renewd needs occurs twice.
var errTwice = errors.New("is there twice: it is not clear which one counts")

// parseProfile reads a userinfo body, in which claim names the user. mapping says where to find
// members of the profile that are not at their usual place.
func parseProfile(body []byte, claim string, mapping map[string]string) (u userInfo, err error) {
	u.raw = wellFormed(bytes.TrimSpace(body))
	var twice []string
	if u.members, twice, err = members(u.raw); err != nil {
		return u, err
	}
	for _, name := range twice {
		if name == claim || slices.Contains(mapped, name) || pointsInto(mapping, name) {
			return u, fmt.Errorf("the profile's %s %w", name, errTwice)
		}
	}
	orgs := u.members.get("org_id_to_org_info")
	if len(orgs) == 0 || string(orgs) == "null" {
		orgs = u.members.get("org_id_to_org_member_info")
	}
	if u.organisations, err = organisations(orgs); err != nil {
		return u, err
	}
	u.elsewhere, err = lookUp(u.members, mapping)
	return u, err
}

// subject is the user of the profile. If the member named by the settings is there, it alone
// decides: a provider may have its own id beside the id users are known by. Where user_id or sub is
// named and missing, the other of the two decides.
func (u userInfo) subject(claim string) string {
	switch claim {
	case "user_id":
		return cmp.Or(u.text("user_id"), u.text("sub"))
	case "sub":
		return cmp.Or(u.text("sub"), u.text("user_id"))
	}
	if s := u.text(claim); s != "" {
		return s
	}
	if n, err := strconv.ParseInt(string(u.members.get(claim)), 10, 64); err == nil {
		return strconv.FormatInt(n, 10) // GitHub's id
	}
	return ""
}

func (u userInfo) text(name string) string { return text(u.members.get(name)) }

func (u userInfo) profile(user string) schema.Profile {
	p := schema.Profile{
		ID:            user,
		Email:         u.text("email"),
		FirstName:     either(u.text("first_name"), u.text("given_name")),
		LastName:      either(u.text("last_name"), u.text("family_name")),
		Username:      either(u.text("username"), u.text("preferred_username")),
		Picture:       either(u.text("picture_url"), u.text("picture")),
		EmailVerified: cmp.Or(u.flag("email_confirmed"), u.flag("email_verified")),
		Enabled:       u.flag("enabled"),
		Locked:        u.flag("locked"),
		MFAEnabled:    u.flag("mfa_enabled"),
		HasPassword:   u.flag("has_password"),
		Groups:        sorted(names(u.members.get("groups"))),
		Roles:         sorted(names(u.members.get("roles"))),
		Locale:        u.text("locale"),
		Zoneinfo:      u.text("zoneinfo"),
		Organisations: u.organisations,
		Raw:           u.raw,
	}
	for target, raw := range u.elsewhere {
		targets[target](&p, raw)
	}
	if _, set := u.elsewhere["name"]; !set {
		p.Name = either(p.FirstName+" "+p.LastName, u.text("name"))
	}
	return p
}

func (u userInfo) flag(name string) *bool { return flag(u.members.get(name)) }

func either(a, b string) string { return cmp.Or(strings.TrimSpace(a), strings.TrimSpace(b)) }

// organisations reads PropelAuth's memberships, by organisation, sorted, so that a different order
// at the provider is not a change. An entry that is no membership gives only the organisation's id.
func organisations(raw json.RawMessage) (out []schema.Organisation, _ error) {
	all, twice, _ := object(raw)
	for _, entry := range all {
		m, again, _ := object(entry.value)
		if twice = append(twice, again...); len(twice) > 0 {
			return nil, fmt.Errorf("a member of the profile's organisations %w", errTwice)
		}
		o := schema.Organisation{
			ID:          entry.name,
			Name:        text(m.get("org_name")),
			Role:        text(m.get("user_role")),
			Permissions: sorted(texts(m.get("user_permissions"))),
		}
		o.Roles = sorted(slices.Concat(texts(m.get("inherited_user_roles_plus_current_role")),
			texts(m.get("additional_roles")), []string{o.Role}))
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b schema.Organisation) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// texts are the texts in a list.
func texts(raw json.RawMessage) (out []string) {
	for _, v := range list(raw) {
		out = append(out, text(v))
	}
	return out
}

// wellFormed makes JSON fit for every reader. Stores and subscribers refuse bytes that are not
// UTF-8, and many refuse an escape for NUL or for half a character. wellFormed replaces both by
// U+FFFD, as the decoder does.
func wellFormed(body []byte) []byte {
	if utf8.Valid(body) && bytes.IndexByte(body, '\\') < 0 {
		return body
	}
	body = bytes.ToValidUTF8(body, []byte("\ufffd"))
	for i := 0; i+1 < len(body); i++ {
		if body[i] != '\\' {
			continue
		}
		if u := escape(body[i:]); u == 0 || utf16.IsSurrogate(u) {
			if utf16.DecodeRune(u, escape(body[min(i+6, len(body)):])) != utf8.RuneError {
				i += 11
				continue
			}
			copy(body[i:], `\ufffd`)
		}
		i++ // the escaped character, so that a backslash does not begin another escape
	}
	return body
}

// escape is the code unit of a \u escape at the start of b; -1 without an escape.
func escape(b []byte) rune {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return -1
	}
	n, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	if err != nil {
		return -1
	}
	return rune(n)
}

func sorted(in []string) []string {
	// without the items that were no text
	out := slices.DeleteFunc(in, func(s string) bool { return s == "" })
	if len(out) == 0 {
		return nil
	}
	slices.Sort(out)
	return slices.Compact(out)
}
