package standin_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/renewd/renewd/internal/standin"
)

// fetch returns the status and the body of a request.
func fetch(t *testing.T, req *http.Request) (int, string) {
	t.Helper()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func post(t *testing.T, address, contentType, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address,
		strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	return fetch(t, req)
}

func userInfo(t *testing.T, base, access string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet,
		base+"/propelauth/oauth/userinfo", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+access)
	return fetch(t, req)
}

// Anybody can verify an access token by what discovery leads to.
func TestAccessTokensVerify(t *testing.T) {
	for _, signing := range []standin.Signing{standin.ES256, standin.RS256} {
		const issuer = "https://auth.example.com"
		s, base := start(t, standin.Options{
			Signing:  signing,
			Issuer:   issuer,
			Lifetime: time.Minute,
		})
		provider, err := oidc.NewProvider(t.Context(), base)
		if err != nil {
			t.Fatal(err)
		}
		var document struct {
			Keys string `json:"jwks_uri"`
		}
		if err := provider.Claims(&document); err != nil {
			t.Fatal(err)
		}
		verifier := oidc.NewVerifier(issuer, oidc.NewRemoteKeySet(t.Context(), document.Keys),
			&oidc.Config{ClientID: "renewd-test", SupportedSigningAlgs: []string{string(signing)}})
		token, err := verifier.Verify(t.Context(), s.Login("u").Access)
		if err != nil || token.Subject != "u" || token.Expiry.Sub(token.IssuedAt) != time.Minute {
			t.Errorf("%s: %+v, %v", signing, token, err)
		}
		if _, err := verifier.Verify(
			t.Context(),
			standin.New(standin.Options{Signing: signing, Issuer: issuer}).Login("u").Access,
		); err == nil {
			t.Errorf("%s: another server's token is good", signing)
		}
	}
	opaque, base := start(t, standin.Options{Signing: standin.Opaque})
	tokens := opaque.Login("u")
	if status, body := userInfo(t, base, tokens.Access); strings.HasPrefix(tokens.Access, "ey") ||
		status != 200 || !strings.Contains(body, `"user_id":"u"`) {
		t.Errorf("opaque: %d %s", status, body)
	}
}

func TestUserInfoChecksTheToken(t *testing.T) {
	now := time.Now()
	for _, lax := range []bool{false, true} {
		clock := now
		s, base := start(t, standin.Options{
			Lifetime:    time.Minute,
			LaxUserInfo: lax,
			Now:         func() time.Time { return clock },
		})
		tokens := s.Login("u")
		if status, _ := userInfo(t, base, tokens.Refresh); status != 401 {
			t.Errorf("a refresh token opens userinfo: %d", status)
		}
		if status, _ := userInfo(
			t, base, standin.New(standin.Options{}).Login("u").Access,
		); status != 401 {
			t.Errorf("another server's token opens userinfo: %d", status)
		}
		s.EndSessions("u")
		if status, _ := userInfo(t, base, tokens.Access); (status == 200) != lax {
			t.Errorf("lax %v, an ended session: %d", lax, status)
		}
		tokens = s.Login("u")
		clock = clock.Add(time.Minute)
		if status, _ := userInfo(t, base, tokens.Access); status != 401 {
			t.Errorf("an expired token: %d", status)
		}
	}
}

func TestSessionsEnd(t *testing.T) {
	for name, o := range map[string]standin.Options{
		"by age":        {SessionLife: time.Hour},
		"by inactivity": {IdleLife: 40 * time.Minute},
	} {
		clock := time.Now()
		o.Now = func() time.Time { return clock }
		s, base := start(t, o)
		token := s.Login("u").Refresh
		for range 2 { // active all the time
			clock = clock.Add(29 * time.Minute)
			tokens, code := refresh(t, base, token)
			if code != "" {
				t.Fatalf("%s: %s", name, code)
			}
			token = tokens.Refresh
		}
		clock = clock.Add(30 * time.Minute)
		if s.Valid(token) != (o.IdleLife > 0) || s.Live("u") != (o.IdleLife > 0) {
			t.Errorf("%s: valid %v after 88 minutes of activity", name, s.Valid(token))
		}
		clock = clock.Add(time.Hour)
		if _, code := refresh(t, base, token); code != "invalid_grant" ||
			s.CurrentRefresh("u") != "" {
			t.Errorf("%s: %q after an hour of silence", name, code)
		}
	}
}

// RFC 6749 section 2.3: the client names itself as it is registered, in one way.
func TestClientAuthentication(t *testing.T) {
	const id, secret = "the client", "se:cr%t"
	form := func(more ...string) url.Values {
		v := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"x"}}
		for i := 0; i < len(more); i += 2 {
			v.Set(more[i], more[i+1])
		}
		return v
	}
	basic := standin.Options{ClientID: id, ClientSecret: secret, ClientBasic: true}
	inForm := standin.Options{ClientID: id, ClientSecret: secret}
	public := standin.Options{ClientID: id}
	for _, tt := range []struct {
		o      standin.Options
		basic  string
		form   url.Values
		status int
	}{
		{public, "", form("client_id", id), 400},
		{public, "", form("client_id", id, "client_secret", "x"), 401},
		{public, "", form(), 401},
		{inForm, "", form("client_id", id, "client_secret", secret), 400},
		{inForm, "", form("client_id", id), 401},
		{inForm, secret, form(), 401},
		{basic, secret, form(), 400},
		{basic, "wrong", form(), 401},
		{basic, "", form("client_id", id, "client_secret", secret), 401},
		{basic, secret, form("client_secret", secret), 401},
	} {
		_, base := start(t, tt.o)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
			base+"/propelauth/oauth/token", strings.NewReader(tt.form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if tt.basic != "" {
			req.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(tt.basic))
		}
		if status, body := fetch(t, req); status != tt.status {
			t.Errorf("%+v %q %v: %d %s", tt.o, tt.basic, tt.form, status, body)
		}
	}
}

// PropelAuth's own refresh: the user comes with it, a refusal is not an OAuth error, and the token
// is spent just the same.
func TestSessionRefresh(t *testing.T) {
	s, base := start(t, standin.Options{})
	first := s.Login("u").Refresh
	ask := func(token string) (int, string) {
		return post(t, base+"/api/backend/v1/refresh_token", "application/json",
			fmt.Sprintf(`{"refresh_token":%q}`, token))
	}
	status, body := ask(first)
	var out struct {
		Refresh string `json:"refresh_token"`
		Access  struct {
			Token   string                     `json:"access_token"`
			Expires int64                      `json:"expires_at_seconds"`
			User    map[string]any             `json:"user"`
			Orgs    map[string]json.RawMessage `json:"org_id_to_org_member_info"`
		} `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(body), &out); err != nil || status != 200 ||
		out.Access.User["user_id"] != "u" || len(out.Access.Orgs) != 1 || out.Access.Expires == 0 {
		t.Fatalf("%d %s", status, body)
	}
	if status, _ := userInfo(t, base, out.Access.Token); status != 200 || !s.Valid(out.Refresh) ||
		s.Valid(first) {
		t.Errorf("the new pair: %d", status)
	}
	if status, body := ask(first); status != 401 || strings.Contains(body, "{") ||
		s.Stats().Reuse != 1 {
		t.Errorf("a spent token: %d %s", status, body)
	}
	if status, _ := post(
		t, base+"/api/backend/v1/refresh_token", "application/json", "rubbish",
	); status != 400 {
		t.Errorf("rubbish: %d", status)
	}
	token := s.Login("u").Refresh
	if status, _ := post(
		t, base+
			"/api/backend/v1/logout", "application/json",
		fmt.Sprintf(`{"refresh_token":%q}`, token),
	); status != 200 || s.Valid(token) {
		t.Errorf("logged out: %d", status)
	}
}

func TestTruthOfAUser(t *testing.T) {
	s, base := start(t, standin.Options{Rotation: standin.Grace, Grace: time.Hour})
	first := s.Login("u").Refresh
	s.Login("bystander")
	if s.Presented(first) != 0 {
		t.Error("presented before it was")
	}
	_, _ = refresh(t, base, first)
	again, _ := refresh(t, base, first)
	_, _ = refresh(t, base, again.Refresh)
	_, _ = refresh(t, base, first) // a newer one was spent since
	_, _ = refresh(t, base, again.Refresh)
	_, _ = refresh(t, base, "rt.0.0.made-up")
	want := standin.UserStats{
		Logins:      1,
		Presented:   5,
		Renewals:    3,
		Replays:     1,
		Reuse:       1,
		Refused:     1,
		MaxInFlight: 1,
	}
	if got := s.User("u"); got != want || s.Renewals("u") != 3 {
		t.Errorf("%+v, want %+v", got, want)
	}
	got, total := s.User("bystander"), s.Stats()
	if got != (standin.UserStats{Logins: 1}) || total.Refused != 2 ||
		total.Refreshes != 6 || total.MaxPresented != 1 {
		t.Errorf("%+v %+v", got, total)
	}
	if s.User("nobody") != (standin.UserStats{}) {
		t.Error("nobody has counts")
	}
}

// The provider knows each access token that it made, also after its session ended.
func TestIssuedAccessTokensAreKnown(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s, base := start(t, standin.Options{
		Lifetime: time.Minute,
		Now:      func() time.Time { return now },
	})
	first := s.Login("u")
	renewed, _ := refresh(t, base, first.Refresh)
	s.EndSessions("u")
	for generation, access := range []string{first.Access, renewed.Access} {
		want := standin.Issued{User: "u", Generation: generation, Ends: now.Add(time.Minute)}
		if got, ok := s.Issued(access); !ok || got.User != want.User ||
			got.Generation != want.Generation ||
			got.Session != 0 || !got.Ends.Equal(want.Ends) {
			t.Errorf("%+v, %t", got, ok)
		}
	}
	other := standin.New(standin.Options{})
	for _, access := range []string{"", "made up", first.Refresh, other.Login("u").Access} {
		if got, ok := s.Issued(access); ok {
			t.Errorf("%q is known: %+v", access, got)
		}
	}
}

func TestProfilesChange(t *testing.T) {
	s, base := start(t, standin.Options{})
	tokens := s.Login("u")
	_, before := userInfo(t, base, tokens.Access)
	s.Edit("u", func(p map[string]any) { p["first_name"] = "Zoë" })
	_, after := userInfo(t, base, tokens.Access)
	if before == after || !strings.Contains(after, `"first_name":"Zoë"`) ||
		!strings.Contains(after, `"org_id_to_org_info":{"org-`) {
		t.Errorf("%s\n%s", before, after)
	}
	s.Delete("u")
	tokens = s.Login("u")
	if _, fresh := userInfo(t, base, tokens.Access); strings.Contains(fresh, "Zoë") {
		t.Errorf("who comes after a deletion is the one before: %s", fresh)
	}
}

func TestStateKeepsAccountsAndKeys(t *testing.T) {
	s, _ := start(t, standin.Options{})
	access := s.Login("u").Access
	s.Login("off")
	s.Disable("off")
	s.Edit("u", func(p map[string]any) { p["last_name"] = "Kept" })
	raw, err := s.Save()
	if err != nil {
		t.Fatal(err)
	}
	again, base := start(t, standin.Options{})
	if err := again.Load(raw); err != nil {
		t.Fatal(err)
	}
	if status, body := userInfo(t, base, access); status != 200 ||
		!strings.Contains(body, "Kept") || again.Live("off") || !again.Live("u") {
		t.Errorf("%d %s", status, body)
	}
	// What an older release wrote: every profile, no account, no key.
	old := `{"secret":"c2VjcmV0",
		"sessions":[{"user":"u","gen":3,"rotated_at":"2026-11-23T10:00:00Z",
			"login_at":"2026-11-23T10:00:00Z"}],
		"profiles":{"u":{"user_id":"u","email":"old@example.org"}}}`
	if err := again.Load([]byte(old)); err != nil || !again.Live("u") || len(again.Users()) != 1 {
		t.Errorf("an older state: %v", err)
	}
	if err := again.Load([]byte(`{"secret":"c2VjcmV0","key":"AAAA"}`)); err == nil ||
		!again.Live("u") {
		t.Errorf("a damaged key: %v", err)
	}
}

// A benchmark's million users cost a few hundred bytes each.
func TestUsersAreCheap(t *testing.T) {
	const users, most = 50_000, 600
	s := standin.New(standin.Options{Signing: standin.Opaque})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for n := range users {
		s.Login(fmt.Sprintf("user-%07d", n))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / users; each > most {
		t.Errorf("%d bytes a user, want at most %d", each, most)
	}
	if st := s.Stats(); st.Live != users {
		t.Errorf("%d live", st.Live)
	}
}

// 20,000 refreshes at once, each of another user: all are renewed, and nothing is counted twice.
func TestManyAtOnce(t *testing.T) {
	const users = 20_000
	s := standin.New(standin.Options{Signing: standin.Opaque})
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for n := range users {
		token := s.Login(fmt.Sprint("u", n)).Refresh
		wg.Go(func() {
			<-begin
			form := url.Values{
				"grant_type":    {"refresh_token"},
				"client_id":     {"renewd-test"},
				"refresh_token": {token},
			}
			req, err := http.NewRequest(http.MethodPost, "/propelauth/oauth/token",
				strings.NewReader(form.Encode()))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			s.ServeHTTP(discard{}, req)
		})
	}
	close(begin)
	wg.Wait()
	if st := s.Stats(); st.Rotated != users || st.Refreshes != users || st.Reuse != 0 ||
		st.MaxInFlight != 1 || st.Live != users || st.MaxPresented != 1 {
		t.Errorf("%+v", st)
	}
}

// discard is an answer that is not read: what is measured is the server, not HTTP.
type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) WriteHeader(int)             {}
func (discard) Write(b []byte) (int, error) { return len(b), nil }

func BenchmarkRefresh(b *testing.B) {
	for _, signing := range []standin.Signing{standin.ES256, standin.RS256, standin.Opaque} {
		b.Run(string(signing), func(b *testing.B) {
			s := standin.New(standin.Options{Signing: signing, Rotation: standin.Never})
			form := url.Values{
				"grant_type":    {"refresh_token"},
				"client_id":     {"renewd-test"},
				"refresh_token": {s.Login("u").Refresh},
			}.Encode()
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					req, _ := http.NewRequest(http.MethodPost, "/propelauth/oauth/token",
						strings.NewReader(form))
					req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
					s.ServeHTTP(discard{}, req)
				}
			})
		})
	}
}
