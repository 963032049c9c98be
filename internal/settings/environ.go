package settings

import (
	"slices"
	"strings"
)

// Environ is the environment of a process, KEY=value each.
type Environ []string

func (e Environ) Get(name string) string {
	for _, kv := range slices.Backward(e) {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}
