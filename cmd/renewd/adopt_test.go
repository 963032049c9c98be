package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/source/sql"
	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/testkit/mariatest"
	"github.com/renewd/renewd/internal/testkit/smtptest"
)

// laravel is the app of docs/adopt-laravel.md, and the page itself.
type laravel struct {
	*testing.T
	page string
	env  []string // of the app
	dir  string   // of secrets and settings
	// where the secrets of the page are
	secrets *strings.Replacer
}

// adopts runs a test for the app on each kind of database.
func adopts(t *testing.T, test func(t *testing.T, address, dsn string)) {
	t.Run("postgresql", func(t *testing.T) {
		t.Parallel()
		address := databases.URL(t)
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		test(t, address, fmt.Sprintf("pgsql:host=%s;dbname=%s;user=renewd", u.Query().Get("host"),
			strings.TrimPrefix(u.Path, "/")))
	})
	t.Run("mariadb", func(t *testing.T) {
		t.Parallel()
		address := mariatest.Start(t)
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		test(t, address, "mysql:dbname=shop;unix_socket="+u.Query().Get("socket"))
	})
}

func newLaravel(t *testing.T, address, dsn, auth string) *laravel {
	t.Helper()
	modules, err := exec.Command(testkit.Program(t, "php"), "-m").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, module := range []string{"pdo_mysql", "pdo_pgsql"} {
		if !strings.Contains(strings.ToLower(string(modules)), module) {
			t.Fatalf("no PHP with %s: scripts/setup.sh installs it", module)
		}
	}
	page, err := os.ReadFile("../../docs/adopt-laravel.md")
	if err != nil {
		t.Fatal(err)
	}
	key := "base64:" + base64.StdEncoding.EncodeToString([]byte(strings.Repeat("k", 32)))
	l := &laravel{T: t, page: string(page), dir: t.TempDir(), env: append(os.Environ(),
		"DB_DSN="+dsn, "DB_USER=root", "APP_KEY="+key, "AUTH_URL="+auth, "CLIENT_ID="+devClient)}
	if strings.HasPrefix(dsn, "pgsql") {
		l.env = append(l.env, "DB_USER=renewd")
	}
	l.secrets = strings.NewReplacer("/run/secrets", l.dir)
	for name, text := range map[string]string{"app-database": address, "app-key": key} {
		if err := os.WriteFile(filepath.Join(l.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// app runs a command of the app.
func (l *laravel) app(stdin string, args ...string) string {
	l.Helper()
	cmd := exec.Command("php", append([]string{"../../docs/examples/adopt-laravel/app.php"},
		args...)...)
	cmd.Env, cmd.Stdin = l.env, strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		l.Fatalf("app %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// users are so many names, each with a front.
func users(front string, n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("%s%d", front, i))
	}
	return all
}

// settings writes the blocks of the page as a settings file.
func (l *laravel) settings(mode string, blocks ...string) (path string) {
	l.Helper()
	var text string
	for _, name := range blocks {
		block := regexp.MustCompile(`(?m)^    ` + name + `:\n(?:^     +.*\n)+`).FindString(l.page)
		if block == "" {
			l.Fatalf("the page has no %s", name)
		}
		text += block
	}
	text = regexp.MustCompile(`(?m)^    `).ReplaceAllString(text, "")
	text = strings.Replace(l.secrets.Replace(text), "mode: observe", "mode: "+mode, 1)
	path = filepath.Join(l.dir, "renewd.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		l.Fatal(err)
	}
	return path
}

// runs runs a command line of the page, which must be there, and returns what it printed.
func (l *laravel) runs(env []string, code int, line string, more ...string) string {
	l.Helper()
	if !strings.Contains(l.page, "\n    "+line+"\n") {
		l.Fatalf("the page has no line %s", line)
	}
	args := append(strings.Fields(l.secrets.Replace(line))[1:], more...)
	got, stdout, stderr := runIn(l.T, env, args...)
	if got != code {
		l.Fatalf("%s: exit code %d, want %d\n%s%s", line, got, code, stdout, stderr)
	}
	return stdout
}

// mailing adds a sink of mail to the settings, whose last block is the sinks.
func (l *laravel) mailing() *smtptest.Server {
	l.Helper()
	s := smtptest.Start(l.T, smtptest.None)
	f, err := os.OpenFile(filepath.Join(l.dir, "renewd.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		l.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "  mail: {kind: mail, smtp_url: smtp://%s, "+
		"from: app@example.com, operator: ops@example.com}\n", s.Addr()); err != nil {
		l.Fatal(err)
	}
	return s
}

// An app of the guide is adopted, command by command as the page has it. Its job ran before, and
// goes. Then the token in the row of each live session works, and each dead one has its flag. So it
// is with those who sign in, and whose sessions end, from then on, who get one mail each. The app
// never called renewd.
func TestAdoptLaravel(t *testing.T) {
	adopts(t, func(t *testing.T, address, dsn string) {
		standIn := startStandIn(t)
		l := newLaravel(t, address, dsn, "http://"+standIn.addr)
		l.app("", "migrate")
		const all, dead = 500, 20
		l.app("", append([]string{"signin"}, users("u", all)...)...)
		l.app("", append([]string{"signin"}, users("dead", dead)...)...)

		proposed := l.runs(nil, exitDone,
			"renewd adopt plan --database-url-file /run/secrets/app-database")
		for _, line := range strings.Split(strings.TrimSpace(proposed), "\n") {
			if line = strings.TrimSpace(line); !strings.HasPrefix(line, "#") &&
				!strings.Contains(l.secrets.Replace(l.page), l.secrets.Replace(line)) {
				t.Errorf("proposed, and not on the page: %s", line)
			}
		}
		env := []string{
			"RENEWD_NATS_URL=" + natsServer(t), "RENEWD_DATA_DIR=" + t.TempDir(),
			"RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
			"RENEWD_ALLOW_HTTP_LOOPBACK=true", "RENEWD_BY=jo", "RENEWD_HTTP_ADDR=127.0.0.1:0",
			"RENEWD_POLICY_CONFIRM_MIN=100ms", "RENEWD_POLICY_CONFIRM_MAX=200ms",
			"RENEWD_CONFIG=" + l.settings("observe", "sources"), "RENEWD_STREAMS_APPLY=true",
		}
		want(t, env, exitDone, "", "keys", "new")
		if lacks := l.runs(env, exitDone, "renewd adopt plan app"); lacks == "" {
			t.Error("the table lacks nothing")
		} else {
			l.app(lacks, "sql")
		}
		if lacks := l.runs(env, exitDone, "renewd adopt plan app"); lacks != "" {
			t.Errorf("then the table lacks %s", lacks)
		}
		_, stop := stoppable(t, env, `http=(\S+)`, "serve")
		var seen sql.Tally
		l.decode(l.runs(env, exitDone, "renewd adopt observe app", "-o", "json"), &seen)
		if seen.New != all+dead || seen.Unreadable() != 0 {
			t.Errorf("observed %+v", seen)
		}
		is(t, diagnosis(t, env, exitDone)["app tables"], admin.Warning, "only observed")
		want(t, env, exitUsage, "mode is observe", "adopt", "import", "app")

		// The job still runs.
		l.app("", "sweep")
		var v admin.Verdict
		l.decode(l.runs(env, exitFailed, "renewd adopt check app", "-o", "json"), &v)
		if v.Clean || v.Now.Foreign != all+dead {
			t.Errorf("while the job runs: %+v", v)
		}

		stop()
		env[9] = "RENEWD_CONFIG=" + l.settings("live", "sources", "sinks")
		l.app(l.runs(env, exitDone, "renewd sinks plan app"), "sql")
		for _, user := range users("dead", dead) {
			standIn.end(t, user)
		}
		mails := l.mailing()
		start(t, env)
		l.runs(env, exitDone, "renewd adopt import app --dry-run")
		var p sql.Progress
		l.decode(l.runs(env, exitDone, "renewd adopt import app", "-o", "json"), &p)
		// The watch may take some of the rows first.
		if p.Tally.Taken+p.Tally.Known != all+dead {
			t.Errorf("imported %+v", p.Tally)
		}
		l.settles("the live sessions", fmt.Sprintf(`"works":%d,`, all))
		l.settles("the dead ones", fmt.Sprintf(`"refused":0,"must_sign_in":%d`, dead))

		const again, ended = 5, 10
		l.app("", append([]string{"signin"}, users("dead", again)...)...)
		for _, user := range users("u", ended) {
			standIn.end(t, user)
			want(t, env, exitDone, "", "publish", "refresh-due", "--user", user, "--want", "tokens")
		}
		l.settles("those who came and went",
			fmt.Sprintf(`"works":%d,"refused":0,"must_sign_in":%d`, all+again-ended,
				dead-again+ended))
		told := func() bool { return len(mails.Mails()) >= ended }
		testkit.Eventually(t, "a mail for each end", told)
		to := map[string]int{}
		for _, m := range mails.Mails() {
			to[m.Header.Get("Message-Id")]++
		}
		if len(to) != ended || len(mails.Mails()) != ended {
			t.Errorf("%d mails, %d of them different, want %d", len(mails.Mails()), len(to), ended)
		}
	})
}

func (l *laravel) decode(text string, into any) {
	l.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		l.Fatalf("%v: %s", err, text)
	}
}

// settles waits until the app finds this of its users.
func (l *laravel) settles(what, want string) {
	l.Helper()
	found := ""
	defer func() {
		if l.Failed() {
			l.Logf("last found: %s", found)
		}
	}()
	testkit.Eventually(l.T, what+": "+want, func() bool {
		found = l.app("", "check")
		return strings.Contains(found, want)
	})
}
