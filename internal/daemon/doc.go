// Package daemon is renewd as one running thing: it opens what the settings name, joins the parts,
// and runs them so that a part ends after all parts that depend on it. The serve and dev commands
// start the daemon.
//
// The package owns the order of start and stop, the status server (health, metrics, public key,
// schemas), telemetry, and the keyring as its file has it now. It holds no rule of a renewal, reads
// no flag and writes to no terminal: its caller passes the settings, the environment and a log.
//
// Resources are the part that commands use too, beside workers at work: a connection, the streams
// and the store, without any service.
package daemon
