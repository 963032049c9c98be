package schema

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Type names the kind of an event. It is the CloudEvents type and the front of the event's subject.
type Type string

// The commands any service may publish.
const (
	UserLogin      Type = "user.login"
	UserRefreshDue Type = "user.refresh_due"
	UserLogout     Type = "user.logout"
	UserSuspend    Type = "user.suspend"
	UserResume     Type = "user.resume"
)

// The outcomes renewd publishes.
const (
	UserSynced         Type = "user.synced"
	UserReauthRequired Type = "user.reauth_required"
	UserRefreshFailed  Type = "user.refresh_failed"
	UserSignedOut      Type = "user.signed_out"
	UserSuspended      Type = "user.suspended"
	UserForgotten      Type = "user.forgotten"
	MessageRejected    Type = "message.rejected"
	ProviderDegraded   Type = "provider.degraded"
	ProviderRecovered  Type = "provider.recovered"
	OperatorActed      Type = "operator.acted"
	TokenRead          Type = "token.read"
)

// Commands lists the types services publish.
func Commands() []Type {
	return []Type{UserLogin, UserRefreshDue, UserLogout, UserSuspend, UserResume}
}

// Outcomes lists the types renewd publishes.
func Outcomes() []Type {
	return []Type{
		UserSynced, UserReauthRequired, UserRefreshFailed, UserForgotten, MessageRejected,
		ProviderDegraded, ProviderRecovered, OperatorActed, UserSignedOut,
		UserSuspended, TokenRead,
	}
}

// Known reports whether t is one of this package's types.
func (t Type) Known() bool { return t.IsCommand() || slices.Contains(Outcomes(), t) }

// IsCommand reports whether services publish t: see Commands.
func (t Type) IsCommand() bool {
	return t == UserLogin || t == UserRefreshDue || t == UserLogout || t == UserSuspend ||
		t == UserResume
}

// perProvider reports whether t is about a whole provider: its subject then has no user.
func (t Type) perProvider() bool { return t == ProviderDegraded || t == ProviderRecovered }

// PerUser reports whether events of type t are about one user each.
func (t Type) PerUser() bool { return t.Known() && !t.perProvider() && !t.overall() }

// overall reports whether t is about the whole installation: its subject has neither provider nor
// user.
func (t Type) overall() bool { return t == OperatorActed }

// Address is the content of a subject: the type, the provider (but for operator.acted), and (but
// for provider events) the user, unescaped.
type Address struct {
	Type     Type
	Provider string
	User     string
	// Sender is the service a command came from. The NATS server puts the sender into the subject
	// where the service's account imports renewd's commands, so the service cannot choose it.
	// Empty: the command was published to renewd's own account.
	Sender string
}

// fromToken starts the subject of a command that names its sender.
const fromToken = "from."

// AnySender is the sender in filters that match the commands of all senders.
const AnySender = "*"

// ErrSubject is wrapped by every error about a subject, a provider id or a user id.
var ErrSubject = errors.New("malformed subject")

// Subjects builds and parses subjects under one optional prefix, which sets several installations
// apart on one NATS account. The zero value has no prefix.
type Subjects struct{ prefix string }

// MaxPrefix is the longest prefix, in bytes: the prefix starts the name of every stream too.
const MaxPrefix = 64

// NewSubjects returns subjects under prefix: empty, or tokens of letters, digits, "-" and "_"
// joined by dots, MaxPrefix bytes at most. Prefixes that differ only in "." and "_" give the same
// stream names. A prefix made of another prefix, "from" and one token more has the subjects of the
// other prefix's senders. Do not use such prefixes both on one account.
func NewSubjects(prefix string) (Subjects, error) {
	if prefix == "" {
		return Subjects{}, nil
	}
	if len(prefix) > MaxPrefix {
		return Subjects{}, fmt.Errorf("%w: prefix has %d bytes, %d at most", ErrSubject,
			len(prefix), MaxPrefix)
	}
	for token := range strings.SplitSeq(prefix, ".") {
		if token == "" ||
			strings.IndexFunc(token, func(r rune) bool {
				return r > 0x7e || !plain(byte(r))
			}) >= 0 {
			return Subjects{}, fmt.Errorf("%w: prefix %s: want tokens of letters, digits, - and "+
				"_ joined by dots", ErrSubject, quote(prefix))
		}
	}
	return Subjects{prefix: prefix + "."}, nil
}

// Prefix returns the prefix without its dot; empty without a prefix.
func (s Subjects) Prefix() string { return strings.TrimSuffix(s.prefix, ".") }

// Name puts the prefix before the name of a stream or bucket: "acme" and "LOGINS" give
// "acme_LOGINS". Dots of the prefix become "_", because names have none.
func (s Subjects) Name(base string) string {
	return strings.ReplaceAll(s.prefix, ".", "_") + base
}

// Of returns the subject of a. It panics on a type that is not Known, on a provider, user or sender
// that CheckProvider, CheckUser or CheckSender refuses, and on the sender of an outcome. Check at
// the door.
func (s Subjects) Of(a Address) string {
	if err := a.check(); err != nil {
		panic("schema: subject of " + string(a.Type) + ": " + err.Error())
	}
	front := s.front(a.Type, a.Sender)
	switch {
	case a.Type.overall():
		return front
	case a.Type.perProvider():
		return front + "." + a.Provider
	}
	return front + "." + a.Provider + "." + EscapeUser(a.User)
}

// front starts the subjects of a type.
func (s Subjects) front(t Type, sender string) string {
	if sender == "" {
		return s.prefix + string(t)
	}
	return s.prefix + fromToken + sender + "." + string(t)
}

func (a Address) check() error {
	if !a.Type.Known() {
		return fmt.Errorf("%w: unknown type %s", ErrSubject, quote(string(a.Type)))
	}
	if err := a.checkSender(); err != nil {
		return err
	}
	if a.Type.overall() {
		return nil
	}
	if err := CheckProvider(a.Provider); err != nil || a.Type.perProvider() {
		return err
	}
	return CheckUser(a.User)
}

func (a Address) checkSender() error {
	switch {
	case a.Sender == "":
		return nil
	case !a.Type.IsCommand():
		return fmt.Errorf("%w: %s from a sender: only commands have one", ErrSubject, a.Type)
	}
	return CheckSender(a.Sender)
}

// Commands returns the NATS filter that matches all commands of one type from one sender, or from
// AnySender, also commands with a malformed provider or user. An empty sender stands for commands
// without a sender. The result carries the prefix.
func (s Subjects) Commands(t Type, sender string) string { return s.front(t, sender) + ".>" }

// CommandsOf returns the NATS filters that match the commands of one type about one user, first
// commands without a sender. Provider and user go in unchanged: check a provider or user from
// outside.
func (s Subjects) CommandsOf(t Type, provider, user string) []string {
	about := "." + provider + "." + EscapeUser(user)
	return []string{s.front(t, "") + about, s.front(t, AnySender) + about}
}

// Filter returns the NATS filter that matches events of one type, but for commands that name their
// sender. An empty provider or user matches all. The result carries the prefix. The provider goes
// in unchanged: check a provider from outside.
func (s Subjects) Filter(t Type, provider, user string) string {
	if t.overall() {
		return s.prefix + string(t)
	}
	if provider == "" {
		provider = "*"
	}
	if t.perProvider() {
		return s.prefix + string(t) + "." + provider
	}
	if user == "" {
		if t == MessageRejected && provider == "*" {
			return s.prefix + string(t) + ".>"
		}
		return s.prefix + string(t) + "." + provider + ".*"
	}
	return s.prefix + string(t) + "." + provider + "." + EscapeUser(user)
}

// Parse is the inverse of Of. Its errors wrap ErrSubject and name the part at fault and the fault.
// A form that Of would not write is refused, so that one user has one subject. With an error Parse
// returns the readable parts.
func (s Subjects) Parse(subject string) (Address, error) {
	rest, ok := strings.CutPrefix(subject, s.prefix)
	if !ok {
		return Address{}, fmt.Errorf("%w: %s lacks the prefix %q", ErrSubject, quote(subject),
			s.Prefix())
	}
	a := Address{}
	if from, ok := strings.CutPrefix(rest, fromToken); ok {
		a.Sender, rest, _ = strings.Cut(from, ".")
		if err := CheckSender(a.Sender); err != nil {
			return Address{}, err
		}
	}
	// One part more than the longest form is enough to show that there are too many.
	parts := strings.SplitN(rest, ".", 5)
	if t := Type(rest); t.overall() {
		a.Type = t
		return a, a.checkSender()
	}
	if len(parts) < 3 {
		return a, fmt.Errorf("%w: %s: want <type>.<provider>.<user>", ErrSubject, quote(subject))
	}
	a.Type, a.Provider = Type(parts[0]+"."+parts[1]), parts[2]
	if !a.Type.Known() {
		return a, fmt.Errorf("%w: unknown type %s", ErrSubject, quote(string(a.Type)))
	}
	if err := a.checkSender(); err != nil {
		return a, err
	}
	if a.Type.overall() {
		return Address{Type: a.Type}, fmt.Errorf("%w: want %s and nothing more", ErrSubject, a.Type)
	}
	if err := CheckProvider(a.Provider); err != nil {
		return a, err
	}
	if a.Type.perProvider() {
		if len(parts) != 3 {
			return a, fmt.Errorf("%w: want %s.<provider> and nothing more", ErrSubject, a.Type)
		}
		return a, nil
	}
	if len(parts) != 4 {
		return a, fmt.Errorf("%w: want %s.<provider>.<user> with the user escaped to one token "+
			"(jane@example.com is %s)",
			ErrSubject, a.Type, EscapeUser("jane@example.com"))
	}
	user, err := UnescapeUser(parts[3])
	if err != nil {
		return a, err
	}
	a.User = user
	return a, nil
}

// MaxUser is the longest user id, in bytes.
const MaxUser = 256

// CheckProvider refuses an id that is not [a-z0-9][a-z0-9-]{0,31}. A provider's id is permanent:
// keys, subjects and encrypted records contain it.
func CheckProvider(id string) error { return checkName("provider", id) }

// CheckSender refuses a sender's name that is not [a-z0-9][a-z0-9-]{0,31}.
func CheckSender(name string) error { return checkName("sender", name) }

func checkName(what, name string) error {
	ok := len(name) >= 1 && len(name) <= 32 && name[0] != '-'
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		ok = c == '-' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
	}
	if !ok {
		return fmt.Errorf("%w: %s %s: want 1-32 of a-z, 0-9 and -, not starting with -", ErrSubject,
			what, quote(name))
	}
	return nil
}

// CheckUser refuses an id that is not 1-256 bytes of UTF-8 without control characters.
func CheckUser(id string) error {
	switch {
	case id == "":
		return fmt.Errorf("%w: user is empty", ErrSubject)
	case len(id) > MaxUser:
		return fmt.Errorf("%w: user has %d bytes, %d at most", ErrSubject, len(id), MaxUser)
	case !utf8.ValidString(id):
		return fmt.Errorf("%w: user %s is not UTF-8", ErrSubject, quote(id))
	case hasControl(id):
		return fmt.Errorf("%w: user %s has a control character", ErrSubject, quote(id))
	}
	return nil
}

// hasControl reports whether s holds a C0 or C1 control character. CloudEvents forbids control
// characters in attributes, and neither a header nor a terminal should see any.
func hasControl(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c < 0x20, c == 0x7f:
			return true
		case c >= utf8.RuneSelf:
			return strings.IndexFunc(s[i:], func(r rune) bool {
				return r < 0x20 || r >= 0x7f && r <= 0x9f
			}) >= 0
		}
	}
	return false
}

// maxQuote is the longest part of a stranger's text in an error, in bytes: shorter than any token.
const maxQuote = 24

// quote shows a stranger's text in an error, escaped and cut, so that neither a flood nor a whole
// token gets into a log.
func quote(s string) string {
	if len(s) <= maxQuote {
		return strconv.Quote(s)
	}
	end := maxQuote
	for end > maxQuote-utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	return strconv.Quote(s[:end]) + "…"
}

func plain(c byte) bool {
	return c == '-' || c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' ||
		c >= '0' && c <= '9'
}

const hexDigits = "0123456789ABCDEF"

// EscapeUser writes a user id as one subject token, which is also a valid NATS KV key: every byte
// outside [A-Za-z0-9_-] becomes =XX in upper-case hex ("auth0|abc" is "auth0=7Cabc").
func EscapeUser(id string) string {
	n := 0
	for i := 0; i < len(id); i++ {
		if !plain(id[i]) {
			n++
		}
	}
	if n == 0 {
		return id
	}
	b := make([]byte, 0, len(id)+2*n)
	for i := 0; i < len(id); i++ {
		if c := id[i]; plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '=', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return string(b)
}

// UnescapeUser is the inverse of EscapeUser. It refuses every form EscapeUser would not write.
// Errors wrap ErrSubject.
func UnescapeUser(token string) (string, error) {
	if len(token) > 3*MaxUser {
		return "", fmt.Errorf("%w: user token has %d bytes, %d at most", ErrSubject, len(token),
			3*MaxUser)
	}
	b := make([]byte, 0, len(token))
	for i := 0; i < len(token); i++ {
		c := token[i]
		if plain(c) {
			b = append(b, c)
			continue
		}
		if c != '=' || i+2 >= len(token) {
			return "", fmt.Errorf("%w: user token %s: write every byte outside A-Z a-z 0-9 _ "+
				"- as =XX", ErrSubject, quote(token))
		}
		hi, lo := strings.IndexByte(hexDigits, token[i+1]), strings.IndexByte(hexDigits, token[i+2])
		if hi < 0 || lo < 0 || plain(byte(hi<<4|lo)) {
			return "", fmt.Errorf("%w: user token %s: %q is not how that byte is written",
				ErrSubject, quote(token), token[i:i+3])
		}
		b = append(b, byte(hi<<4|lo))
		i += 2
	}
	id := string(b)
	if err := CheckUser(id); err != nil {
		return "", err
	}
	return id, nil
}
