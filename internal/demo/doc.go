// Package demo is an app whose users sign in at a stand-in for a provider. It shows renewd at work
// where there is no app yet: the dev and stand-in commands run it.
//
// The app reaches renewd as any service does, by its own connection, package publishers and package
// consumers. The package is no part of a production process.
package demo
