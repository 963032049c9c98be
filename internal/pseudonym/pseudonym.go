// Package pseudonym keeps user ids out of logs and spans, where people read of renewd's work: it
// puts a keyed hash in the place of each id.
//
// The package owns how an id is found in a text, and what stands there for it. Two things must
// hold: grant.Key writes itself so that the end of the id can be told, and subjects have known
// fronts. The package never changes an event, a record or an answer to a command. Safe for
// concurrent use.
package pseudonym

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/renewd/renewd/schema"
)

// Names replaces user ids. A nil *Names leaves everything as it is.
type Names struct {
	key  atomic.Pointer[[]byte]
	text *regexp.Regexp
}

// New returns Names that know the subjects of an installation, the subjects inside renewd before a
// prefix (fronts, "renewal.due" for instance), and its providers. Until Use was called every id is
// Unknown.
func New(fronts, providers []string) *Names {
	for _, t := range append(schema.Commands(), schema.Outcomes()...) {
		if t.PerUser() {
			fronts = append(fronts, string(t))
		}
	}
	// After the front of a subject: all that can be of a subject, also of a malformed subject.
	pattern := `(?:` + anyOf(fronts) + `)\.(?P<subject>\S+)`
	// What schema says of an id or a token that it refuses: schema cuts the id off and quotes it. A
	// malformed subject may have the user where the provider should be.
	pattern += `|\b(?:user|user token|provider) (?P<quoted>"(?:[^"\\]|\\.)*"…?)`
	// A grant's provider may have left the settings. renewd's errors have one of a few words before
	// the name of such a provider.
	provider := `\b(?:` + anyOf(beforeKey) + `) [a-z0-9][a-z0-9-]*`
	if len(providers) > 0 {
		provider += `|\b(?:` + anyOf(providers) + `)`
	}
	const quoted = `(?P<key>"(?:[^"\\]|\\.)*")`
	const plain = `(?P<plain>[A-Za-z0-9_](?:[A-Za-z0-9_@.|=~+-]*[A-Za-z0-9_=~+-])?)`
	pattern += `|(?:` + provider + `)/(?:` + quoted + `|` + plain + `)`
	return &Names{text: regexp.MustCompile(pattern)}
}

// beforeKey are the words after which the errors of renewd's packages name a grant.
var beforeKey = []string{"arm", "cancel", "erase", "grant", "of", "request", "wake", "whether"}

// anyOf matches one of the words, the longest first.
func anyOf(words []string) string {
	words = slices.Clone(words)
	slices.SortFunc(words, func(a, b string) int { return len(b) - len(a) })
	for i, w := range words {
		words[i] = regexp.QuoteMeta(w)
	}
	return strings.Join(words, "|")
}

// Use sets the key of the hash. All workers must have the same.
func (n *Names) Use(key []byte) {
	if n != nil {
		key = slices.Clone(key)
		n.key.Store(&key)
	}
}

// Unknown stands for every id as long as there is no key.
const Unknown = "u_unknown"

// Of is the pseudonym of a user id: "u_" and 12 of a-z and 2-7, 60 bits of an HMAC-SHA-256. Of ten
// million users no two will have the same, in all likelihood.
func (n *Names) Of(user string) string {
	if n == nil {
		return user
	}
	key := n.key.Load()
	if key == nil {
		return Unknown
	}
	return Hash(*key, user)
}

// Hash is Names.Of under this key.
func Hash(key []byte, user string) string {
	const letters = 12
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(user))
	return "u_" + strings.ToLower(base32.StdEncoding.EncodeToString(mac.Sum(nil)))[:letters]
}

// Text is s with every user id in s replaced: ids as grant.Key writes them, ids in a subject, and
// ids that schema quotes.
func (n *Names) Text(s string) string {
	if n == nil {
		return s
	}
	var b strings.Builder
	done := 0
	for _, at := range n.text.FindAllStringSubmatchIndex(s, -1) {
		for i, name := range n.text.SubexpNames() {
			if name == "" || at[2*i] < 0 {
				continue
			}
			b.WriteString(s[done:at[2*i]])
			b.WriteString(n.instead(name, s[at[2*i]:at[2*i+1]]))
			done = at[2*i+1]
		}
	}
	return b.String() + s[done:]
}

// instead is the replacement of a part of a text.
func (n *Names) instead(part, text string) string {
	switch part {
	case "subject":
		return n.subject(text)
	case "plain":
		return n.Of(text)
	}
	user, err := strconv.Unquote(strings.TrimSuffix(text, "…"))
	if err != nil {
		user = text
	}
	return n.Of(user)
}

// subject replaces the user after the front of a subject. In a malformed subject the user may begin
// anywhere, so everything but the provider is replaced.
func (n *Names) subject(rest string) string {
	text := strings.TrimRight(rest, "\"'`:.,;)]}…") // of the sentence that the subject stands in
	after := rest[len(text):]
	provider, token, two := strings.Cut(text, ".")
	if !two || schema.CheckProvider(provider) != nil {
		if strings.Trim(text, "*>.") == "" || text == "<provider>.<user>" {
			return rest // a filter, or how a subject is written
		}
		return n.Of(text) + after
	}
	if token == "*" || token == ">" {
		return rest
	}
	for _, end := range []string{".asked", ".later"} {
		if cut, ok := strings.CutSuffix(token, end); ok && !strings.Contains(cut, ".") {
			token, after = cut, end+after
		}
	}
	user, err := schema.UnescapeUser(token)
	if err != nil {
		user = token
	}
	return provider + "." + n.Of(user) + after
}
