package main

import (
	"context"
	"net/url"
	"time"

	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// holdFlags are common to suspend and resume.
type holdFlags struct {
	userFlags
	byFlags
	Reason  string        `placeholder:"TEXT" help:"Why, for the audit."`
	Timeout time.Duration `type:"duration" default:"90s" placeholder:"DURATION" help:"How long to wait for the outcome. Default: 90s."`
	Output  string        `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// publish sends a command as an operator does, waits for the outcome and shows it.
func (f holdFlags) publish(ctx context.Context, a *app, c *cli, done schema.Type, do send) error {
	by, err := f.who(a)
	if err != nil {
		return err
	}
	return publishFlags{
		clientFlags: f.clientFlags, Provider: f.Provider, User: f.User,
		Source: "/operators/" + url.PathEscape(by), Sender: senders.Operator,
		Wait: true, Timeout: f.Timeout, Output: f.Output, done: done,
	}.publish(ctx, a, c, do)
}

// asOperator makes the operator an event's sender, which gives the event its right.
func asOperator(e *schema.Event) { e.Sender = senders.Operator }

type userSuspend struct{ holdFlags }

// Run suspends a user.
func (u userSuspend) Run(ctx context.Context, a *app, c *cli) error {
	do := func(
		ctx context.Context, pub *publishers.Publisher, provider, user string,
	) (publishers.Receipt, error) {
		return pub.Suspend(ctx, provider, user, schema.Suspend{Reason: u.Reason}, asOperator)
	}
	return u.publish(ctx, a, c, schema.UserSuspended, do)
}

type userResume struct{ holdFlags }

// Run ends a suspension.
func (u userResume) Run(ctx context.Context, a *app, c *cli) error {
	do := func(
		ctx context.Context, pub *publishers.Publisher, provider, user string,
	) (publishers.Receipt, error) {
		return pub.Resume(ctx, provider, user, schema.Resume{Reason: u.Reason}, asOperator)
	}
	return u.publish(ctx, a, c, schema.UserSynced, do)
}
