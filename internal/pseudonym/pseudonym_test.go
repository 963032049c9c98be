package pseudonym_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/pseudonym"
	"github.com/renewd/renewd/schema"
)

var key = []byte("a key of 32 bytes, for the tests")

func names(t testing.TB) *pseudonym.Names {
	t.Helper()
	n := pseudonym.New(
		[]string{"renewal.due", "renewal.timer", "$KV.renewd_grants", "*.*"},
		[]string{"corp", "corp-eu"},
	)
	n.Use(key)
	return n
}

// ids are of all kinds that providers give.
func ids() []string {
	return []string{
		"jane@example.com", "31c41c16-c281-44ae-9602-8a047e3bf33d", "auth0|abc", "a", "1",
		"Jane Doe", "jané", `ja"ne`, `ja\ne`, "jane.", "-jane", "~jane",
		"jane)", "a/b", "corp/jane", "user.login.corp.jane", "urn:example:jane", "a: b",
		"u_k3j5h2a7c4xq", "jane…", "/", ".", "a,b", "jane=", "+49301234",
	}
}

func told(t *testing.T, user, text, want string) {
	t.Helper()
	if got := names(t).Text(text); got != want {
		t.Errorf("%q: %q becomes %q, want %q", user, text, got, want)
	}
}

// An id is replaced wherever a key or a subject stands in a text, and the text around it stays.
func TestIDsAreReplaced(t *testing.T) {
	for _, user := range ids() {
		hash := pseudonym.Hash(key, user)
		for _, around := range [][2]string{
			{"", ""},
			{"save grant ", ": connection refused"},
			{"[", "]"},
			{"of ", ", which"},
			{"see ", "."},
			{"(", ")"},
			{`"`, `"`},
		} {
			for _, provider := range []string{"corp", "corp-eu"} {
				text := grant.Key{Provider: provider, User: user}.String()
				told(t, user, around[0]+text+around[1], around[0]+provider+"/"+hash+around[1])
			}
			for _, front := range []string{
				"user.synced", "message.rejected", "renewal.due", "acme.user.login",
				"$KV.renewd_grants", "*.*",
			} {
				subject := front + ".corp." + schema.EscapeUser(user)
				told(t, user, around[0]+subject+around[1], around[0]+front+".corp."+hash+around[1])
			}
			told(
				t,
				user,
				around[0]+"renewal.due.corp."+schema.EscapeUser(user)+".asked"+around[1],
				around[0]+"renewal.due.corp."+hash+".asked"+around[1],
			)
		}
	}
}

// A grant may be of a provider that has left the settings.
func TestIDsOfForgottenProvidersAreReplaced(t *testing.T) {
	for _, user := range ids() {
		k, hash := grant.Key{Provider: "gone", User: user}, pseudonym.Hash(key, user)
		for _, format := range []string{
			"save grant %s: timeout", "look whether %s waits: timeout", "repair 3: arm %s: full",
			"sign in of %s",
		} {
			told(t, user, fmt.Sprintf(format, k), fmt.Sprintf(format, "gone/"+hash))
		}
	}
	for _, text := range []string{
		"read deploy/renewd.yaml", "want application/json", "GET https://a.example/users/jane: 503",
	} {
		told(t, "", text, text)
	}
}

// The words before a grant in the errors of renewd's packages are the ones that Names know.
func TestErrorsNameGrantsAfterKnownWords(t *testing.T) {
	naming := regexp.MustCompile(`Errorf\("([^"%]*)%[sv][^"]*", (?:k|[a-zA-Z.]+\.Key)[,)]`)
	found := 0
	for _, dir := range []string{"..", "../../consumers"} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") ||
				strings.HasSuffix(path, "_test.go") {
				return err
			}
			source, err := os.ReadFile(path)
			for _, match := range naming.FindAllSubmatch(source, -1) {
				found++
				text := string(match[1]) + grant.Key{Provider: "gone", User: "jane"}.String()
				if strings.Contains(names(t).Text(text), "jane") {
					t.Errorf("%s: %q: the id stays in logs with user_ids hashed: write one of "+
						"the known words before it", path, text)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 20 {
		t.Errorf("found %d errors that name a grant: does this test still see them?", found)
	}
}

// What is malformed is replaced too.
func TestMalformedSubjectsAreReplaced(t *testing.T) {
	for _, subject := range []string{
		"user.login.corp.jane@example.com", "user.login.jane@example.com", "user.login.Corp.jane",
		"user.refresh_due.corp.jane,doe@example.com", "user.login.corp.=6Aane",
		"user.login.corp.jane.asked.", "user.login.corp.x.jane",
	} {
		_, err := schema.Subjects{}.Parse(subject)
		if err == nil {
			t.Fatalf("%s is well-formed", subject)
		}
		for _, text := range []string{
			subject, err.Error(), "subject " + subject + ": " + err.Error(),
		} {
			if got := names(t).Text(text); strings.Contains(got, "jane") &&
				!strings.Contains(got, "(jane@example.com is") ||
				strings.Contains(got, "doe") ||
				strings.Contains(got, "6Aane") {
				t.Errorf("%q becomes %q", text, got)
			}
		}
	}
	for _, user := range []string{"jane\n", "jane\xff", strings.Repeat("jane", 100)} {
		if err := schema.CheckUser(user); strings.Contains(names(t).Text(err.Error()), "jane") {
			t.Errorf("%q", names(t).Text(err.Error()))
		}
	}
}

func TestOtherTextsStay(t *testing.T) {
	for _, text := range []string{
		"", "user.login", "process user.synced", "user.synced.*.*",
		"want user.login.<provider>.<user> with", "user.login.>", "renewal.due.corp.*",
		"provider.degraded.corp", "application/json",
		"https://auth.example.com/oauth", "/var/lib/renewd/keys.json", "corp", "3/4", "user u17",
	} {
		told(t, "", text, text)
	}
	var none *pseudonym.Names
	if got := none.Text("corp/jane"); got != "corp/jane" || none.Of("jane") != "jane" {
		t.Errorf("without names: %q", got)
	}
	early := pseudonym.New(nil, []string{"corp"})
	if got := early.Text("corp/jane"); got != "corp/"+pseudonym.Unknown {
		t.Errorf("before there is a key: %q", got)
	}
}

// Wherever a log line has the id, it does not come out. The provider's own words about the user are
// no exception.
func TestLogLinesHaveNoIDs(t *testing.T) {
	k := grant.Key{Provider: "gone", User: "jane@example.com"} // a provider that left the settings
	for format, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var out bytes.Buffer
		log := names(t).Logger(slog.New(handler(&out)))
		log.Warn(
			"renewal of corp/jane@example.com put off",
			"grant",
			k,
			"error",
			fmt.Errorf(
				"save grant %s: %w",
				grant.Key{Provider: "corp", User: k.User},
				errors.New("refused"),
			),
		)
		log.With("grant", k).
			WithGroup("g").
			Info("it says", "detail", "user jane@example.com is locked",
				slog.Group("in", "subject", "user.login.corp.jane=40example=2Ecom"))
		log.Info("names", "all", []grant.Key{{Provider: "corp", User: k.User}})
		hash := pseudonym.Hash(key, k.User)
		if strings.Contains(out.String(), "jane") || strings.Count(out.String(), hash) != 7 {
			t.Errorf("%s: want %s seven times and no id:\n%s", format, hash, out.String())
		}
	}
}

// No id gets through, whatever it is.
func FuzzIDs(f *testing.F) {
	for _, id := range ids() {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, user string) {
		if schema.CheckUser(user) != nil {
			return
		}
		n, hash := names(t), pseudonym.Hash(key, user)
		for text, want := range map[string]string{
			"a " + grant.Key{Provider: "corp", User: user}.String() +
				": b": "a corp/" + hash + ": b",
			"a user.login.corp." + schema.EscapeUser(user) +
				": b": "a user.login.corp." + hash + ": b",
		} {
			if got := n.Text(text); got != want {
				t.Fatalf("%q becomes %q, want %q", text, got, want)
			}
		}
	})
}
