package idp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// maxUserInfo is the largest profile that is read, in bytes: users can be in many organisations.
const maxUserInfo = 1 << 20

// UserInfo fetches the profile of user with an access token. Errors: grant.ErrAccessRefused for a 401,
// grant.ErrSubjectMismatch when the answer is about somebody else, else a *grant.Fault; that can be no verdict on the user.
func (p *Provider) UserInfo(ctx context.Context, access grant.Secret, user string) (schema.Profile, error) {
	e, err := p.discover(ctx)
	if err != nil {
		return schema.Profile{}, err
	}
	header := http.Header{"Authorization": {"Bearer " + access.Reveal()}}
	r, written, err := p.send(ctx, http.MethodGet, e.UserInfo, header, nil, maxUserInfo)
	fault := func(class grant.Class, err error) error {
		f := &grant.Fault{Class: class, Op: "userinfo", Status: r.status, Err: err}
		if r.header != nil {
			f.RetryAfter = retryAfter(r.header.Get("Retry-After"), p.now())
		}
		return f
	}
	switch {
	case err != nil && written:
		return schema.Profile{}, fault(grant.Ambiguous, err)
	case err != nil:
		return schema.Profile{}, fault(grant.Unsent, err)
	case r.status == http.StatusUnauthorized:
		return schema.Profile{}, grant.ErrAccessRefused
	case r.status == http.StatusOK && !r.full:
		return p.profile(r.body, user, fault)
	case r.full:
		return schema.Profile{}, fault(grant.Unknown, errors.New("the profile is larger than 1 MiB"))
	}
	class, _ := Classify(Answer{Status: r.status}, nil)
	if class == grant.Permanent || class == "" {
		class = grant.Unknown
	}
	return schema.Profile{}, fault(class, nil)
}

// profile reads a userinfo body and holds its subject against user.
func (p *Provider) profile(body []byte, user string, fault func(grant.Class, error) error) (schema.Profile, error) {
	profile, ids, err := parseProfile(body)
	switch {
	case err != nil:
		return schema.Profile{}, fault(grant.Ambiguous, errors.New("the profile is no JSON object"))
	case len(ids) == 0:
		return schema.Profile{}, fault(grant.Unknown, errors.New("the profile names no user: neither user_id nor sub"))
	case slices.ContainsFunc(ids, func(id string) bool { return id == user }):
		profile.ID = user
		return profile, nil
	}
	return schema.Profile{}, grant.ErrSubjectMismatch
}

// flexible is a JSON value that is a T, or is left out where it is something else: a provider's oddity in one field must
// not cost the whole profile.
type flexible[T any] struct{ value *T }

func (f *flexible[T]) UnmarshalJSON(raw []byte) error {
	var v *T
	if json.Unmarshal(raw, &v) == nil {
		f.value = v
	}
	return nil
}

func (f flexible[T]) or(zero T) T {
	if f.value == nil {
		return zero
	}
	return *f.value
}

type str = flexible[string]
type boolean = flexible[bool]

// userInfo is PropelAuth's user and OpenID Connect's standard claims (Core section 5.1) in one.
type userInfo struct {
	UserID        str                                         `json:"user_id"`
	Sub           str                                         `json:"sub"`
	Email         str                                         `json:"email"`
	Confirmed     boolean                                     `json:"email_confirmed"`
	Verified      boolean                                     `json:"email_verified"`
	First         str                                         `json:"first_name"`
	Last          str                                         `json:"last_name"`
	Given         str                                         `json:"given_name"`
	Family        str                                         `json:"family_name"`
	Name          str                                         `json:"name"`
	Username      str                                         `json:"username"`
	Preferred     str                                         `json:"preferred_username"`
	PictureURL    str                                         `json:"picture_url"`
	Picture       str                                         `json:"picture"`
	Enabled       boolean                                     `json:"enabled"`
	Locked        boolean                                     `json:"locked"`
	MFA           boolean                                     `json:"mfa_enabled"`
	HasPassword   boolean                                     `json:"has_password"`
	Organisations flexible[map[string]flexible[organisation]] `json:"org_id_to_org_info"`
	Memberships   flexible[map[string]flexible[organisation]] `json:"org_id_to_org_member_info"`
}

// organisation is an entry of PropelAuth's org_id_to_org_info.
type organisation struct {
	Name        str                `json:"org_name"`
	Role        str                `json:"user_role"`
	Inherited   flexible[[]string] `json:"inherited_user_roles_plus_current_role"`
	Additional  flexible[[]string] `json:"additional_roles"`
	Permissions flexible[[]string] `json:"user_permissions"`
}

// parseProfile maps a userinfo body. ids are the ids that it gives the user: sub must match (OpenID Connect Core section
// 5.3.2), PropelAuth's own is user_id.
func parseProfile(body []byte) (p schema.Profile, ids []string, err error) {
	var u userInfo
	if err := json.Unmarshal(body, &u); err != nil {
		return p, nil, err
	}
	var raw bytes.Buffer
	if err := json.Compact(&raw, body); err != nil || raw.Len() == 0 || raw.Bytes()[0] != '{' {
		return p, nil, errors.New("no object")
	}
	for _, id := range []string{u.UserID.or(""), u.Sub.or("")} {
		if id != "" {
			ids = append(ids, id)
		}
	}
	first, last := either(u.First, u.Given), either(u.Last, u.Family)
	p = schema.Profile{
		Email: u.Email.or(""), FirstName: first, LastName: last, Name: strings.TrimSpace(first + " " + last),
		Username: either(u.Username, u.Preferred), Picture: either(u.PictureURL, u.Picture),
		EmailVerified: u.Verified.value, Enabled: u.Enabled.value, Locked: u.Locked.value, MFAEnabled: u.MFA.value,
		HasPassword: u.HasPassword.value, Raw: raw.Bytes(),
	}
	if p.Name == "" {
		p.Name = strings.TrimSpace(u.Name.or(""))
	}
	if u.Confirmed.value != nil {
		p.EmailVerified = u.Confirmed.value
	}
	orgs := u.Organisations.or(nil)
	if orgs == nil {
		orgs = u.Memberships.or(nil)
	}
	p.Organisations = organisations(orgs)
	return p, ids, nil
}

func either(a, b str) string {
	if v := strings.TrimSpace(a.or("")); v != "" {
		return v
	}
	return strings.TrimSpace(b.or(""))
}

// organisations puts the memberships in an order of their own, so that a provider's order is no change.
func organisations(in map[string]flexible[organisation]) []schema.Organisation {
	var out []schema.Organisation
	for id, f := range in {
		o := f.or(organisation{})
		roles := append(slices.Clone(o.Inherited.or(nil)), o.Additional.or(nil)...)
		if role := o.Role.or(""); role != "" {
			roles = append(roles, role)
		}
		out = append(out, schema.Organisation{
			ID: id, Name: o.Name.or(""), Role: o.Role.or(""), Roles: sorted(roles), Permissions: sorted(o.Permissions.or(nil)),
		})
	}
	slices.SortFunc(out, func(a, b schema.Organisation) int { return strings.Compare(a.ID, b.ID) })
	return out
}

func sorted(in []string) []string {
	out := slices.Clone(in)
	slices.Sort(out)
	return slices.Compact(out)
}
