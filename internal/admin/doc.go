// Package admin is what an operator does beside the workers, without a terminal: the doctor and its
// checks, the check of a provider, erasing or showing a user, accepting superseded tokens, and the
// rules of a keyring's rotation.
//
// Each operation takes open resources, or opens what it needs, and returns values. The commands
// print the values, as text or JSON. Where advice names a command, the caller says how renewd is
// called. Nothing here reads a flag, the environment or a terminal, and no token is returned.
package admin
