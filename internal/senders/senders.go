// Package senders says which services may publish which commands for which providers.
//
// A sender is the service whose NATS account a command came from, by the name that the NATS server
// writes into the command's subject. The package owns the operator's list of rights and holds
// commands against it; it reads nothing of a command but its type, provider and sender. A List is
// safe for concurrent use once it is made.
package senders

import (
	"fmt"
	"slices"

	"github.com/renewd/renewd/schema"
)

// Rights are the ids of the providers that a sender may publish commands for.
type Rights struct {
	Login []string // user.login
	Ask   []string // user.refresh_due
}

// List has the rights of each sender, by its name. An empty one lets every command in.
type List map[string]Rights

// Refuse says why the list does not let a command in; nil if it does. The error is a
// *schema.Malformed.
func (l List) Refuse(e schema.Event) error {
	if len(l) == 0 {
		return nil
	}
	refuse := func(message string) error {
		return &schema.Malformed{Reason: schema.RejectSender, Field: "sender", Message: message}
	}
	if e.Sender == "" {
		return refuse("the command names no sender, and renewd's setting senders says who may publish: " +
			"give the service a NATS account whose import names it, as renewd nats config prints it")
	}
	rights, known := l[e.Sender]
	if !known {
		return refuse(fmt.Sprintf("%s is not in renewd's setting senders", e.Sender))
	}
	right, providers := "ask", rights.Ask
	if e.Type == schema.UserLogin {
		right, providers = "login", rights.Login
	}
	if slices.Contains(providers, e.Provider) {
		return nil
	}
	return refuse(fmt.Sprintf("%s may not publish %s for %s: "+
		"renewd's setting senders.%s.%s does not name that provider",
		e.Sender, e.Type, e.Provider, e.Sender, right))
}
