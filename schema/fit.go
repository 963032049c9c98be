package schema

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
)

// Fit makes the data of an outcome fit into limit bytes, by FitProfile, if a profile is the reason
// why it does not fit. Data that fits is returned unchanged, and so is data without a profile.
func Fit(data json.RawMessage, limit int) json.RawMessage {
	if len(data) <= limit {
		return data
	}
	var doc map[string]json.RawMessage
	if json.Unmarshal(data, &doc) != nil || len(doc["profile"]) == 0 {
		return data
	}
	var p Profile
	if json.Unmarshal(doc["profile"], &p) != nil {
		return data
	}
	rest := len(data) - len(doc["profile"])
	fitted, err := json.Marshal(FitProfile(p, limit-rest))
	if err != nil {
		return data
	}
	doc["profile"] = fitted
	if fitted, err = json.Marshal(doc); err != nil {
		return data
	}
	return fitted
}

// FitProfile leaves parts out of p until p fits into limit bytes of JSON, and lists these parts in
// Omitted. First goes the provider's own JSON, then the organisations, the groups, the roles, then
// all but the id. An id alone is returned whatever the limit.
func FitProfile(p Profile, limit int) Profile {
	fits := func() bool {
		text, err := json.Marshal(p)
		return err == nil && len(text) <= limit
	}
	if fits() {
		return p
	}
	omitted := slices.Clone(p.Omitted)
	for _, part := range []struct {
		name  string
		there bool
		drop  func()
	}{
		{"raw", p.Raw != nil, func() { p.Raw = nil }},
		{"organisations", p.Organisations != nil, func() { p.Organisations = nil }},
		{"groups", p.Groups != nil, func() { p.Groups = nil }},
		{"roles", p.Roles != nil, func() { p.Roles = nil }},
	} {
		if !part.there {
			continue
		}
		omitted = append(omitted, part.name)
		part.drop()
		if p.Omitted = omitted; fits() {
			return p
		}
	}
	return Profile{ID: p.ID, Omitted: append(omitted, p.members()...)}
}

// members are the JSON names of p's non-zero fields but the id and Omitted.
func (p Profile) members() (names []string) {
	v := reflect.ValueOf(p)
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		if name != "id" && name != "omitted" && !v.Field(i).IsZero() {
			names = append(names, name)
		}
	}
	return names
}
