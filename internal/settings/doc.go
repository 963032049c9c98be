// Package settings is everything an operator can set: one documented struct, read from a file and
// the environment, checked as a whole, and printed without its secrets.
//
// The package owns the settings' names, defaults, ranges and meanings: the comments and tags of
// Settings and of the structs in it. The table in the README is made from the comments and tags.
// The package opens only the settings file and files named by settings, such as secrets and
// certificates, and makes no connection. The caller gives it the environment.
//
// To add a setting, add a field with its comment and tags. Compare the field with other settings in
// check, if need be, and put the new table into the README: renewd config print --docs.
package settings
