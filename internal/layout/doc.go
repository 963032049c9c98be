// Package layout holds the repository against its own rules: which package may import which, that
// each package says what it is for, and what the code never does.
//
// It has only tests. They parse the source themselves rather than ask the go command, so that a
// cached result cannot hide a change.
package layout
