// Package keyfile keeps the keyring in a file, or in one file for each use of its keys. It makes,
// reads and replaces these files. Where the settings name programs to encrypt and decrypt, the keys
// go through these programs.
//
// A process that needs the keys of one use reads one file: a reader of the store then opens no
// logins. A file of one use that has other keys is refused.
//
// A file is replaced as a whole, so that either the old or the new keyring is there at any time, a
// power cut included. A keyring that could not be read back is not written. A file that other users
// may write to is refused. The package does not know what the keys are for: package seal does.
package keyfile
