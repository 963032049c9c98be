package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/testkit/proc"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// before is the version that was deployed first. What it stored must stay readable forever.
const before = "c8be181ff8dc240f0e8edc7260190a718ce2ae9e"

// old builds renewd of version before from the repository's history, once, and returns where the
// binary is. That version requires the same modules as today's, so it needs nothing from the
// network that today's does not.
var old = sync.OnceValues(func() (string, error) {
	path, err := filepath.Abs(filepath.Join(root, ".cache", "e2e", "renewd-"+before[:7]))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil // it never changes
	}
	look := exec.Command("git", "cat-file", "-e", before+"^{commit}")
	if look.Dir = root; look.Run() != nil {
		return "", errNoHistory
	}
	source, err := os.MkdirTemp("", "renewd-source-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(source)
	archive := filepath.Join(source, "source.tar")
	pack := exec.Command("git", "archive", "--output="+archive, before)
	pack.Dir = root
	unpack := exec.Command("tar", "-x", "-C", source, "-f", archive)
	build := exec.Command("go", "build", "-trimpath", "-o", path, "./cmd/renewd")
	build.Dir, build.Env = source, append(os.Environ(), "CGO_ENABLED=0")
	for _, cmd := range []*exec.Cmd{pack, unpack, build} {
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w\n%s", cmd, err, out)
		}
	}
	return path, nil
})

// errNoHistory means that this is a source archive, or a clone without the history.
var errNoHistory = errors.New("the repository's history does not have commit " + before)

// upgrade is one installation that passes from one version to the other: users at a strict
// provider, one NATS server, one store, one keyring.
type upgrade struct {
	t        *testing.T
	provider *standin.Server
	embedded bool // NATS runs inside the worker
	folder   string
	environ  []string
	own      map[string][]string // settings that only one of the binaries knows
	nc       *nats.Conn
	app      *publishers.Publisher
	users    []string

	mu        sync.Mutex
	presented map[string]int // refresh tokens, by session and generation
}

func newUpgrade(t *testing.T, embedded bool, database string) *upgrade {
	t.Helper()
	u := &upgrade{t: t, embedded: embedded, folder: t.TempDir(), presented: map[string]int{}}
	u.provider = standin.New(standin.Options{Lifetime: 4 * time.Second, Observe: u.observe})
	web := httptest.NewServer(u.provider)
	t.Cleanup(web.Close)
	u.environ = []string{
		"RENEWD_DATABASE_URL=" + database, "RENEWD_DATA_DIR=" + u.folder,
		"RENEWD_AUTH_URL=" + web.URL,
		"RENEWD_CLIENT_ID=renewd-test", "RENEWD_ALLOW_HTTP_LOOPBACK=true",
		"RENEWD_POLICY_FLOOR=1s", "RENEWD_LOG_LEVEL=warn",
	}
	var address string
	if embedded {
		listen := proc.FreeAddrFor(t)
		address = "nats://" + listen
		u.environ = append(u.environ, "RENEWD_NATS_LISTEN="+listen)
	} else {
		address = u.startNATS(t.TempDir()).ClientURL()
		u.environ = append(u.environ, "RENEWD_NATS_URL="+address)
	}
	u.nc = must(nats.Connect(address, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(50*time.Millisecond)))(t)
	t.Cleanup(u.nc.Close)
	u.app = must(publishers.New(u.nc, publishers.WithSource("/app")))(t)
	return u
}

// startNATS starts a NATS server on a folder.
func (u *upgrade) startNATS(folder string) *natsd.Server {
	u.t.Helper()
	config := natsd.Config{StoreDir: folder, Listen: "127.0.0.1:0"}
	ns := must(natsd.Start(u.t.Context(), config))(u.t)
	u.t.Cleanup(ns.Shutdown)
	return ns
}

func (u *upgrade) observe(p standin.Presentation) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.presented[fmt.Sprintf("%s, session %d, token %d", p.User, p.Session, p.Generation)]++
}

// command is a command of one version, on the installation.
func (u *upgrade) command(binary string, args ...string) *exec.Cmd {
	u.t.Helper()
	cmd := command(u.t, slices.Concat(u.environ, u.own[binary]), args...)
	cmd.Path, cmd.Args[0] = binary, binary
	return cmd
}

// run runs a command, which must succeed, and returns the command's output.
func (u *upgrade) run(binary string, args ...string) string {
	u.t.Helper()
	cmd := u.command(binary, args...)
	cmd.Stdout = nil
	out, err := cmd.Output()
	if err != nil {
		u.t.Fatalf("renewd %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// serve starts a worker and waits until it is ready.
func (u *upgrade) serve(binary string) *daemon {
	u.t.Helper()
	d := &daemon{http: proc.FreeAddrFor(u.t)}
	cmd := u.command(binary, "serve")
	cmd.Env = append(cmd.Env, "RENEWD_HTTP_ADDR="+d.http)
	d.process = start(u.t, cmd)
	eventually(u.t, startTimeout, d.ready(u.t.Context()))
	eventually(u.t, startTimeout, func() error {
		if !u.nc.IsConnected() {
			return errors.New("the app has no connection to NATS")
		}
		return nil
	})
	return d
}

// outcomes are all that was published so far.
func (u *upgrade) outcomes() (all []schema.Event, err error) {
	for e, err := range consumers.Replay(u.t.Context(), u.nc, consumers.Query{}) {
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

// answered waits until each command is answered by user.synced, once.
func (u *upgrade) answered(what string, ids []string) {
	u.t.Helper()
	eventually(u.t, 30*time.Second, func() error {
		all, err := u.outcomes()
		if err != nil {
			return err
		}
		answers := map[string][]schema.Type{}
		for _, e := range all {
			var d struct{ Cause schema.Cause }
			if err := json.Unmarshal(e.Data, &d); err != nil {
				return hopeless{err}
			}
			answers[d.Cause.ID] = append(answers[d.Cause.ID], e.Type)
		}
		for _, id := range ids {
			if types := answers[id]; len(types) != 1 || types[0] != schema.UserSynced {
				return fmt.Errorf("%s: %s is answered by %q", what, id, types)
			}
		}
		return nil
	})
}

// signIn signs new users in.
func (u *upgrade) signIn(prefix string, n int) {
	u.t.Helper()
	var ids []string
	for i := range n {
		name := fmt.Sprintf("%s-%02d", prefix, i)
		u.users = append(u.users, name)
		ids = append(ids, u.login(name))
	}
	u.answered("logins", ids)
}

func (u *upgrade) login(name string) string {
	u.t.Helper()
	tokens := u.provider.Login(name)
	r := must(u.app.Login(u.t.Context(), "propelauth", name, publishers.Tokens{
		AccessToken: tokens.Access, RefreshToken: tokens.Refresh,
		ExpiresIn: time.Duration(tokens.ExpiresIn) * time.Second,
	}))(u.t)
	return r.ID
}

// ask asks for fresh tokens of users.
func (u *upgrade) ask(users []string) {
	u.t.Helper()
	u.answered("requests", u.publish(users))
}

// publish publishes a request for fresh tokens of each user.
func (u *upgrade) publish(users []string) (ids []string) {
	u.t.Helper()
	fresh := schema.RefreshDue{Want: schema.WantTokens}
	for _, name := range users {
		r := must(u.app.RefreshDue(u.t.Context(), "propelauth", name, fresh))(u.t)
		ids = append(ids, r.ID)
	}
	return ids
}

// renewed waits until each user was renewed n times more.
func (u *upgrade) renewed(n int) {
	u.t.Helper()
	had := map[string]int{}
	for _, name := range u.users {
		had[name] = u.provider.Renewals(name)
	}
	eventually(u.t, time.Minute, func() error {
		for _, name := range u.users {
			if u.provider.Renewals(name) < had[name]+n {
				return fmt.Errorf("%s was not renewed %d times more", name, n)
			}
		}
		return nil
	})
}

// check compares what the provider, the services and the store saw with what must be.
func (u *upgrade) check(phase, binary string) {
	u.t.Helper()
	s := u.provider.Stats()
	if s.Reuse+s.Refused+s.Replays+s.RevokedFamilies != 0 || s.MaxInFlight > 1 {
		u.t.Errorf("%s: the provider saw %+v", phase, s)
	}
	u.mu.Lock()
	for token, n := range u.presented {
		if n > 1 {
			u.t.Errorf("%s: the refresh token of %s was presented %d times", phase, token, n)
		}
	}
	u.mu.Unlock()
	harm := []schema.Type{
		schema.UserReauthRequired, schema.UserRefreshFailed, schema.MessageRejected,
		schema.ProviderDegraded,
	}
	for _, e := range must(u.outcomes())(u.t) {
		if slices.Contains(harm, e.Type) {
			u.t.Errorf("%s: %s of %s: %s", phase, e.Type, e.User, e.Data)
		}
	}
	// A walk over NATS KV counts a grant twice that is written meanwhile.
	testkit.Eventually(u.t, fmt.Sprintf("%s: %d live grants", phase, len(u.users)), func() bool {
		var found struct{ Grants, Live, Superseded, Unreadable int }
		out := u.run(binary, "store", "check", "-o", "json")
		if err := json.Unmarshal([]byte(out), &found); err != nil {
			u.t.Fatal(err)
		}
		if found.Superseded+found.Unreadable > 0 {
			u.t.Fatalf("%s: %s", phase, out)
		}
		return found.Live == len(u.users)
	})
}

// The page says what the test does.
func TestUpgradePageIsWhatIsTested(t *testing.T) {
	page := readFile(t, "docs/upgrade.md")
	for _, says := range []string{
		before[:7], "renewd config check", "`renewd streams apply`",
		"`renewd streams apply --force`",
		"at work on it", "--server nats://",
	} {
		if !strings.Contains(page, says) {
			t.Errorf("docs/upgrade.md does not say %q", says)
		}
	}
}

// refuses runs a command that must fail and say why.
func (u *upgrade) refuses(says, binary string, args ...string) {
	u.t.Helper()
	cmd := u.command(binary, args...)
	cmd.Env = append(cmd.Env, "RENEWD_HTTP_ADDR=127.0.0.1:0")
	cmd.Stdout, cmd.Stderr = nil, nil
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), says) {
		u.t.Errorf("renewd %s: %v, want it to say %q: %s", strings.Join(args, " "), err, says, out)
	}
}

// An installation of the version that was deployed first goes over to today's version, back, and
// over again, step by step as docs/upgrade.md says, on the same data.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	was, err := old()
	if errors.Is(err, errNoHistory) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	now := must(binary())(t)
	for name, c := range map[string]struct{ embedded, postgres, private bool }{
		"postgres": {postgres: true, private: true},
		"natskv":   {},
		"embedded": {embedded: true, private: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			database := ""
			if c.postgres {
				database = startPostgres(t).URL("postgres")
			}
			u := newUpgrade(t, c.embedded, database)
			u.own = map[string][]string{now: {fmt.Sprintf("RENEWD_SEAL_PROFILES=%t", c.private)}}
			u.run(was, "keys", "new")
			u.apply(was)
			u.over(was, now)
			u.back(was, now)
		})
	}
}

// apply brings the streams to what a version wants, unless a worker does that at its start.
func (u *upgrade) apply(binary string, flags ...string) {
	u.t.Helper()
	if !u.embedded {
		u.run(binary, append([]string{"streams", "apply"}, flags...)...)
	}
}

// over goes over to today's version.
func (u *upgrade) over(was, now string) {
	u.t.Helper()
	worker := u.serve(was)
	u.signIn("first", 10)
	u.ask(u.users[:3])
	u.renewed(1)
	u.check("the old one", was)

	u.run(now, "config", "check")
	if !u.embedded { // where the folder is locked
		u.refuses("at work on it", now, "streams", "apply")
		u.refuses("at work on it", now, "serve")
	}
	worker.stop(u.t)
	var waiting []string
	if !u.embedded { // where no server takes commands meanwhile
		waiting = append(u.publish(u.users[3:5]), u.login("between"))
		u.users = append(u.users, "between")
	}
	u.apply(now)
	worker = u.serve(now)
	u.answered("what came between the two", waiting)
	u.signIn("second", 5)
	u.service(was)
	wait := u.forget(now, "erased")
	u.renewed(2)
	u.ask(u.users)
	wait()
	u.check("today's", now)
	worker.stop(u.t)
}

// back goes back to the old version, and over to today's again.
func (u *upgrade) back(was, now string) {
	u.t.Helper()
	u.refuses("destructive change", was, "serve") // as long as the streams are today's
	u.revert(was)
	worker := u.serve(was)
	u.renewed(2)
	u.signIn("third", 5)
	u.users = append(u.users, "erased")
	u.answered("a login after an erasure", []string{u.login("erased")})
	u.ask(u.users)
	u.check("the old one again", was)
	worker.stop(u.t)

	u.apply(now)
	worker = u.serve(now)
	u.renewed(1)
	u.ask(u.users)
	u.check("today's again", now)
	worker.stop(u.t)
}

// revert brings the streams back to what the old version wants. The streams of an embedded server
// are brought back by another server on its folder, as nats-server would be.
func (u *upgrade) revert(was string) {
	u.t.Helper()
	if !u.embedded {
		u.apply(was, "--force")
		return
	}
	ns := u.startNATS(filepath.Join(u.folder, "nats"))
	u.run(was, "streams", "apply", "--force", "--server", ns.ClientURL())
	ns.Shutdown()
}

// service is a service that was not upgraded.
func (u *upgrade) service(was string) {
	u.t.Helper()
	name := u.users[0]
	tokens := filepath.Join(u.folder, "tokens.json")
	raw := must(json.Marshal(u.provider.Login(name)))(u.t)
	if err := os.WriteFile(tokens, raw, 0o600); err != nil {
		u.t.Fatal(err)
	}
	u.run(was, "publish", "login", "--user", name, "--tokens-file", tokens, "--wait")
	u.run(was, "publish", "refresh-due", "--user", name, "--want", "tokens", "--wait")
}

// forget signs a user in and begins to erase the user, which takes a while. wait ends when the
// erasure does.
func (u *upgrade) forget(binary, name string) (wait func()) {
	u.t.Helper()
	if u.embedded { // its store is that of natskv, where this is done
		return func() {}
	}
	u.answered("the login of "+name, []string{u.login(name)})
	p := start(u.t, u.command(binary, "user", "forget", name, "--yes", "--no-revoke"))
	return func() {
		u.t.Helper()
		if err := p.Wait(); err != nil {
			u.t.Errorf("forget %s: %v", name, err)
		}
	}
}
