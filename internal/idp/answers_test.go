package idp_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/secret"
)

// answer is what a real provider said, as recorded from it or as its documentation or source shows
// it. Tokens in it are made up.
type answer struct {
	Name        string `json:"name"`
	Endpoint    string `json:"endpoint"` // token, userinfo or revoke
	Status      int    `json:"status"`
	ContentType string `json:"content_type"`
	Body        string `json:"body"`
	Source      string `json:"source"` // an address, a file at a version, or "recorded: …"
	// Class is the grant.Class that the answer must be sorted into, or "success". For userinfo it
	// can be "refused": the access token is not taken, which is grant.ErrAccessRefused.
	Class  string `json:"class"`
	Reason string `json:"reason"` // of user.reauth_required, where Class is permanent
	Note   string `json:"note"`
}

// TestAnswersOfProviders holds the classification against answers of real providers, a file each.
// docs/providers has a page for each of them.
func TestAnswersOfProviders(t *testing.T) {
	files, err := filepath.Glob("testdata/answers/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no answers: %v", err)
	}
	for _, file := range files {
		provider := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(provider, func(t *testing.T) {
			for _, a := range readAnswers(t, file) {
				t.Run(a.Name, func(t *testing.T) { a.check(t, provider) })
			}
		})
	}
}

func readAnswers(t *testing.T, file string) (all []answer) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dec := json.NewDecoder(f)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&all); err != nil || len(all) == 0 {
		t.Fatalf("%s: %d answers, %v", file, len(all), err)
	}
	names := map[string]bool{}
	for _, a := range all {
		if a.Name == "" || a.Source == "" || names[a.Name] {
			t.Errorf("%s: %q: want a name of its own and a source", file, a.Name)
		}
		if (a.Reason != "") != (a.Class == string(grant.Permanent)) {
			t.Errorf("%s: %q: a reason belongs to a permanent answer, and to no other", file,
				a.Name)
		}
		names[a.Name] = true
	}
	return all
}

// check gives a to the endpoint's own call, at the provider's preset if it has one.
func (a answer) check(t *testing.T, provider string) {
	preset := provider
	if _, known := idp.Presets()[provider]; !known {
		preset = "oidc"
	}
	header := map[string]string{"Content-Type": a.ContentType}
	if a.ContentType == "" {
		header = nil
	}
	s := answering(t, a.Status, header, a.Body)
	p := open(t, s.URL, func(c *idp.Config) {
		c.Preset, c.TokenURL, c.UserInfoURL, c.RevokeURL = preset, s.URL, s.URL, s.URL
	})
	var err error
	switch a.Endpoint {
	case "token":
		_, err = p.Refresh(t.Context(), secret.New(canary))
	case "userinfo":
		_, err = p.UserInfo(t.Context(), secret.New(canary), a.subject(preset))
	case "revoke":
		err = p.Revoke(t.Context(), secret.New(canary))
	default:
		t.Fatalf("endpoint %q: want token, userinfo or revoke", a.Endpoint)
	}
	class, reason := outcome(err)
	if class != a.Class || reason != a.Reason {
		t.Errorf("%d %s: %s %s, want %s %s\nsource: %s\nnote: %s", a.Status, a.Body, class, reason,
			a.Class, a.Reason, a.Source, a.Note)
	}
	if err != nil && strings.Contains(fmt.Sprintf("%v %+v", err, err), url.QueryEscape(canary)) {
		t.Errorf("the error quotes what was sent: %v", err)
	}
}

// subject is the user that a profile is about, so that the profile is taken for that user's.
func (a answer) subject(preset string) string {
	var members map[string]any
	dec := json.NewDecoder(strings.NewReader(a.Body))
	dec.UseNumber()
	if dec.Decode(&members) != nil {
		return "nobody"
	}
	claim := cmp.Or(idp.Presets()[preset].Subject, "sub")
	if id, there := members[claim]; there {
		return fmt.Sprint(id)
	}
	return "nobody"
}

// outcome is what came of a call, in the words of the recorded answers.
func outcome(err error) (class, reason string) {
	if err == nil {
		return "success", ""
	}
	if errors.Is(err, grant.ErrAccessRefused) {
		return "refused", ""
	}
	if f, ok := errors.AsType[*grant.Fault](err); ok {
		return string(f.Class), f.Reason
	}
	return err.Error(), ""
}
