package schema_test

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/renewd/renewd/schema"
)

// An outcome is published whatever a provider says of its user: what does not fit is left out, the
// least telling first, and named.
func TestOutcomeFits(t *testing.T) {
	const limit = 4096
	long := strings.Repeat("x", limit)
	raw := json.RawMessage(`{"a":"` + long + `"}`)
	for name, tt := range map[string]struct {
		p    schema.Profile
		want []string
	}{
		"small": {schema.Profile{Email: "e", Raw: json.RawMessage(`{"a":1}`)}, nil},
		"raw": {
			schema.Profile{Email: "e", Organisations: []schema.Organisation{{ID: "o"}}, Raw: raw},
			[]string{"raw"},
		},
		"organisations": {
			schema.Profile{Email: "e", Organisations: []schema.Organisation{{ID: long}}, Raw: raw},
			[]string{"raw", "organisations"},
		},
		"groups": {
			schema.Profile{Email: "e", Groups: []string{long}, Roles: []string{"r"}, Raw: raw},
			[]string{"raw", "groups"},
		},
		"roles": {
			schema.Profile{Email: "e", Groups: []string{"g"}, Roles: []string{long}},
			[]string{"groups", "roles"},
		},
		"picture": {
			schema.Profile{Email: "e", Picture: "data:" + long},
			[]string{"email", "picture"},
		},
		"all": {
			schema.Profile{
				Picture:       long,
				Organisations: []schema.Organisation{{ID: "o"}},
				Raw:           raw,
			},
			[]string{"raw", "organisations", "picture"},
		},
		"again": {
			schema.Profile{Picture: long, Omitted: []string{"raw"}},
			[]string{"raw", "picture"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			tt.p.ID = "u"
			in := schema.Synced{
				Cause:   schema.Cause{ID: "c", Type: schema.UserLogin},
				Version: 7,
				Changed: []string{"raw"},
				Profile: &tt.p,
			}
			data, err := json.Marshal(in)
			if err != nil {
				t.Fatal(err)
			}
			before := slices.Clone(data)
			fitted := schema.Fit(data, limit)
			e := schema.Event{Type: schema.UserSynced, Data: fitted}
			out, err := schema.Data[schema.Synced](e)
			if err != nil || len(fitted) > limit || !slices.Equal(data, before) {
				t.Fatalf("%d bytes, %v", len(fitted), err)
			}
			if !slices.Equal(out.Profile.Omitted, tt.want) || out.Profile.ID != "u" {
				t.Errorf("omitted %q, want %q", out.Profile.Omitted, tt.want)
			}
			for _, s := range validators(t, schema.JSONSchema(schema.UserSynced)) {
				if err := s.Validate(parse(t, fitted)); err != nil {
					t.Error(err)
				}
			}
			if out.Profile = in.Profile; !reflect.DeepEqual(out, in) {
				t.Errorf("beside the profile: %+v", out)
			}
			if tt.want == nil && !slices.Equal(fitted, data) {
				t.Errorf("what fits was changed: %s", fitted)
			}
		})
	}
	for _, odd := range []string{`[1]`, `{"profile":7}`, `{"x":1}`, `nothing`, ``} {
		if got := schema.Fit(json.RawMessage(odd), 0); string(got) != odd {
			t.Errorf("%s became %s", odd, got)
		}
	}
}
