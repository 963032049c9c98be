package standin_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/renewd/renewd/internal/standin"
)

func start(t *testing.T, o standin.Options) (*standin.Server, string) {
	t.Helper()
	s := standin.New(o)
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	return s, h.URL
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		http.DefaultClient.CloseIdleConnections()
		os.Exit(code)
	}))
}

// refresh presents a token; the answer's error is returned as code, a broken answer as "broken".
func refresh(t *testing.T, base, token string) (standin.Tokens, string) {
	t.Helper()
	res, err := http.PostForm(base+"/propelauth/oauth/token", url.Values{
		"grant_type":    {"refresh_token"},
		"client_id":     {"renewd-test"},
		"refresh_token": {token},
	})
	if err != nil {
		return standin.Tokens{}, "broken"
	}
	defer res.Body.Close()
	var out struct {
		standin.Tokens
		Error string `json:"error"`
	}
	if json.NewDecoder(res.Body).Decode(&out) != nil {
		return standin.Tokens{}, "broken"
	}
	return out.Tokens, out.Error
}

func TestStrictRotation(t *testing.T) {
	s, base := start(t, standin.Options{})
	first := s.Login("u")
	second, code := refresh(t, base, first.Refresh)
	if code != "" || second.Refresh == first.Refresh || !s.Valid(second.Refresh) ||
		s.Valid(first.Refresh) {
		t.Fatalf("%+v %s", second, code)
	}
	if _, code := refresh(t, base, first.Refresh); code != "invalid_grant" {
		t.Errorf("a spent token: %s", code)
	}
	if _, code := refresh(t, base, second.Refresh); code != "invalid_grant" || s.Live("u") {
		t.Errorf("the family lives on after a reuse: %s", code)
	}
	if st := s.Stats(); st.Reuse != 1 || st.RevokedFamilies != 1 || st.Rotated != 1 ||
		st.Refused != 1 {
		t.Errorf("%+v", st)
	}
}

func TestGraceAndNever(t *testing.T) {
	now := time.Now()
	s, base := start(t, standin.Options{
		Rotation: standin.Grace,
		Grace:    10 * time.Second,
		Now:      func() time.Time { return now },
	})
	first := s.Login("u")
	_, _ = refresh(t, base, first.Refresh)
	if again, code := refresh(t, base, first.Refresh); code != "" || !s.Valid(again.Refresh) ||
		s.Stats().Replays != 1 {
		t.Errorf("within the grace: %s", code)
	}
	if last, code := refresh(t, base, first.Refresh); code != "" || !s.Valid(last.Refresh) {
		t.Errorf("within the grace, once more: %s", code)
	}
	now = now.Add(11 * time.Second)
	if _, code := refresh(t, base, first.Refresh); code == "" || s.Stats().Reuse != 1 {
		t.Errorf("after the grace: %q", code)
	}
	never, base := start(t, standin.Options{Rotation: standin.Never, OmitRefresh: true})
	only := never.Login("u")
	for range 3 {
		if got, code := refresh(t, base, only.Refresh); code != "" || got.Refresh != "" {
			t.Errorf("%+v %s", got, code)
		}
	}
}

func TestEndedUsersAreRefused(t *testing.T) {
	for name, end := range map[string]func(*standin.Server){
		"ended": func(s *standin.Server) {
			s.EndSessions("u")
		},
		"disabled": func(s *standin.Server) { s.Disable("u") },
		"deleted":  func(s *standin.Server) { s.Delete("u") },
	} {
		s, base := start(t, standin.Options{})
		token := s.Login("u").Refresh
		end(s)
		if _, code := refresh(t, base, token); code != "invalid_grant" || s.Live("u") {
			t.Errorf("%s: %s", name, code)
		}
	}
}

func TestLostAnswerHasRotated(t *testing.T) {
	for name, f := range map[string]standin.Fault{
		"dropped":   {Act: true, Drop: true},
		"truncated": {Truncate: true},
	} {
		s, base := start(t, standin.Options{})
		first := s.Login("u")
		var once atomic.Bool
		s.SetFault(func(r standin.Request) *standin.Fault {
			if r.User != "u" || once.Swap(true) {
				return nil
			}
			return &f
		})
		if _, code := refresh(t, base, first.Refresh); code != "broken" || s.Valid(first.Refresh) ||
			s.Stats().Rotated != 1 {
			t.Errorf("%s: %s %+v", name, code, s.Stats())
		}
	}
}

func TestOneOfManyWins(t *testing.T) {
	s, base := start(t, standin.Options{KeepOnReuse: true, Latency: 20 * time.Millisecond})
	token := s.Login("u").Refresh
	var won atomic.Int32
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, code := refresh(t, base, token); code == "" {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	if st := s.Stats(); won.Load() != 1 || st.Rotated != 1 || st.Reuse != 49 || st.MaxInFlight < 2 {
		t.Errorf("%d won, %+v", won.Load(), st)
	}
}

func TestSaveAndLoad(t *testing.T) {
	s, base := start(t, standin.Options{})
	s.Login("other")
	token, _ := refresh(t, base, s.Login("u").Refresh)
	raw, err := s.Save()
	if err != nil {
		t.Fatal(err)
	}
	again := standin.New(standin.Options{})
	if err := again.Load(raw); err != nil || !again.Valid(token.Refresh) || !again.Live("other") ||
		len(again.Users()) != 2 {
		t.Errorf("after a restart: %v", err)
	}
	if err := again.Load([]byte("{}")); err == nil {
		t.Error("loaded nothing")
	}
}

func TestAdminOnlyWhenTold(t *testing.T) {
	for _, on := range []bool{false, true} {
		_, base := start(t, standin.Options{Admin: on})
		res, err := http.PostForm(base+"/_admin/login", url.Values{"user": {"u"}})
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if (res.StatusCode == http.StatusOK) != on {
			t.Errorf("admin %v: status %d", on, res.StatusCode)
		}
	}
}

func TestARevokedTokenEndsItsSession(t *testing.T) {
	s, base := start(t, standin.Options{OIDC: true})
	first := s.Login("u")
	second, code := refresh(t, base, first.Refresh)
	if code != "" {
		t.Fatal(code)
	}
	for _, token := range []string{"unknown", second.Refresh} {
		if !s.Live("u") {
			t.Fatal("ended before its token was revoked")
		}
		res, err := http.PostForm(base+"/propelauth/oauth/revoke", url.Values{
			"client_id": {"renewd-test"},
			"token":     {token},
		})
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatal(res, err)
		}
	}
	if s.Live("u") {
		t.Error("the session lives on")
	}
}

func TestUserinfoCallsAreTold(t *testing.T) {
	var mu sync.Mutex
	var calls []standin.Call
	s, base := start(t, standin.Options{OIDC: true, Asked: func(c standin.Call) {
		mu.Lock()
		calls = append(calls, c)
		mu.Unlock()
	}})
	for _, token := range []string{s.Login("u").Access, "unknown"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet,
			base+"/propelauth/oauth/userinfo", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		var profile struct {
			Sub string `json:"sub"`
		}
		if err := json.NewDecoder(res.Body).Decode(&profile); err != nil ||
			res.StatusCode == http.StatusOK && profile.Sub != "u" {
			t.Error(profile, err)
		}
		res.Body.Close()
	}
	mu.Lock()
	defer mu.Unlock()
	if len(calls) != 2 || calls[0].User != "u" || calls[1].User != "" || calls[0].At.IsZero() {
		t.Errorf("%+v", calls)
	}
}
