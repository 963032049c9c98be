// Package senders says which services may publish which commands for which providers, how many
// commands, and whose users they may read about.
//
// A sender is the service whose NATS account a command came from, by the name that the NATS server
// writes into the command's subject. The package owns the operator's list of rights and holds
// commands against the list. It reads nothing of a command but its type, provider and sender. A
// finished List is safe for concurrent use.
package senders

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/renewd/renewd/schema"
)

// Rights are what a sender may: the lists are ids of providers.
type Rights struct {
	Login []string // publish user.login
	Ask   []string // publish user.refresh_due
	// Logout: publish user.logout. The right to sign users in does not include this right.
	Logout []string
	// Suspend: publish user.suspend and user.resume.
	Suspend []string
	Read    []string // hear of the provider's users; Everything: of all
	// Rate is how many commands of each type a second, after Burst of them at once; 0: any number.
	// A Burst of 0 is ten seconds' worth.
	Rate  float64
	Burst int
}

// HTTP is the sender of commands that came over HTTP. The clients' own rights were checked before
// the commands were published, so a List lets all such commands in. No service may have this name:
// only renewd's own account can publish under it.
const HTTP = "http"

// Operator is the sender of operators' commands from renewd's own command line: to suspend and to
// resume users. No service may have this name: only the operator's NATS user can publish under it.
const Operator = "operator"

// Source is the sender of logins that renewd itself takes from the sources of its settings. No
// service may have this name: only renewd's own account can publish under it.
const Source = "sources"

// CheckName refuses a name of a sink or a source that schema.CheckSender would not take as a
// sender's.
func CheckName(name string) error {
	if schema.CheckSender(name) != nil {
		return errors.New("want 1-32 of a-z, 0-9 and -, not starting with -")
	}
	return nil
}

// IsOperators reports whether commands of this type are an operator's, and a service's only if the
// service has the right.
func IsOperators(of schema.Type) bool { return of == schema.UserSuspend || of == schema.UserResume }

// List has the rights of each sender, by its name. An empty List lets every command in.
type List map[string]Rights

// Refuse says why the list does not let a command in; nil if the list does. The error is a
// *schema.Malformed.
func (l List) Refuse(e schema.Event) error {
	if len(l) == 0 || e.Sender == HTTP || e.Sender == Operator && IsOperators(e.Type) ||
		e.Sender == Source && e.Type == schema.UserLogin {
		return nil
	}
	refuse := func(message string) error {
		return &schema.Malformed{Reason: schema.RejectSender, Field: "sender", Message: message}
	}
	if e.Sender == "" {
		return refuse("the command names no sender, and renewd's setting senders says who may " +
			"publish: give the service a NATS account whose import names it, " +
			"as renewd nats config prints it")
	}
	rights, known := l[e.Sender]
	if !known {
		return refuse(fmt.Sprintf("%s is not in renewd's setting senders", e.Sender))
	}
	right, providers := rights.of(e.Type)
	if slices.Contains(providers, e.Provider) {
		return nil
	}
	return refuse(fmt.Sprintf("%s may not publish %s for %s: "+
		"renewd's setting senders.%s.%s does not name that provider",
		e.Sender, e.Type, e.Provider, e.Sender, right))
}

// Everything, among the providers that a sender may read, stands for all providers, and for
// outcomes of no provider.
const Everything = "*"

// LimitsReading reports whether the list limits the reading of any sender.
func (l List) LimitsReading() bool {
	for _, rights := range l {
		if len(rights.Read) > 0 {
			return true
		}
	}
	return false
}

// MayRead reports whether a sender may read about the users of a provider. A list that limits no
// reading lets each sender read everything. Else only the named providers may be read.
func (l List) MayRead(sender, provider string) bool {
	return l.MayReadAll(sender) || slices.Contains(l[sender].Read, provider)
}

// MayReadTokens reports whether a sender may read access tokens of the users of a provider. An
// empty list lets each sender read, as it lets every command in. Else a sender may read only the
// providers in its own Read: a list that limits commands alone opens no tokens.
func (l List) MayReadTokens(sender, provider string) bool {
	if len(l) == 0 {
		return true
	}
	read := l[sender].Read
	return sender != "" && (slices.Contains(read, provider) || slices.Contains(read, Everything))
}

// MayReadAll reports whether a sender may read everything.
func (l List) MayReadAll(sender string) bool {
	return !l.LimitsReading() || slices.Contains(l[sender].Read, Everything)
}

// Readable are the providers that a sender may read about, where it may not read everything.
func (l List) Readable(sender string) []string {
	return slices.Sorted(slices.Values(l[sender].Read))
}

// Exceeds reports whether the filters of a durable let outcomes through that a sender may not read.
// The filters are of subjects of outcomes without a prefix. A durable without filters lets
// everything through.
func (l List) Exceeds(sender string, filters []string) bool {
	if l.MayReadAll(sender) {
		return false
	}
	return len(filters) == 0 || slices.ContainsFunc(filters, func(filter string) bool {
		const provider = 2 // after the two tokens of the type
		tokens := strings.Split(filter, ".")
		return len(tokens) <= provider || tokens[0] == ">" || tokens[1] == ">" ||
			!slices.Contains(l[sender].Read, tokens[provider])
	})
}

// of is the right that a command needs, as the settings call it, and the right's providers.
func (r Rights) of(command schema.Type) (right string, providers []string) {
	switch command {
	case schema.UserLogin:
		return "login", r.Login
	case schema.UserLogout:
		return "logout", r.Logout
	case schema.UserSuspend, schema.UserResume:
		return "suspend", r.Suspend
	}
	return "ask", r.Ask
}
