package main

import "context"

type (
	steadyOptions struct{}
	scaleOptions  struct{}
	replayRow     struct{}
	steadyRow     struct{}
	scaleRow      struct{}
)

func (b *bench) replay(context.Context) error { return nil }
func (b *bench) steady(context.Context) error { return nil }
func (b *bench) scale(context.Context) error  { return nil }
