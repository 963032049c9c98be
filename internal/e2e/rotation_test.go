package e2e

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"
)

// The provider must be as strict as the whole-system test claims. These tests check that.

func TestProviderRotatesAndRevokesTheFamilyOnReuse(t *testing.T) {
	t.Parallel()
	p := startProvider(t, time.Minute)
	first := must(p.mint(t.Context(), "u1"))(t)
	if first.RefreshToken == "" || first.AccessToken == "" || first.ExpiresIn != 60 {
		t.Fatalf("login: refresh token %t, access token %t, expires_in %d",
			first.RefreshToken != "", first.AccessToken != "", first.ExpiresIn)
	}
	second := must(p.refresh(t.Context(), first.RefreshToken))(t)
	if second.Error != "" || second.RefreshToken == "" ||
		second.RefreshToken == first.RefreshToken {
		t.Fatalf("refresh did not rotate: error %q", second.Error)
	}
	third := must(p.refresh(t.Context(), second.RefreshToken))(t)
	if third.Error != "" {
		t.Fatalf("second refresh: %s", third.Error)
	}
	again := must(p.refresh(t.Context(), first.RefreshToken))(t)
	if again.Error != "invalid_grant" {
		t.Fatalf("the first token presented again: error %q, want invalid_grant", again.Error)
	}
	if dead := must(p.refresh(t.Context(), third.RefreshToken))(t); dead.Error != "invalid_grant" {
		t.Fatalf("the newest token after a reuse: error %q, want invalid_grant", dead.Error)
	}
	want := providerStats{Refreshes: 2, Reuse: 1, Refused: 1, Revoked: 1}
	if got := must(p.stats(t.Context()))(t); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
	// Reuse stays visible after the family is gone.
	must(p.refresh(t.Context(), second.RefreshToken))(t)
	if got := must(p.stats(t.Context()))(t); got.Reuse != 2 {
		t.Errorf("reuse %d after one more old token, want 2", got.Reuse)
	}
}

func TestProviderForgetsAnEndedSession(t *testing.T) {
	t.Parallel()
	p := startProvider(t, time.Minute)
	ended, kept := must(p.mint(t.Context(), "ended"))(t), must(p.mint(t.Context(), "kept"))(t)
	if err := p.end(t.Context(), "ended"); err != nil {
		t.Fatal(err)
	}
	if got := must(p.refresh(t.Context(), ended.RefreshToken))(t); got.Error != "invalid_grant" {
		t.Errorf("ended session: error %q, want invalid_grant", got.Error)
	}
	if got := must(p.refresh(t.Context(), kept.RefreshToken))(t); got.Error != "" {
		t.Errorf("another session: %s", got.Error)
	}
	if status, _ := userinfo(t, p, ended.AccessToken); status != http.StatusUnauthorized {
		t.Errorf("userinfo of an ended session: status %d, want 401", status)
	}
}

func TestProviderShowsTheUser(t *testing.T) {
	t.Parallel()
	p := startProvider(t, time.Minute)
	login := must(p.mint(t.Context(), "u2"))(t)
	status, user := userinfo(t, p, login.AccessToken)
	if status != http.StatusOK || user["sub"] != "u2" || user["email"] != "u2@example.com" ||
		user["email_verified"] != true {
		t.Errorf("userinfo: status %d, %v", status, user)
	}
}

// userinfo asks with an access token, at the address that discovery names.
func userinfo(t *testing.T, p *provider, access string) (int, map[string]any) {
	t.Helper()
	var found struct {
		Userinfo string `json:"userinfo_endpoint"`
	}
	const document = "/.well-known/openid-configuration"
	if err := p.call(t.Context(), http.MethodGet, document, &found); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, found.Userinfo, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+access)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	user := map[string]any{}
	if err := json.NewDecoder(res.Body).Decode(&user); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, user
}
