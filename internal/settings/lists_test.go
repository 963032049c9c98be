package settings

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/schema"
)

const acme = "providers:\n  - id: acme\n    preset: oidc\n" +
	"    auth_url: https://id.acme.example\n    client_id: c1\n"

// What only a file can hold: lists and mappings. They are read, printed, and read again.
func TestListsAndMappings(t *testing.T) {
	t.Parallel()
	key := write(t, "key", "hunter2-in-a-file\n")
	c, err := Load(write(t, "renewd.yaml", acme+`
    scope: openid offline_access
    subject: id
    proxy_url: http://joe:hunter2@proxy:3128
    client_secret: hunter2
    client_secret_next: hunter2-next
    params:
      audience: https://api.example
      resource: ["https://a", "https://b"]
    headers: {X-Gateway: hunter2-gateway, X-Key_file: `+key+`}
    rules:
      - {status: 400, code: invalid_request, body: already been claimed,
         class: permanent, reason: revoked}
      - {status: 400, empty: true, class: config}
    profile: {roles: /realm_access/roles}
    volatile: [last_seen, "login count"]
`), nil)
	if err != nil {
		t.Fatal(err)
	}
	got := c.Providers[0].ClientConfig()
	if got.Headers["X-Key"].Reveal() != "hunter2-in-a-file" ||
		got.Headers["X-Gateway"].Reveal() != "hunter2-gateway" || len(got.Headers) != 2 {
		t.Errorf("%d headers", len(got.Headers))
	}
	if got.Scope != "openid offline_access" || got.Subject != "id" ||
		got.ProxyURL.Reveal() != "http://joe:hunter2@proxy:3128" ||
		got.NextSecret.Reveal() != "hunter2-next" {
		t.Errorf("%+v", got)
	}
	params := "audience=https%3A%2F%2Fapi.example&" +
		"resource=https%3A%2F%2Fa&resource=https%3A%2F%2Fb"
	if got.Params.Encode() != params {
		t.Errorf("%v", got.Params)
	}
	want := []idp.Rule{
		{
			Status: 400,
			Code:   "invalid_request",
			Body:   "already been claimed",
			Class:  grant.Permanent,
			Reason: "revoked",
		},
		{Status: 400, Empty: true, Class: grant.Config},
	}
	if !reflect.DeepEqual(got.Rules, want) {
		t.Errorf("%+v", got.Rules)
	}

	if got.Profile["roles"] != "/realm_access/roles" ||
		!slices.Equal(c.Providers[0].GrantPolicy().Volatile, []string{"last_seen", "login count"}) {
		t.Errorf("%v, %v", got.Profile, c.Providers[0].Volatile)
	}

	var out bytes.Buffer
	c.Print(&out)
	if strings.Contains(out.String(), "hunter2") ||
		!strings.Contains(out.String(), "http://joe:[redacted]@proxy:3128") ||
		!strings.Contains(out.String(), "renewd.yaml:12") {
		t.Errorf("%s", out.String())
	}
	text := strings.ReplaceAll(strings.ReplaceAll(out.String(), `client_secret: "[redacted]"`,
		"client_secret: other"), "[redacted]", "0123456789abcdef")
	again, err := Load(write(t, "again.yaml", text), nil)
	if err != nil {
		t.Fatalf("what is printed cannot be read: %v\n%s", err, text)
	}
	p := again.Providers[0]
	if !reflect.DeepEqual(p.Params, c.Providers[0].Params) ||
		!reflect.DeepEqual(p.Rules, c.Providers[0].Rules) ||
		!reflect.DeepEqual(p.GrantPolicy(), c.Providers[0].GrantPolicy()) ||
		!reflect.DeepEqual(p.Profile, c.Providers[0].Profile) || len(p.Headers) != 2 {
		t.Errorf("what is printed says something else:\n%s", out.String())
	}
}

// A command is a list, or words, in the file and in the environment, and its arguments are not
// shown.
func TestCommands(t *testing.T) {
	t.Parallel()
	want := Command{"age", "-d", "-i", "hunter2.key"}
	for _, c := range []struct {
		file string
		env  []string
	}{
		{"keys_unwrap: [age, -d, -i, hunter2.key]\n", nil},
		{"keys_unwrap: age -d -i hunter2.key\n", nil},
		{"keys_unwrap: [other]\n", []string{"RENEWD_KEYS_UNWRAP=age -d  -i hunter2.key"}},
		{"", []string{`RENEWD_KEYS_UNWRAP=["age", "-d", "-i", "hunter2.key"]`}},
	} {
		conf, err := Load(write(t, "renewd.yaml", c.file), c.env)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(conf.KeysUnwrap, want) || conf.KeysWrap != nil {
			t.Errorf("%q, %q: got %q", c.file, c.env, conf.KeysUnwrap)
		}
		var out bytes.Buffer
		conf.Print(&out)
		text := out.String()
		if !strings.Contains(text, `keys_unwrap: ["age", "[redacted]"]`) ||
			strings.Contains(text, "hunter2") {
			t.Error(text)
		}
	}
	for file, says := range map[string]string{
		"keys_unwrap: {a: b}\n":            "keys_unwrap: want one value, or a list",
		"keys_unwrap: [\"\", hunter2]\n":   "the name of a program",
		"keys_wrap: cat\n":                 "needs keys_unwrap",
		"keys_unwrap: '[\"hunter2\", 5'\n": "a JSON list",
	} {
		_, err := Load(write(t, "renewd.yaml", file), nil)
		if err == nil || !strings.Contains(err.Error(), says) ||
			strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestListsAndMappingsNameTheMistake(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		file string
		want []string
	}{
		"no mapping": {"    params: audience\n",
			[]string{"file.yaml:6", "providers[0].params", "a mapping"}},
		"no text": {"    params: {audience: {a: b}}\n",
			[]string{"providers[0].params.audience", "one value, or a list"}},
		"set twice": {"    params: {a: b, a: c}\n",
			[]string{"providers[0].params.a", "set twice"}},
		"reserved": {"    params: {grant_type: x}\n",
			[]string{"providers[0].", "params.grant_type"}},
		"header twice": {"    headers: {A: b, A_file: /nowhere}\n",
			[]string{"providers[0].headers.A", "_file"}},
		"header list": {"    headers: {A: [b]}\n",
			[]string{"providers[0].headers.A", "want one value"}},
		"no such file": {"    headers: {A_file: /nowhere/key}\n",
			[]string{"providers[0].headers.A_file", "/nowhere/key"}},
		"bad header": {"    headers: {Host: hunter2}\n",
			[]string{"providers[0].", "headers.Host"}},
		"no list": {"    rules: {status: 400}\n", []string{"providers[0].rules", "a list"}},
		"typo in a rule": {"    rules:\n      - {statsu: 400}\n",
			[]string{"file.yaml:7", "providers[0].rules[0].statsu", "status?"}},
		"class": {"    rules: [{code: x, class: fatal}]\n",
			[]string{"providers[0].rules[0].class", "permanent"}},
		"empty 400": {"    rules: [{status: 400, empty: true, class: " +
			"permanent, reason: revoked}]\n",
			[]string{"rules[0]", "code: missing"}},
		"pointer": {"    profile: {roles: realm_access.roles}\n",
			[]string{"providers[0].", "profile.roles", "JSON pointer"}},
		"volatile": {"    volatile: {a: b}\n", []string{"providers[0].volatile", "a list"}},
		"userinfo": {"    userinfo: no\n", []string{"providers[0].userinfo", "none"}},
		"two userinfos": {"    userinfo: none\n    userinfo_url: https://x\n",
			[]string{"providers[0].", "userinfo: none"}},
		"proxy": {"    proxy_url: socks5://u:hunter2@x\n",
			[]string{"providers[0].", "proxy_url"}},
		"next secret": {"    client_secret_next: hunter2\n",
			[]string{"providers[0].", "client_secret_next"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Load(write(t, "file.yaml", acme+c.file), nil)
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) ||
					strings.Contains(err.Error(), "hunter2") {
					t.Errorf("%q is not in, or a secret is: %v", want, err)
				}
			}
		})
	}
}

// Who may publish what is read, printed and read again.
func TestSenders(t *testing.T) {
	t.Parallel()
	c, err := Load(write(t, "renewd.yaml",
		acme+"senders:\n  shop: {login: acme, ask: [acme]}\n"+
			"  crm: {ask: [acme], read: [acme], rate: 2.5, burst: 7}\n"+
			"  audit: {read: \"*\"}\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	c.Print(&out)
	again, err := Load(write(t, "again.yaml", out.String()), nil)
	if err != nil {
		t.Fatalf("what is printed cannot be read: %v\n%s", err, out.String())
	}
	for name, conf := range map[string]*Settings{"read": c, "read again": again} {
		for of, may := range map[schema.Address]bool{
			{Type: schema.UserLogin, Sender: "shop"}:     true,
			{Type: schema.UserRefreshDue, Sender: "crm"}: true,
			{Type: schema.UserLogin, Sender: "crm"}:      false,
			{Type: schema.UserRefreshDue}:                false,
		} {
			err := conf.SenderRights().Refuse(schema.Event{
				Type:     of.Type,
				Provider: "acme",
				Sender:   of.Sender,
			})
			if (err == nil) != may {
				t.Errorf("%s: %+v: %v", name, of, err)
			}
		}
		rights := conf.SenderRights()
		crm := rights["crm"]
		if crm.Rate != 2.5 || crm.Burst != 7 || !rights.MayRead("crm", "acme") ||
			rights.MayRead("shop", "acme") || !rights.MayReadAll("audit") {
			t.Errorf("%s: %+v", name, rights)
		}
	}
}

func TestSendersNameTheMistake(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		file string
		want []string
	}{
		"no number": {"senders: {shop: {rate: much}}\n",
			[]string{"senders.shop.rate", "a number"}},
		"no reader": {"senders: {shop: {read: [acm]}}\n", []string{"senders.shop.read", "acme?"}},
		"burst alone": {"senders: {shop: {burst: 3}}\n",
			[]string{"senders.shop.burst", "needs rate"}},
		"no mapping": {"senders: [shop]\n", []string{"file.yaml:6", "senders", "a mapping"}},
		"typo": {"senders: {shop: {logn: [acme]}}\n",
			[]string{"senders.shop.logn", "login?"}},
		"no provider": {"senders: {shop: {ask: [acm]}}\n",
			[]string{"senders.shop.ask", `"acm"`, "acme?"}},
		"no name":   {"senders: {Shop: {ask: [acme]}}\n", []string{"senders.Shop", "a-z"}},
		"no rights": {"senders: {shop: acme}\n", []string{"senders.shop", "a mapping"}},
		"set twice": {"senders: {shop: {ask: acme}, shop: {login: acme}}\n",
			[]string{"senders.shop", "set twice"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Load(write(t, "file.yaml", acme+c.file), nil)
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
		})
	}
}

func TestProviderScalarsFromTheEnvironment(t *testing.T) {
	t.Parallel()
	c, err := Load("", []string{
		"RENEWD_AUTH_URL=https://a.example", "RENEWD_CLIENT_ID=c", "RENEWD_CLIENT_SECRET=s",
		"RENEWD_CLIENT_SECRET_NEXT_FILE=" + write(t, "next", "n\n"),
		"RENEWD_PROVIDER_SCOPE=openid", "RENEWD_PROVIDER_SUBJECT=id",
		"RENEWD_PROVIDER_PROXY_URL=http://p:1",
		"RENEWD_PROVIDER_USERINFO=none",
	})
	if err != nil {
		t.Fatal(err)
	}
	p := c.Providers[0]
	if p.Scope != "openid" || p.Subject != "id" || p.ProxyURL.Reveal() != "http://p:1" ||
		p.ClientSecretNext.Reveal() != "n" || !p.ClientConfig().NoUserInfo {
		t.Errorf("%+v", p)
	}
}
