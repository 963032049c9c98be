package admin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

func sortedKeys[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }

// volatile suggests which members to leave out of changes: the members that differ merely by
// another access token.
func (x *inquiry) volatile(before, after schema.Profile) {
	var old, now map[string]json.RawMessage
	if json.Unmarshal(before.Raw, &old) != nil || json.Unmarshal(after.Raw, &now) != nil {
		return
	}
	var moved []string
	for _, name := range sortedKeys(now) {
		if !bytes.Equal(old[name], now[name]) && !grant.Volatile(name) &&
			!slices.Contains(x.settings.GrantPolicy().Volatile, name) {
			moved = append(moved, name)
		}
	}
	if len(moved) > 0 {
		x.suggest("volatile", "["+strings.Join(moved, ", ")+"]",
			"they differ after a refresh alone, so that each renewal would be a change")
	}
}

// elsewhere suggests where groups and roles are, if missing at their usual place.
func (x *inquiry) elsewhere(p schema.Profile) {
	var raw any
	if len(p.Organisations) > 0 || json.Unmarshal(p.Raw, &raw) != nil {
		return // organisations have them
	}
	for field, has := range map[string]bool{
		"groups": len(p.Groups) > 0,
		"roles":  len(p.Roles) > 0,
	} {
		if at := find(raw, "", strings.TrimSuffix(field, "s"), 4); !has && at != "" {
			x.suggest("profile", fmt.Sprintf("{%s: %s}", field, strconv.Quote(at)),
				"looks like the user's "+field)
		}
	}
}

// find is the JSON pointer (RFC 6901) of a list of texts, or of an object, whose name has word in
// it; empty if v has no such member down to depth deep.
func find(v any, at, word string, deep int) string {
	object, ok := v.(map[string]any)
	if !ok || deep == 0 {
		return ""
	}
	for _, name := range sortedKeys(object) {
		pointer := at + "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
		if strings.Contains(strings.ToLower(name), word) && names(object[name]) {
			return pointer
		}
		if found := find(object[name], pointer, word, deep-1); found != "" {
			return found
		}
	}
	return ""
}

// names reports whether v can be a list of names: of texts, or an object by its members' names.
func names(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		return len(v) > 0 &&
			!slices.ContainsFunc(slices.Collect(maps.Values(v)), func(m any) bool {
				return !objectLike(m)
			})
	case []any:
		return len(v) > 0 &&
			!slices.ContainsFunc(v, func(m any) bool { _, text := m.(string); return !text })
	}
	return false
}

func objectLike(v any) bool { _, ok := v.(map[string]any); return ok }
