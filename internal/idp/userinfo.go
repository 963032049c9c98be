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

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// maxUserInfo is the largest profile that is read, in bytes: users can be in many organisations.
const maxUserInfo = 1 << 20

// UserInfo fetches the profile of user with an access token. Errors: grant.ErrAccessRefused where the token is not taken,
// grant.ErrSubjectMismatch when the answer is about somebody else, else a *grant.Fault. That is never a verdict on the user:
// Ambiguous is an answer that broke off or is no profile at all, Unknown one that names nobody.
func (p *Provider) UserInfo(ctx context.Context, access grant.Secret, user string) (schema.Profile, error) {
	e, err := p.discover(ctx)
	if err != nil {
		return schema.Profile{}, err
	}
	r, err := p.send(ctx, call{
		op: "userinfo", method: http.MethodGet, url: e.UserInfo, limit: maxUserInfo,
		header: http.Header{"Authorization": {"Bearer " + access.Reveal()}},
	})
	if err != nil {
		return schema.Profile{}, err
	}
	fault := func(class grant.Class, err error) (schema.Profile, error) {
		return schema.Profile{}, &grant.Fault{Class: class, Op: "userinfo", Status: r.status, RetryAfter: p.patience(class, r), Err: err}
	}
	if r.status == http.StatusUnauthorized {
		return schema.Profile{}, grant.ErrAccessRefused
	}
	if r.full {
		return fault(grant.Unknown, errors.New("the profile is larger than 1 MiB"))
	}
	if r.status != http.StatusOK {
		class, _ := Classify(Answer{Status: r.status}, nil)
		if class == "" || class == grant.Permanent {
			class = grant.Unknown
		}
		if class == grant.Config {
			err = errors.New("check userinfo_url, and that the user's login asked for the scopes that the profile needs")
		}
		return fault(class, err)
	}
	u, err := parseProfile(r.body)
	if err != nil {
		return fault(grant.Ambiguous, errors.New("the profile is no JSON object"))
	}
	switch id := u.subject(r.body, p.config.Subject); {
	case id == user && id != "":
		return u.profile(user, r.body), nil
	case id != "":
		return schema.Profile{}, grant.ErrSubjectMismatch
	case refusals[u.Error]:
		return schema.Profile{}, grant.ErrAccessRefused
	}
	return fault(grant.Unknown, fmt.Errorf("the profile has no %s: it names nobody", p.config.Subject))
}

// refusals are the codes that say in a 200 what others say with a 401: Slack.
var refusals = map[string]bool{"invalid_auth": true, "not_authed": true, "token_expired": true, "token_revoked": true, "invalid_token": true}

// userInfo is PropelAuth's user and OpenID Connect's standard claims (Core section 5.1) in one.
type userInfo struct {
	UserID        string                  `json:"user_id"`
	Sub           string                  `json:"sub"`
	Email         string                  `json:"email"`
	Confirmed     boolean                 `json:"email_confirmed"`
	Verified      boolean                 `json:"email_verified"`
	First         string                  `json:"first_name"`
	Last          string                  `json:"last_name"`
	Given         string                  `json:"given_name"`
	Family        string                  `json:"family_name"`
	Name          string                  `json:"name"`
	Username      string                  `json:"username"`
	Preferred     string                  `json:"preferred_username"`
	PictureURL    string                  `json:"picture_url"`
	Picture       string                  `json:"picture"`
	Enabled       boolean                 `json:"enabled"`
	Locked        boolean                 `json:"locked"`
	MFA           boolean                 `json:"mfa_enabled"`
	HasPassword   boolean                 `json:"has_password"`
	Organisations map[string]organisation `json:"org_id_to_org_info"`
	Memberships   map[string]organisation `json:"org_id_to_org_member_info"`
	Error         string                  `json:"error"`
}

// organisation is an entry of PropelAuth's org_id_to_org_info.
type organisation struct {
	Name        string   `json:"org_name"`
	Role        string   `json:"user_role"`
	Inherited   []string `json:"inherited_user_roles_plus_current_role"`
	Additional  []string `json:"additional_roles"`
	Permissions []string `json:"user_permissions"`
}

// parseProfile reads a userinfo body.
func parseProfile(body []byte) (u userInfo, err error) {
	if !bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")) {
		return u, errors.New("no object")
	}
	return u, lenient(body, &u)
}

// subject is whom the profile is about, by the member that the settings name. It alone decides, where it is there: a
// provider may have an id of its own beside the one that users are known by. Without it the other of the usual two does.
func (u userInfo) subject(raw json.RawMessage, claim string) string {
	switch claim {
	case "user_id":
		return cmp.Or(u.UserID, u.Sub)
	case "sub":
		return cmp.Or(u.Sub, u.UserID)
	}
	var members map[string]json.RawMessage
	if json.Unmarshal(raw, &members) != nil {
		return ""
	}
	if s := text(members[claim]); s != "" {
		return s
	}
	if n, err := strconv.ParseInt(string(members[claim]), 10, 64); err == nil {
		return strconv.FormatInt(n, 10) // GitHub's id
	}
	return ""
}

func (u userInfo) profile(user string, raw json.RawMessage) schema.Profile {
	first, last := either(u.First, u.Given), either(u.Last, u.Family)
	p := schema.Profile{
		ID: user, Email: u.Email, FirstName: first, LastName: last, Name: strings.TrimSpace(first + " " + last),
		Username: either(u.Username, u.Preferred), Picture: either(u.PictureURL, u.Picture),
		EmailVerified: cmp.Or(u.Confirmed.value, u.Verified.value), Enabled: u.Enabled.value, Locked: u.Locked.value,
		MFAEnabled: u.MFA.value, HasPassword: u.HasPassword.value, Raw: raw,
	}
	if p.Name == "" {
		p.Name = strings.TrimSpace(u.Name)
	}
	orgs := u.Organisations
	if orgs == nil {
		orgs = u.Memberships
	}
	p.Organisations = organisations(orgs)
	return p
}

func either(a, b string) string { return cmp.Or(strings.TrimSpace(a), strings.TrimSpace(b)) }

// organisations puts the memberships in an order of their own, so that a provider's order is no change.
func organisations(in map[string]organisation) []schema.Organisation {
	var out []schema.Organisation
	for id, o := range in {
		roles := slices.Concat(o.Inherited, o.Additional)
		if o.Role != "" {
			roles = append(roles, o.Role)
		}
		out = append(out, schema.Organisation{ID: id, Name: o.Name, Role: o.Role, Roles: sorted(roles), Permissions: sorted(o.Permissions)})
	}
	slices.SortFunc(out, func(a, b schema.Organisation) int { return strings.Compare(a.ID, b.ID) })
	return out
}

func sorted(in []string) []string {
	out := slices.DeleteFunc(slices.Clone(in), func(s string) bool { return s == "" }) // what was no text in a list
	slices.Sort(out)
	return slices.Compact(out)
}
