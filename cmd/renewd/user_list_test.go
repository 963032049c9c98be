package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// Users are listed by their status, page by page, from either store, with the keyring or without.
func TestUsersAreListedByStatus(t *testing.T) {
	for name, env := range map[string][]string{
		"nats kv": nil, "postgres": {"RENEWD_DATABASE_URL=" + databases.URL(t)},
	} {
		t.Run(name, func(t *testing.T) {
			p := openedResources(t, env...)
			env := append(env,
				"RENEWD_NATS_URL="+p.Conf.NATSURL,
				"RENEWD_KEYS_FILE="+p.Conf.KeysPath(),
				"RENEWD_PROVIDER_ID=propelauth",
				"RENEWD_AUTH_URL=http://127.0.0.1:1",
				"RENEWD_CLIENT_ID=c",
				"RENEWD_ALLOW_HTTP_LOOPBACK=true")
			statuses := []grant.Status{
				grant.Live, grant.ReauthRequired, grant.Suspended, grant.SignedOff, grant.Forgotten,
				grant.Dormant,
			}
			want := map[grant.Status][]string{}
			for n := range 60 {
				g := grant.Grant{
					Key:     grant.Key{Provider: "propelauth", User: fmt.Sprintf("u|%02d", n)},
					Version: 7, Status: statuses[n%len(statuses)], LastError: "some",
				}
				switch g.Status {
				case grant.Live, grant.Dormant:
					g.Pair = grant.Pair{Access: secret.New("a"), Refresh: secret.New("canary-r")}
				case grant.ReauthRequired:
					g.Verdict = &grant.Verdict{Reason: schema.ReasonRevoked}
				case grant.Suspended:
					g.Hold = grant.Position{Sequence: 1, Time: time.Now()}
				}
				if _, err := p.Store.Save(t.Context(), g); err != nil {
					t.Fatal(err)
				}
				want[g.Status] = append(want[g.Status], g.User)
			}
			for status, users := range want {
				if status == grant.Forgotten {
					continue
				}
				if got := listedUsers(t, env, 60, string(status)); !slices.Equal(got, users) {
					t.Errorf("%s: %v, want %v", status, got, users)
				}
				if got := listedUsers(t, env, 5, string(status)); !slices.Equal(got, users) {
					t.Errorf("%s, five at a time: %v, want %v", status, got, users)
				}
			}
			listsAreForPeople(t, env)
			found := diagnosis(t, env, exitFailed)["grants"].Found
			const counted = "50 grants: 10 live, 10 must sign in again, 10 suspended, " +
				"10 dormant, 10 signed out"
			const untimed = "10 of 10 live ones have no timer"
			if !strings.HasPrefix(found, counted) || !strings.Contains(found, untimed) {
				t.Errorf("doctor: %s", found)
			}
		})
	}
}

// listedUsers lists the users of a status, this many at a time.
func listedUsers(t *testing.T, env []string, limit int, status string) (users []string) {
	t.Helper()
	reasons := map[string]string{
		"live": "some", "dormant": "some", "signed_out": "some",
		"reauth_required": "revoked", "suspended": "suspended",
	}
	for after := ""; ; {
		out := want(t, env, exitDone, "", "user", "list", "--status", status, "-o", "json",
			"--limit", fmt.Sprint(limit), "--after", after)
		shown, next := 0, ""
		for line := range strings.Lines(out) {
			var l struct {
				admin.ListedUser
				Next string `json:"next"`
			}
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				t.Fatal(err)
			}
			if next = l.Next; next != "" {
				continue
			}
			if string(l.Status) != status || l.Reason != reasons[status] || l.Version != 7 {
				t.Errorf("%s: %+v", status, l.ListedUser)
			}
			shown++
			users = append(users, l.User)
		}
		if shown > limit || next != "" && shown < limit {
			t.Errorf("%d users of %d", shown, limit)
		}
		if after = next; after == "" {
			slices.Sort(users)
			return users
		}
	}
}

// listsAreForPeople: a list is text too, needs no keyring, and says what is wrong with its flags.
func listsAreForPeople(t *testing.T, env []string) {
	t.Helper()
	all := want(t, env, exitDone, "reauth_required (revoked)", "user", "list")
	if n := strings.Count(all, "\n"); n != 50 || strings.Contains(all, "canary") {
		t.Errorf("%d lines: %s", n, all)
	}
	want(t, env, exitDone, "there are more: --after", "user", "list", "--limit", "3")
	if none := want(t, env, exitDone, "", "user", "list", "--provider", "other"); none != "" {
		t.Errorf("of another provider: %s", none)
	}
	keyless := append(env, "RENEWD_KEYS_FILE=/nowhere/keys.json")
	if got := want(t, keyless, exitDone, "", "user", "list"); got != all {
		t.Errorf("without the keyring: %s", got)
	}
	want(t, env, exitUsage, "did you mean live", "user", "list", "--status", "alive")
	want(t, env, exitUsage, "--limit", "user", "list", "--limit", "-1")
	want(t, env, exitUsage, "--after", "user", "list", "--after", "nonsense")
}
