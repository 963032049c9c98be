package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/testkit"
)

// provider is npm's oidc-provider as a separate process. Its refresh tokens are for one use, and a
// token that is presented twice revokes its family. Safe for concurrent use.
type provider struct {
	Issuer   string `json:"issuer"`
	ClientID string `json:"client_id"`
}

// providerStats counts what the provider's token endpoint has seen.
type providerStats struct {
	Refreshes int `json:"refreshes"` // answered with a new pair
	Reuse     int `json:"reuse"`     // a token presented that was rotated before
	Refused   int `json:"refused"`   // every other refusal
	Revoked   int `json:"revoked"`   // families revoked for reuse
}

// tokens is a token endpoint's answer.
type tokens struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	IDToken      string `json:"id_token"`
	Scope        string `json:"scope"`
	ExpiresIn    int    `json:"expires_in"`
	Error        string `json:"error"`
}

const installTimeout = 3 * time.Minute

// startProvider starts the provider with access tokens that live for the given time, in whole
// seconds, and ends it with the test.
func startProvider(t *testing.T, accessTokens time.Duration) *provider {
	t.Helper()
	node := testkit.Program(t, "node")
	dir := t.TempDir()
	if err := os.Symlink(installProvider(t), filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	copyFile(t, "oidcprovider/server.mjs", filepath.Join(dir, "server.mjs"))

	cmd := exec.Command(node, "server.mjs")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(),
		"ACCESS_TOKEN_SECONDS="+strconv.Itoa(int(accessTokens.Seconds())))
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start provider: %v", err)
	}
	lines := bufio.NewReader(out)
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_, _ = io.Copy(io.Discard, lines)
		_ = cmd.Wait()
	})
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			t.Fatalf("provider ended before it listened: %v", err)
		}
		p := &provider{}
		if json.Unmarshal(line, p) == nil && p.Issuer != "" {
			return p
		}
	}
}

// installProvider returns a node_modules folder with exactly what the lock file names. The folder
// is made once for each lock file and kept in the user's cache, so that only the first run needs
// the network.
func installProvider(t *testing.T) string {
	t.Helper()
	npm := testkit.Program(t, "npm")
	lock, err := os.ReadFile("oidcprovider/package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatalf("no cache folder: %v: set HOME or XDG_CACHE_HOME", err)
	}
	sum := sha256.Sum256(lock)
	home := filepath.Join(cache, "renewd", "oidc-provider-"+hex.EncodeToString(sum[:8]))
	modules := filepath.Join(home, "node_modules")
	if _, err := os.Stat(modules); err == nil {
		return modules
	}
	if err := os.MkdirAll(filepath.Dir(home), 0o755); err != nil {
		t.Fatal(err)
	}
	fresh, err := os.MkdirTemp(filepath.Dir(home), "install-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(fresh)
	for _, name := range []string{".npmrc", "package.json", "package-lock.json"} {
		copyFile(t, filepath.Join("oidcprovider", name), filepath.Join(fresh, name))
	}
	ctx, cancel := context.WithTimeout(t.Context(), installTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts")
	cmd.Dir = fresh
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
	// Another run may have been quicker. Its folder is just as good.
	if err := os.Rename(fresh, home); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	return modules
}

// mint signs user in and returns the first pair.
func (p *provider) mint(ctx context.Context, user string) (tokens, error) {
	var tk tokens
	err := p.call(ctx, http.MethodPost, "/_mint?user="+url.QueryEscape(user), &tk)
	return tk, err
}

// end ends user's session. From here on every token of the session is dead.
func (p *provider) end(ctx context.Context, user string) error {
	var done struct{ Ended bool }
	if err := p.call(ctx, http.MethodPost, "/_end?user="+url.QueryEscape(user), &done); err != nil {
		return err
	}
	if !done.Ended {
		return fmt.Errorf("end session of %s: not signed in", user)
	}
	return nil
}

func (p *provider) stats(ctx context.Context) (s providerStats, err error) {
	err = p.call(ctx, http.MethodGet, "/_stats", &s)
	return s, err
}

// refresh presents a refresh token as any client would. A refusal is in the answer's Error.
func (p *provider) refresh(ctx context.Context, token string) (tk tokens, err error) {
	form := url.Values{
		"grant_type":    {"refresh_token"},
		"client_id":     {p.ClientID},
		"refresh_token": {token},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.Issuer+"/token",
		strings.NewReader(form.Encode()))
	if err != nil {
		return tk, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	err = answer(req, &tk)
	return tk, err
}

func (p *provider) call(ctx context.Context, method, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, p.Issuer+path, nil)
	if err != nil {
		return err
	}
	return answer(req, into)
}
