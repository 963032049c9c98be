package standin

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// profileOf makes a user as in PropelAuth's userinfo, always the same for a name. created is in
// Unix s.
func profileOf(name string, created int64) map[string]any {
	firstNames := [...]string{
		"Ines", "Tomas", "Aiko", "Lena", "Mateo", "Zara", "Noah", "Priya", "Emil", "Salma",
	}
	lastNames := [...]string{
		"Moreau", "Novak", "Tanaka", "Berg", "Silva", "Khan", "Olsen", "Rao", "Weiss", "Haddad",
	}
	h := sha256.Sum256([]byte(name))
	first, last := firstNames[int(h[0])%len(firstNames)], lastNames[int(h[1])%len(lastNames)]
	org := fmt.Sprintf("org-%d", h[2]%5)
	role := [...]string{"Owner", "Admin", "Member"}[h[3]%3]
	email := name
	if !strings.Contains(name, "@") {
		email = strings.ToLower(first+"."+last) + "@example.org"
	}
	return map[string]any{
		"user_id":                  name,
		"email":                    email,
		"email_confirmed":          true,
		"has_password":             h[4]%2 == 0,
		"username":                 strings.ToLower(first),
		"first_name":               first,
		"last_name":                last,
		"picture_url":              "https://img.example.org/u/" + strconv.Itoa(int(h[5])) + ".png",
		"properties":               map[string]any{"tos": true},
		"metadata":                 nil,
		"locked":                   false,
		"enabled":                  true,
		"mfa_enabled":              h[6]%2 == 0,
		"can_create_orgs":          false,
		"created_at":               created,
		"last_active_at":           created,
		"update_password_required": false,
		"org_id_to_org_info": map[string]any{org: map[string]any{
			"org_id":                                 org,
			"org_name":                               "Atelier " + strconv.Itoa(int(h[2]%5)),
			"url_safe_org_name":                      org,
			"org_metadata":                           map[string]any{},
			"org_role_structure":                     "single_role_in_hierarchy",
			"user_role":                              role,
			"inherited_user_roles_plus_current_role": []string{role, "Member"},
			"additional_roles":                       []string{},
			"user_permissions":                       []string{"propelauth::can_invite"},
		}},
	}
}

// profile is the userinfo body of an account.
func (s *Server) profile(name string) []byte {
	s.mu.Lock()
	u := s.users[name]
	if u == nil {
		s.mu.Unlock()
		return []byte("{}") // Load has replaced all users
	}
	active, created := u.active, u.created
	if u.edited != nil {
		u.edited["last_active_at"] = active
		if s.options.OIDC {
			u.edited["sub"] = name
		}
		body, err := json.Marshal(u.edited)
		s.mu.Unlock()
		if err != nil {
			panic("standin: profile: " + err.Error()) // an edit put in something other than JSON
		}
		return body
	}
	s.mu.Unlock()
	p := profileOf(name, created)
	p["last_active_at"] = active
	if s.options.OIDC {
		p["sub"] = name
	}
	body, err := json.Marshal(p)
	if err != nil {
		panic("standin: " + err.Error()) // our own
	}
	return body
}
