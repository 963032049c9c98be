package storetest

import "github.com/renewd/renewd/internal/grant"

// SignedIn is the record of a user whose login the provider has proven: what a store holds when a
// login and its first renewal are long over.
func SignedIn(k grant.Key, pair grant.Pair, login grant.Order, t grant.Turn) grant.Grant {
	t.Policy = t.Policy.WithDefaults()
	login.Token = pair.Refresh.Fingerprint()
	g, _ := grant.LoggedIn(grant.Grant{}, k, grant.Candidate{Pair: pair, Login: login}, t)
	return g.AsCandidate().Proven(t)
}
