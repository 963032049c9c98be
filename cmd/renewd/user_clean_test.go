package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

const day = 24 * time.Hour

// Users whose session ended are shown by cause and age, and erased only with --yes. Users who live,
// or have come back, are never touched.
func TestEndedUsersAreCleanedUp(t *testing.T) {
	p := openedResources(t)
	now := p.Engine.Now()
	key := func(user string) grant.Key { return grant.Key{Provider: "propelauth", User: user} }
	save := func(g grant.Grant) {
		t.Helper()
		if _, err := p.Store.Save(t.Context(), g); err != nil {
			t.Fatal(err)
		}
	}
	dead := func(user, reason string, ago time.Duration) grant.Grant {
		return grant.Grant{
			Key: key(user), Version: 7, Status: grant.ReauthRequired,
			Verdict: &grant.Verdict{Reason: reason, At: now.Add(-ago)},
		}
	}
	pair := grant.Pair{Access: secret.New("a"), Refresh: secret.New("r")}
	save(dead("revoked-long-ago", schema.ReasonRevoked, 100*day))
	save(dead("expired-long-ago", schema.ReasonExpired, 100*day))
	save(dead("revoked-lately", schema.ReasonRevoked, day))
	save(grant.Grant{
		Key: key("signed-out"), Version: 7, Status: grant.SignedOff,
		Login: grant.Position{Sequence: 1, Time: now.Add(-100 * day)},
	})
	back := dead("on-the-way-back", schema.ReasonRevoked, 100*day)
	back.Candidate = &grant.Candidate{Pair: pair}
	save(back)
	save(grant.Grant{Key: key("live"), Version: 7, Status: grant.Live, Pair: pair})
	env := []string{
		"RENEWD_NATS_URL=" + p.Conf.NATSURL, "RENEWD_KEYS_FILE=" + p.Conf.KeysPath(),
		"RENEWD_PROVIDER_ID=propelauth", "RENEWD_AUTH_URL=http://127.0.0.1:1",
		"RENEWD_CLIENT_ID=c", "RENEWD_ALLOW_HTTP_LOOPBACK=true",
	}
	found := func(args ...string) string {
		t.Helper()
		code, out, errs := runIn(t, env, append([]string{"user", "clean"}, args...)...)
		if code != exitDone {
			t.Fatalf("%v: %d: %s", args, code, errs)
		}
		var users []string
		for line := range strings.Lines(out) {
			user, _, _ := strings.Cut(strings.TrimPrefix(line, "propelauth/"), " ")
			users = append(users, user)
		}
		slices.Sort(users)
		return strings.Join(users, ",")
	}
	for args, want := range map[string]string{
		"":                                      "expired-long-ago,revoked-long-ago,signed-out",
		"--ended 0s --reason revoked":           "revoked-lately,revoked-long-ago",
		"--reason signed_out":                   "signed-out",
		"--reason expired --reason revoked":     "expired-long-ago,revoked-long-ago",
		"--ended 200d":                          "",
		"--provider other":                      "",
		"--limit 1 --ended 0s --reason expired": "expired-long-ago",
	} {
		if got := found(strings.Fields(args)...); got != want {
			t.Errorf("clean %s shows %s, want %s", args, got, want)
		}
	}
	want(t, env, exitDone, "3 users: 1 expired, 1 revoked, 1 signed_out; nothing is erased",
		"user", "clean")

	// Meanwhile one signs in, and another's record changes.
	var chosen []admin.Ended
	err := admin.Cleanup{}.Find(t.Context(), p, func(e admin.Ended) error {
		chosen = append(chosen, e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	pub, err := publishers.New(p.NC, publishers.WithSource("/app"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pub.Login(t.Context(), "propelauth", "expired-long-ago", publishers.Tokens{
		AccessToken: "a", RefreshToken: "r", ExpiresIn: time.Hour,
	}); err != nil {
		t.Fatal(err)
	}
	g, err := p.Store.Load(t.Context(), key("revoked-lately"))
	if err != nil {
		t.Fatal(err)
	}
	g.Version++
	save(g)
	for _, e := range chosen {
		if e.User != "expired-long-ago" && e.User != "revoked-lately" {
			continue
		}
		if erased, err := admin.EraseEnded(t.Context(), p, e, "jo"); erased || err != nil {
			t.Errorf("%s: erased %t, %v", e.User, erased, err)
		}
	}

	want(t, env, exitDone, "erased 2; 1 kept", "user", "clean", "--yes", "--by", "jo")
	for user, gone := range map[string]bool{
		"revoked-long-ago": true, "signed-out": true, "expired-long-ago": false,
		"revoked-lately": false, "on-the-way-back": false, "live": false,
	} {
		g, err := p.Store.Load(t.Context(), key(user))
		if err != nil || (g.Status == grant.Forgotten) != gone {
			t.Errorf("%s is %s, %v", user, g.Status, err)
		}
	}
}
