package senders_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/schema"
)

func TestRefuse(t *testing.T) {
	list := senders.List{
		"shop":    {Login: []string{"acme"}, Ask: []string{"acme", "globex"}},
		"idle":    {},
		"admin":   {Logout: []string{"acme"}},
		"support": {Suspend: []string{"acme"}},
	}
	for name, tt := range map[string]struct {
		list senders.List
		of   schema.Type
		from string
		at   string
		says string // empty: let in
	}{
		"a login it may":   {list, schema.UserLogin, "shop", "acme", ""},
		"a request it may": {list, schema.UserRefreshDue, "shop", "globex", ""},
		"a login elsewhere": {
			list, schema.UserLogin, "shop", "globex", "senders.shop.login",
		},
		"a request elsewhere": {
			list, schema.UserRefreshDue, "shop", "initech", "senders.shop.ask",
		},
		"a logout it may": {list, schema.UserLogout, "admin", "acme", ""},
		"a logout of one who may log in": {
			list, schema.UserLogout, "shop", "acme", "senders.shop.logout",
		},
		"a login of one who may log out": {
			list, schema.UserLogin, "admin", "acme", "senders.admin.login",
		},
		"a suspension it may": {list, schema.UserSuspend, "support", "acme", ""},
		"a resumption it may": {list, schema.UserResume, "support", "acme", ""},
		"a suspension of one who may not": {
			list, schema.UserSuspend, "admin", "acme", "senders.admin.suspend",
		},
		"an operator's suspension": {list, schema.UserSuspend, senders.Operator, "acme", ""},
		"an operator's resumption": {list, schema.UserResume, senders.Operator, "acme", ""},
		"an operator's login": {
			list, schema.UserLogin, senders.Operator, "acme", "operator is not in",
		},
		"one without rights": {
			list, schema.UserRefreshDue, "idle", "acme", "senders.idle.ask",
		},
		"a stranger": {
			list, schema.UserRefreshDue, "crm", "acme", "crm is not in",
		},
		"nobody":                          {list, schema.UserLogin, "", "acme", "names no sender"},
		"a stranger, and nobody is named": {nil, schema.UserLogin, "crm", "acme", ""},
		"nobody, and nobody is named":     {nil, schema.UserRefreshDue, "", "acme", ""},
	} {
		err := tt.list.Refuse(schema.Event{
			Type:     tt.of,
			Provider: tt.at,
			User:     "u1",
			Sender:   tt.from,
		})
		bad, refused := errors.AsType[*schema.Malformed](err)
		switch {
		case tt.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tt.says != "" &&
			(!refused || bad.Reason != schema.RejectSender ||
				!strings.Contains(bad.Message, tt.says)):
			t.Errorf("%s: %v, want it refused with %q", name, err, tt.says)
		}
	}
}

func TestMayReadTokens(t *testing.T) {
	commands := senders.List{"shop": {Login: []string{"acme"}, Ask: []string{"acme"}}}
	some := senders.List{
		"shop":  {Read: []string{"acme"}},
		"audit": {Read: []string{"*"}},
		"crm":   {},
	}
	for name, c := range map[string]struct {
		list         senders.List
		sender, from string
		may          bool
	}{
		"no list":                    {nil, "", "acme", true},
		"a list of commands alone":   {commands, "shop", "acme", false},
		"what is named":              {some, "shop", "acme", true},
		"another provider":           {some, "shop", "globex", false},
		"all":                        {some, "audit", "globex", true},
		"one without the right":      {some, "crm", "acme", false},
		"a stranger":                 {some, "eve", "acme", false},
		"a request without a sender": {some, "", "acme", false},
	} {
		if got := c.list.MayReadTokens(c.sender, c.from); got != c.may {
			t.Errorf("%s: %v", name, got)
		}
	}
}
