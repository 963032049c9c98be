package idp

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/renewd/renewd/schema"
)

// targets are the members of a profile that can be taken from another place in a userinfo.
var targets = map[string]func(*schema.Profile, json.RawMessage){
	"email":          func(p *schema.Profile, raw json.RawMessage) { p.Email = text(raw) },
	"email_verified": func(p *schema.Profile, raw json.RawMessage) { p.EmailVerified = flag(raw) },
	"name": func(p *schema.Profile, raw json.RawMessage) {
		p.Name = strings.TrimSpace(text(raw))
	},
	"first_name": func(p *schema.Profile, raw json.RawMessage) {
		p.FirstName = strings.TrimSpace(text(raw))
	},
	"last_name": func(p *schema.Profile, raw json.RawMessage) {
		p.LastName = strings.TrimSpace(text(raw))
	},
	"username": func(p *schema.Profile, raw json.RawMessage) {
		p.Username = strings.TrimSpace(text(raw))
	},
	"picture": func(p *schema.Profile, raw json.RawMessage) {
		p.Picture = strings.TrimSpace(text(raw))
	},
	"enabled":      func(p *schema.Profile, raw json.RawMessage) { p.Enabled = flag(raw) },
	"locked":       func(p *schema.Profile, raw json.RawMessage) { p.Locked = flag(raw) },
	"mfa_enabled":  func(p *schema.Profile, raw json.RawMessage) { p.MFAEnabled = flag(raw) },
	"has_password": func(p *schema.Profile, raw json.RawMessage) { p.HasPassword = flag(raw) },
	"groups":       func(p *schema.Profile, raw json.RawMessage) { p.Groups = sorted(names(raw)) },
	"roles":        func(p *schema.Profile, raw json.RawMessage) { p.Roles = sorted(names(raw)) },
	"locale":       func(p *schema.Profile, raw json.RawMessage) { p.Locale = text(raw) },
	"zoneinfo":     func(p *schema.Profile, raw json.RawMessage) { p.Zoneinfo = text(raw) },
}

// pointer is an RFC 6901 pointer to something inside a document.
var pointer = regexp.MustCompile(`^(/([^~/]|~[01])*)+$`)

// checkMapping returns an error for the first wrong entry of a mapping from a profile's members to
// JSON pointers.
func checkMapping(m map[string]string) error {
	for _, target := range slices.Sorted(maps.Keys(m)) {
		if targets[target] == nil {
			return fmt.Errorf("profile.%s: no such member; want one of %s", target,
				strings.Join(slices.Sorted(maps.Keys(targets)), ", "))
		}
		if !pointer.MatchString(m[target]) {
			return fmt.Errorf("profile.%s: %q: want a JSON pointer into the userinfo, such as "+
				"/realm_access/roles", target, m[target])
		}
	}
	return nil
}

// lookUp takes the values that mapping points to out of a userinfo, by target. A missing value is
// empty.
func lookUp(
	all memberSet, mapping map[string]string,
) (map[string]json.RawMessage, error) {
	found := make(map[string]json.RawMessage, len(mapping))
	for target, path := range mapping {
		steps := stepsOf(path)
		at := all.get(steps[0])
		for _, step := range steps[1:] {
			var err error
			if at, err = inside(at, step); err != nil {
				return nil, err
			}
		}
		found[target] = at
	}
	return found, nil
}

func stepsOf(path string) []string {
	steps := strings.Split(path[1:], "/")
	for i, step := range steps {
		steps[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(step)
	}
	return steps
}

// pointsInto reports whether mapping takes anything from the member of this name.
func pointsInto(mapping map[string]string, name string) bool {
	for _, path := range mapping {
		if stepsOf(path)[0] == name {
			return true
		}
	}
	return false
}

// inside is one step into a JSON value: a member of an object, or an item of a list.
func inside(at json.RawMessage, step string) (json.RawMessage, error) {
	if all, twice, err := object(at); err == nil {
		if slices.Contains(twice, step) {
			return nil, fmt.Errorf("the profile's %s %w", step, errTwice)
		}
		return all.get(step), nil
	}
	items := list(at)
	if i, err := strconv.ParseUint(step, 10, 31); err == nil && int(i) < len(items) {
		return items[i], nil
	}
	return nil, nil
}

// names are the texts in a list, a text alone, or the names of an object's members, as zitadel has
// its roles.
func names(raw json.RawMessage) (out []string) {
	if s := text(raw); s != "" {
		return []string{s}
	}
	if all, _, err := object(raw); err == nil {
		for _, m := range all {
			out = append(out, m.name)
		}
		return out
	}
	return texts(raw)
}

// flag is true, false, or nil for any other value.
func flag(raw json.RawMessage) *bool {
	is := string(raw) == "true"
	if !is && string(raw) != "false" {
		return nil
	}
	return &is
}
