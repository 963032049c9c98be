package settings

// MistakeError is a mistake in the settings or on the command line: the command fails again until
// the mistake is corrected, so waiting does not help.
type MistakeError struct{ err error }

// Mistake makes a MistakeError of err, with the same text.
func Mistake(err error) error { return MistakeError{err} }

// Error is the text of the mistake, which names the setting or the flag.
func (e MistakeError) Error() string { return e.err.Error() }

// Unwrap is the cause.
func (e MistakeError) Unwrap() error { return e.err }
