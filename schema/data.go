package schema

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// dataOf lists the types whose data is v's struct; nil for a struct of another package.
func dataOf(v any) []Type {
	switch v.(type) {
	case Login:
		return []Type{UserLogin}
	case RefreshDue:
		return []Type{UserRefreshDue}
	case Logout:
		return []Type{UserLogout}
	case Suspend:
		return []Type{UserSuspend}
	case Resume:
		return []Type{UserResume}
	case Synced:
		return []Type{UserSynced}
	case ReauthRequired:
		return []Type{UserReauthRequired}
	case RefreshFailed:
		return []Type{UserRefreshFailed}
	case SignedOut:
		return []Type{UserSignedOut}
	case Suspended:
		return []Type{UserSuspended}
	case Forgotten:
		return []Type{UserForgotten}
	case Rejected:
		return []Type{MessageRejected}
	case ProviderState:
		return []Type{ProviderDegraded, ProviderRecovered}
	case Acted:
		return []Type{OperatorActed}
	case Reading:
		return []Type{TokenRead}
	}
	return nil
}

// Data decodes the data of e and checks the data. Its error is a *Malformed that names the field.
// Unknown fields are ignored, except a seemingly misspelt field of a command that seals nothing.
// The structs of this package take the data of their own types of events only, since any JSON
// object would do for most. For other data the field in the error is "type".
func Data[T any](e Event) (T, error) {
	var v T
	if want := dataOf(v); want != nil && !slices.Contains(want, e.Type) {
		return v,
			&Malformed{
				RejectData, "type",
				fmt.Sprintf("%s, not %s: look at the type of an event before its data",
					quote(string(e.Type)), want[0]),
			}
	}
	if len(e.Data) > 0 {
		if err := json.Unmarshal(e.Data, &v); err != nil {
			field := "data"
			if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && te.Field != "" {
				field = te.Field
			}
			return v, &Malformed{RejectData, field, "does not fit the schema of " + string(e.Type)}
		}
	}
	switch any(v).(type) {
	case RefreshDue, Logout, Suspend, Resume:
		if m := checkMembers[T](e.Data); m != nil {
			return v, m
		}
	}
	if c, ok := any(v).(interface{ check() *Malformed }); ok {
		if m := c.check(); m != nil {
			return v, m
		}
	}
	return v, nil
}

// checkMembers refuses members of data that resemble members of T: a command with misspelt words
// would be answered as if it wanted nothing. Members a later version may add are ignored.
func checkMembers[T any](data json.RawMessage) *Malformed {
	var members map[string]json.RawMessage
	if json.Unmarshal(data, &members) != nil {
		return nil // no object: Data has returned the error
	}
	var known []string
	for i, t := 0, reflect.TypeFor[T](); i < t.NumField(); i++ {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		known = append(known, name)
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if slices.Contains(known, name) {
			continue
		}
		if i := slices.IndexFunc(known, func(k string) bool { return misspelt(name, k) }); i >= 0 {
			return &Malformed{
				RejectData, known[i],
				"missing, but there is " + quote(name) + ": did you mean " + known[i] + "?",
			}
		}
	}
	return nil
}

// misspelt reports whether a is b with other capitals, signs or order of its letters, or with one
// letter more, less or instead.
func misspelt(a, b string) bool {
	letters := map[rune]int{}
	length := 0
	for sign, word := range map[int]string{1: a, -1: b} {
		for _, r := range strings.ToLower(word) {
			if r != '_' && r != '-' {
				letters[r] += sign
				length += sign
			}
		}
	}
	differ := 0
	for _, n := range letters {
		differ += max(n, -n)
	}
	return differ <= 1 || differ == 2 && length == 0
}

func (l Login) check() *Malformed {
	if l.Tokens == "" {
		return &Malformed{
			RejectData, "tokens", "missing: seal the tokens to renewd's public key first",
		}
	}
	return nil
}

// Limits of a service's requests.
const (
	MaxMinValid = 86400 // of min_valid_seconds: a day
	MaxReason   = 256   // of reason, in bytes
)

func (r RefreshDue) check() *Malformed {
	switch {
	case r.Want != "" && r.Want != WantProfile && r.Want != WantTokens:
		return &Malformed{RejectData, "want", fmt.Sprintf("want %q or %q", WantProfile, WantTokens)}
	case r.MinValidSeconds < 0 || r.MinValidSeconds > MaxMinValid:
		return &Malformed{
			RejectData, "min_valid_seconds",
			fmt.Sprintf("%d: want 0 to %d", r.MinValidSeconds, MaxMinValid),
		}
	}
	return checkReason(r.Reason)
}

func (l Logout) check() *Malformed { return checkReason(l.Reason) }

func (s Suspend) check() *Malformed { return checkReason(s.Reason) }

func (r Resume) check() *Malformed { return checkReason(r.Reason) }

func checkReason(reason string) *Malformed {
	switch {
	case len(reason) > MaxReason:
		return &Malformed{RejectData, "reason",
			fmt.Sprintf("has %d bytes: want at most %d", len(reason), MaxReason)}
	case hasControl(reason):
		return &Malformed{RejectData, "reason", "has a control character"}
	}
	return nil
}
