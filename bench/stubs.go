package main

import "context"

type (
	steadyOptions    struct{}
	scaleOptions     struct{}
	jetStreamCommand struct{}
	natsCommand      struct{}
	storeCommand     struct{}
)

func (jetStreamCommand) Run() error            { return nil }
func (natsCommand) Run() error                 { return nil }
func (storeCommand) Run() error                { return nil }
func (b *bench) latency(context.Context) error { return nil }
func (b *bench) rss(context.Context) error     { return nil }
func (b *bench) kills(context.Context) error   { return nil }
func (b *bench) replay(context.Context) error  { return nil }
func (b *bench) steady(context.Context) error  { return nil }
func (b *bench) scale(context.Context) error   { return nil }
