package schema

// The streams services meet, before a prefix: Subjects.Name adds the prefix.
const (
	StreamLogins   = "LOGINS"   // logins and logouts
	StreamRequests = "REQUESTS" // requests to renew
	StreamOutcomes = "OUTCOMES" // all that renewd publishes
)

// BucketKeys is the NATS KV bucket of the public keys logins are sealed to, before a prefix.
const BucketKeys = "renewd_keys"

// The keys of BucketKeys.
const (
	KeyPublic = "jwks"   // the public keys, as a JSON Web Key Set (RFC 7517)
	KeySigned = "signed" // the same set, signed by an offline root
)
