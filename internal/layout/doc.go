// Package layout holds the repository against its own rules: which package may import which, that
// each one says what it is for, and what the code never does.
//
// It has no code of its own, only tests. They parse the source themselves rather than ask the go
// command, so that a cached result cannot hide a change.
package layout
