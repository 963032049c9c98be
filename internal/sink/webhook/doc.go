// Package webhook delivers outcomes to an HTTP endpoint as Standard Webhooks 1.0.0 has it, or as
// Security Event Tokens (RFC 8417) with CAEP's events: signed, with an id that stays the same over
// retries.
//
// The package answers for the bytes that leave renewd: by default it connects to no private network
// and follows no redirect. Package sink does all retries. The package's errors show nothing of the
// outcome, the secrets, or the endpoint's answer but the status.
package webhook
