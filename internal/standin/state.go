package standin

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// state is the content of a Save.
type state struct {
	Secret   []byte                    `json:"secret"`
	Key      []byte                    `json:"key,omitempty"` // PKCS #8
	Sessions []savedSession            `json:"sessions"`
	Users    map[string]savedUser      `json:"users,omitempty"`
	Profiles map[string]map[string]any `json:"profiles"` // only edited profiles
}

type savedSession struct {
	User      string    `json:"user"`
	Gen       int       `json:"gen"`
	RotatedAt time.Time `json:"rotated_at"`
	LoginAt   time.Time `json:"login_at"`
	Dead      bool      `json:"dead,omitempty"`
}

type savedUser struct {
	Created  int64 `json:"created"`
	Active   int64 `json:"active"`
	Disabled bool  `json:"disabled,omitempty"`
	Deleted  bool  `json:"deleted,omitempty"`
}

// Save returns everything a later Load needs to go on with the same sessions, keys included. Counts
// are left out.
func (s *Server) Save() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key, err := s.signer.marshal()
	if err != nil {
		return nil, fmt.Errorf("save the stand-in's state: %w", err)
	}
	out := state{
		Secret:   s.secret,
		Key:      key,
		Users:    map[string]savedUser{},
		Profiles: map[string]map[string]any{},
	}
	for _, ses := range s.sessions {
		out.Sessions = append(out.Sessions, savedSession{
			User:      ses.user.name,
			Gen:       ses.gen,
			RotatedAt: time.Unix(0, ses.rotatedAt),
			LoginAt:   time.Unix(0, ses.loginAt),
			Dead:      ses.dead,
		})
	}
	for name, u := range s.users {
		out.Users[name] = savedUser{u.created, u.active, u.disabled, u.deleted}
		if u.edited != nil {
			out.Profiles[name] = u.edited
		}
	}
	return json.Marshal(out)
}

// Load replaces all users and sessions by the saved users and sessions. Load also replaces the key,
// if it is of the kind Options.Signing asks for. Counts go on.
func (s *Server) Load(raw []byte) error {
	var in state
	if err := json.Unmarshal(raw, &in); err != nil || len(in.Secret) == 0 {
		return errors.New("load the stand-in's state: not what Save wrote")
	}
	signer, err := parseSigner(in.Key)
	if err != nil {
		// the cause could quote the key
		return errors.New("load the stand-in's state: its key is damaged")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secret, s.sessions, s.users = in.Secret, nil, map[string]*user{}
	if signer.alg == s.options.Signing {
		s.signer = signer
	}
	for name, saved := range in.Users {
		u := s.account(name)
		u.created, u.active, u.disabled, u.deleted = saved.Created, saved.Active, saved.Disabled,
			saved.Deleted
	}
	for name, profile := range in.Profiles {
		s.account(name).edited = profile
	}
	for i, saved := range in.Sessions {
		u := s.account(saved.User)
		ses := &session{
			id:        i,
			user:      u,
			gen:       saved.Gen,
			spent:     saved.Gen - 1,
			spentAt:   saved.RotatedAt.UnixNano(),
			rotatedAt: saved.RotatedAt.UnixNano(),
			loginAt:   saved.LoginAt.UnixNano(),
			dead:      saved.Dead,
		}
		s.sessions = append(s.sessions, ses)
		u.sessions = append(u.sessions, ses)
	}
	return nil
}
