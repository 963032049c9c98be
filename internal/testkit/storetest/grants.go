package storetest

import "github.com/renewd/renewd/internal/grant"

// SignedIn is the record of a user whose login the provider has proven. A store holds such a record
// when a login and its first renewal are long over.
func SignedIn(k grant.Key, pair grant.Pair, login grant.Position, t grant.Turn) grant.Grant {
	var policy grant.Policy
	if t.Policy != nil {
		policy = *t.Policy
	}
	policy = policy.WithDefaults()
	t.Policy = &policy
	login.Token = pair.Refresh.Fingerprint()
	g, _ := grant.LoggedIn(grant.Grant{}, k, grant.Candidate{Pair: pair, Login: login}, t)
	return g.AsCandidate().Proven(t)
}
