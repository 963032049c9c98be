package hook

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

const (
	// askEvery is the least time between two calls to an issuer, whatever messages come.
	askEvery = 10 * time.Second
	// askLimit is how long one call to an issuer may take: senders wait some 15 seconds.
	askLimit = 6 * time.Second
)

// algorithms are the algorithms allowed for a token's signature. Each proves the signer, which a
// shared secret does not.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384,
	jose.PS512, jose.EdDSA,
}

// issuer verifies an issuer's signatures. The keys are fetched at first need, and again when a
// token names an unknown key, but at most once in askEvery: forgers cannot have the issuer called
// as often as they post. An issuer is safe for concurrent use.
type issuer struct {
	Config
	http *http.Client
	now  func() time.Time

	mu    sync.Mutex
	asked time.Time // when the issuer was called last
	keys  *oidc.RemoteKeySet
}

var (
	errAway   = errors.New("the issuer's keys cannot be had")
	errLately = errors.New("the issuer was called a moment ago")
)

func newIssuer(c Config, round http.RoundTripper, now func() time.Time) *issuer {
	i := &issuer{Config: c, now: now}
	i.http = &http.Client{
		Transport: gate{i, round}, Timeout: askLimit,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
	return i
}

// gate lets calls to the issuer through, one in askEvery, and takes no answer but 200.
type gate struct {
	*issuer
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (g gate) RoundTrip(req *http.Request) (*http.Response, error) {
	if !g.mayAsk() {
		return nil, errLately
	}
	resp, err := g.next.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAway, err)
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%w: %s answers %d", errAway, req.URL.Host, resp.StatusCode)
	}
	return resp, nil
}

func (i *issuer) mayAsk() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if now := i.now(); now.Sub(i.asked) >= askEvery {
		i.asked = now
		return true
	}
	return false
}

// known are the issuer's keys, once their address is known.
func (i *issuer) known(ctx context.Context) (*oidc.RemoteKeySet, error) {
	i.mu.Lock()
	keys := i.keys
	i.mu.Unlock()
	if keys != nil {
		return keys, nil
	}
	at := i.JWKS
	if at == "" {
		var err error
		if at, err = i.discover(ctx); err != nil {
			return nil, err
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.keys == nil {
		i.keys = oidc.NewRemoteKeySet(oidc.ClientContext(context.Background(), i.http), at)
		i.asked = time.Time{} // the keys may be asked for at once
	}
	return i.keys, nil
}

// discover reads the issuer's discovery document.
func (i *issuer) discover(ctx context.Context) (string, error) {
	ctx, done := context.WithTimeout(oidc.ClientContext(ctx, i.http), askLimit)
	defer done()
	// The document's own issuer may end in a slash, or not.
	found, err := oidc.NewProvider(oidc.InsecureIssuerURLContext(ctx, i.Issuer), i.Issuer)
	switch {
	case errors.Is(err, errLately), errors.Is(err, errAway):
		return "", err
	case err != nil: // go-oidc quotes an answer that it does not like
		return "", fmt.Errorf("%w: no OpenID configuration at %s", errAway, i.Issuer)
	}
	var document struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := found.Claims(&document); err != nil || !same(document.Issuer, i.Issuer) {
		return "", fmt.Errorf("%w: the OpenID configuration at %s is not of that issuer", errAway,
			i.Issuer)
	}
	if err := checkURL(document.Keys, i.AllowHTTP); err != nil {
		return "", fmt.Errorf("%w: the OpenID configuration's jwks_uri: %w", errAway, err)
	}
	return document.Keys, nil
}

// same reports whether two issuers are equal: a slash at the end makes no difference.
func same(a, b string) bool { return strings.TrimSuffix(a, "/") == strings.TrimSuffix(b, "/") }

// verify checks a token's signature, and returns its type and its claims. Its error is a *refusal,
// or says that the keys cannot be had.
func (i *issuer) verify(ctx context.Context, token string) (typ string, claims []byte, err error) {
	jws, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil || len(jws.Signatures) != 1 || strings.Count(token, ".") != 2 {
		return "", nil, refuse(Malformed, "want one token that is signed with a private key")
	}
	keys, err := i.known(ctx)
	if err != nil {
		return "", nil, err
	}
	claims, err = keys.VerifySignature(ctx, token) // its algorithm was checked above
	switch {
	case errors.Is(err, errLately):
		return "", nil, &refusal{
			result: Forged, words: "signed with a key that the issuer did not have a moment ago",
			again: true,
		}
	case errors.Is(err, errAway), ctx.Err() != nil:
		return "", nil, err
	case err != nil:
		return "", nil, refuse(Forged, "the signature cannot be verified with the issuer's keys")
	}
	typ, _ = jws.Signatures[0].Header.ExtraHeaders[jose.HeaderType].(string)
	return strings.ToLower(strings.TrimPrefix(typ, "application/")), claims, nil
}
