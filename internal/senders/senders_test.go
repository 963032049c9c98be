package senders_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/schema"
)

func TestRefuse(t *testing.T) {
	list := senders.List{"shop": {Login: []string{"acme"}, Ask: []string{"acme", "globex"}}, "idle": {}}
	for name, tt := range map[string]struct {
		list senders.List
		of   schema.Type
		from string
		at   string
		says string // empty: let in
	}{
		"a login it may":                  {list, schema.UserLogin, "shop", "acme", ""},
		"a request it may":                {list, schema.UserRefreshDue, "shop", "globex", ""},
		"a login elsewhere":               {list, schema.UserLogin, "shop", "globex", "senders.shop.login"},
		"a request elsewhere":             {list, schema.UserRefreshDue, "shop", "initech", "senders.shop.ask"},
		"one without rights":              {list, schema.UserRefreshDue, "idle", "acme", "senders.idle.ask"},
		"a stranger":                      {list, schema.UserRefreshDue, "crm", "acme", "crm is not in"},
		"nobody":                          {list, schema.UserLogin, "", "acme", "names no sender"},
		"a stranger, and nobody is named": {nil, schema.UserLogin, "crm", "acme", ""},
		"nobody, and nobody is named":     {nil, schema.UserRefreshDue, "", "acme", ""},
	} {
		err := tt.list.Refuse(schema.Event{Type: tt.of, Provider: tt.at, User: "u1", Sender: tt.from})
		bad, refused := errors.AsType[*schema.Malformed](err)
		switch {
		case tt.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tt.says != "" && (!refused || bad.Reason != schema.RejectSender || !strings.Contains(bad.Message, tt.says)):
			t.Errorf("%s: %v, want it refused with %q", name, err, tt.says)
		}
	}
}
