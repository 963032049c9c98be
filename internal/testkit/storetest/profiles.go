package storetest

import (
	"testing"

	"github.com/renewd/renewd/internal/grant"
)

// ProfilesChangeTheirForm compares two views of one store. plain keeps profiles readable, private
// seals profiles. shows reports whether the stored record of k shows its profile.
func ProfilesChangeTheirForm(
	t *testing.T, plain, private grant.Store, shows func(k grant.Key) bool,
) {
	t.Helper()
	insert(t, plain, Full(jane))
	want := Full(jane).Profile
	for _, step := range []struct {
		what  string
		with  grant.Store
		shown bool
	}{
		{"sealed with the next save", private, false},
		{"sealed with one more", private, false},
		{"as it is again", plain, true},
		{"as it is after one more", plain, true},
		{"sealed again", private, false},
	} {
		for _, s := range []grant.Store{plain, private} {
			if g, err := s.Load(t.Context(), jane); err != nil || g.Profile != want {
				t.Errorf("before it is %s: %v, %v", step.what, err, g.Profile)
			}
		}
		g, err := step.with.Load(t.Context(), jane)
		must(t, err)
		g.Version++
		_, err = step.with.Save(t.Context(), g)
		must(t, err)
		if got := shows(jane); got != step.shown {
			t.Errorf("%s: the record shows it: %t", step.what, got)
		}
	}
	g, err := private.Load(t.Context(), jane)
	must(t, err)
	g.Profile = ""
	_, err = private.Save(t.Context(), g)
	must(t, err)
	if g, err := plain.Load(t.Context(), jane); err != nil || g.Profile != "" {
		t.Errorf("a profile that was removed: %v, %v", g.Profile, err)
	}
}
