package standin

import (
	"encoding/json"
	"net/http"
	"sync/atomic"
	"time"
)

// adminRoutes let another process be user, administrator and saboteur.
func (s *Server) adminRoutes() {
	form := func(path string, act func(user string)) {
		s.mux.HandleFunc("POST /_admin/"+path, func(_ http.ResponseWriter, r *http.Request) {
			act(r.FormValue("user"))
		})
	}
	show := func(path string, what func(r *http.Request) any) {
		s.mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			reply(w, http.StatusOK, what(r))
		})
	}
	form("end", s.EndSessions)
	form("disable", s.Disable)
	form("enable", s.Enable)
	form("delete", s.Delete)
	show("POST /_admin/login", func(r *http.Request) any { return s.Login(r.FormValue("user")) })
	show("GET /_admin/stats", func(*http.Request) any { return s.Stats() })
	show("GET /_admin/users", func(*http.Request) any { return s.Users() })
	show("GET /_admin/user", func(r *http.Request) any { return s.User(r.FormValue("user")) })
	show("GET /_admin/live", func(r *http.Request) any { return s.Live(r.FormValue("user")) })
	// Tokens come in bodies, never in URLs.
	show("POST /_admin/valid", func(r *http.Request) any {
		return s.Valid(r.PostFormValue("refresh_token"))
	})
	s.mux.HandleFunc("POST /_admin/edit", s.serveEdit)
	s.mux.HandleFunc("POST /_admin/fault", s.serveFault)
}

// serveEdit sets members of the user's profile: a form with user, and profile as a JSON object.
func (s *Server) serveEdit(w http.ResponseWriter, r *http.Request) {
	var members map[string]any
	if err := json.Unmarshal([]byte(r.FormValue("profile")), &members); err != nil {
		http.Error(w, "profile: want a JSON object", http.StatusBadRequest)
		return
	}
	s.Edit(r.FormValue("user"), func(profile map[string]any) {
		for name, value := range members {
			profile[name] = value
		}
	})
}

// faultOrder is a fault as another process asks for it. The zero value ends the fault.
type faultOrder struct {
	Op   string `json:"op"`   // of these requests; empty: all
	User string `json:"user"` // of this user; empty: all
	// one in so many of these requests goes wrong; 0 and 1: all go wrong
	Every    int64             `json:"every"`
	Times    int64             `json:"times"` // how often; 0: until the next order
	Act      bool              `json:"act"`
	DelayMS  int64             `json:"delay_ms"`
	Hang     bool              `json:"hang"`
	Drop     bool              `json:"drop"`
	Truncate bool              `json:"truncate"`
	Half     bool              `json:"half"`
	Status   int               `json:"status"`
	Header   map[string]string `json:"header"`
	Body     string            `json:"body"`
}

// serveFault takes one order, in JSON, which replaces the last order.
func (s *Server) serveFault(w http.ResponseWriter, r *http.Request) {
	var o faultOrder
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil || o.Status != 0 && (o.Status < 200 || o.Status > 599) {
		http.Error(w,
			"want a fault in JSON, with a status of 200 to 599 if any", http.StatusBadRequest)
		return
	}
	s.SetFault(o.fault())
}

func (o faultOrder) fault() func(Request) *Fault {
	f := Fault{
		Act:      o.Act,
		Delay:    time.Duration(o.DelayMS) * time.Millisecond,
		Hang:     o.Hang,
		Drop:     o.Drop,
		Truncate: o.Truncate,
		Half:     o.Half,
		Status:   o.Status,
		Body:     o.Body,
		Header:   http.Header{},
	}
	for name, value := range o.Header {
		f.Header.Set(name, value)
	}
	if !f.wrong() && f.Delay == 0 {
		return nil
	}
	var asked, done atomic.Int64
	return func(r Request) *Fault {
		if o.Op != "" && o.Op != r.Op || o.User != "" && o.User != r.User ||
			asked.Add(1)%max(o.Every, 1) != 0 {
			return nil
		}
		if o.Times > 0 && done.Add(1) > o.Times {
			return nil
		}
		return &f
	}
}
