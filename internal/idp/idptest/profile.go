package idptest

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

var (
	firstNames = []string{"Ines", "Tomas", "Aiko", "Lena", "Mateo", "Zara", "Noah", "Priya", "Emil", "Salma"}
	lastNames  = []string{"Moreau", "Novak", "Tanaka", "Berg", "Silva", "Khan", "Olsen", "Rao", "Weiss", "Haddad"}
)

// profileOf makes a user as PropelAuth's userinfo shows one, always the same for a name.
func profileOf(name string, now time.Time) map[string]any {
	h := sha256.Sum256([]byte(name))
	first, last := firstNames[int(h[0])%len(firstNames)], lastNames[int(h[1])%len(lastNames)]
	org := fmt.Sprintf("org-%d", h[2]%5)
	role := []string{"Owner", "Admin", "Member"}[h[3]%3]
	email := name
	if !strings.Contains(name, "@") {
		email = strings.ToLower(first+"."+last) + "@example.org"
	}
	return map[string]any{
		"user_id": name, "email": email, "email_confirmed": true, "has_password": h[4]%2 == 0, "username": strings.ToLower(first),
		"first_name": first, "last_name": last, "picture_url": "https://img.example.org/u/" + strconv.Itoa(int(h[5])) + ".png",
		"properties": map[string]any{"tos": true}, "metadata": nil, "locked": false, "enabled": true, "mfa_enabled": h[6]%2 == 0,
		"can_create_orgs": false, "created_at": now.Unix(), "last_active_at": now.Unix(), "update_password_required": false,
		"org_id_to_org_info": map[string]any{org: map[string]any{
			"org_id": org, "org_name": "Atelier " + strconv.Itoa(int(h[2]%5)), "url_safe_org_name": org, "org_metadata": map[string]any{},
			"org_role_structure": "single_role_in_hierarchy", "user_role": role,
			"inherited_user_roles_plus_current_role": []string{role, "Member"}, "additional_roles": []string{},
			"user_permissions": []string{"propelauth::can_invite"},
		}},
	}
}

// accessToken looks like PropelAuth's: a JWT with sub, iat, exp. Its signature is a MAC, cheap to make by the thousand:
// nobody but this server checks it.
func (s *Server) accessToken(ses *session) string {
	now := s.options.Now()
	claims, err := json.Marshal(map[string]any{
		"sub": ses.user, "iat": now.Unix(), "exp": now.Add(s.options.Lifetime).Unix(), "aud": s.options.ClientID, "ses": ses.id, "gen": ses.gen,
		"ns": now.UnixNano(),
	})
	if err != nil {
		panic("idptest: " + err.Error())
	}
	enc := base64.RawURLEncoding
	head := enc.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + enc.EncodeToString(claims)
	return head + "." + s.mac(head)
}

// checkAccess returns the account that an access token opens.
func (s *Server) checkAccess(token string) (*user, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 || s.mac(parts[0]+"."+parts[1]) != parts[2] {
		return nil, false
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	var c struct {
		NS  int64 `json:"ns"`
		Ses int   `json:"ses"`
	}
	if err != nil || json.Unmarshal(raw, &c) != nil || c.Ses >= len(s.sessions) {
		return nil, false
	}
	ses := s.sessions[c.Ses]
	if s.options.Now().Sub(time.Unix(0, c.NS)) >= s.options.Lifetime || !s.options.LaxUserInfo && !s.alive(ses) {
		return nil, false
	}
	return s.users[ses.user], true
}
