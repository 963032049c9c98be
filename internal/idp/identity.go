package idp

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// leeway is how far the provider's clock may be off.
const leeway = 5 * time.Minute

// identities checks ID tokens (OpenID Connect Core section 3.1.3.7).
type identities struct {
	verifier *oidc.IDTokenVerifier
	away     *atomic.Bool // the last fetch of the provider's keys failed
}

// identities makes the checker of ID tokens for a discovered provider.
func (p *Provider) identities(found *oidc.Provider) identities {
	away := new(atomic.Bool)
	keys := &http.Client{
		Transport: &door{base: p.round, every: p.header, away: away}, Timeout: p.config.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
	// The expiry is checked against the provider's clock, which the verifier does not know.
	c := &oidc.Config{ClientID: p.config.ClientID, SkipExpiryCheck: true}
	return identities{
		found.VerifierContext(oidc.ClientContext(context.Background(), keys), c), away,
	}
}

// Identify is UserInfo for a provider without a userinfo endpoint (Config.NoUserInfo): the profile
// is in the ID token id. The ID token counts if the provider signed it for this client and issued
// it with the access token access: the claim at_hash has the hash of access. A token endpoint may
// leave the claim out (section 3.1.3.6; Entra does). Then the ID token counts only if answered is
// true: renewd got both tokens in one answer of the provider.
//
// The error is grant.ErrAccessRefused if id is missing, was not issued with access or has expired:
// the next refresh may bring a good ID token. The error is grant.ErrSubjectMismatch if id is about
// another user. Every other error is a *grant.Fault: Unsent if the provider's keys cannot be
// fetched, Unknown if id is not to be trusted or names no user.
func (p *Provider) Identify(
	ctx context.Context, id, access secret.Value, answered bool, user string,
) (schema.Profile, error) {
	// This check comes first, since the provider may have given up the keys of an old ID token.
	if !boundTo(id.Reveal(), access.Reveal(), answered) || p.expired(id.Reveal()) {
		return schema.Profile{}, grant.ErrAccessRefused
	}
	e, err := p.discover(ctx)
	if err != nil {
		return schema.Profile{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	fault := func(class grant.Class, err error) (schema.Profile, error) {
		return schema.Profile{}, &grant.Fault{Class: class, Op: "id_token", Err: err}
	}
	token, err := e.identities.verifier.Verify(ctx, id.Reveal())
	switch {
	case err != nil && (e.identities.away.Load() || ctx.Err() != nil):
		return fault(grant.Unsent, errors.New("the provider's keys cannot be fetched from its "+
			"jwks_uri"))
	case err != nil: // go-oidc quotes parts of a rejected token
		return fault(grant.Unknown, errors.New("the ID token is not one that this provider "+
			"signed for this client"))
	case token.AccessTokenHash != "" && token.VerifyAccessToken(access.Reveal()) != nil:
		// the hash is not by the algorithm of the signature
		return schema.Profile{}, grant.ErrAccessRefused
	}
	var claims json.RawMessage
	if err := token.Claims(&claims); err != nil {
		return fault(grant.Unknown, errors.New("the ID token has no claims"))
	}
	u, err := parseProfile(claims, p.config.Subject, p.mapping)
	if err != nil {
		return fault(grant.Unknown, err)
	}
	switch u.subject(p.config.Subject) {
	case user:
		return u.profile(user), nil
	case "":
		return fault(grant.Unknown, fmt.Errorf("the ID token has no %s: it names no user",
			p.config.Subject))
	}
	return schema.Profile{}, grant.ErrSubjectMismatch
}

// boundTo reports whether an ID token was issued with access. Either the ID token has the left half
// of a SHA-2 hash of access (OpenID Connect Core section 3.1.3.6), or the ID token has no such hash
// and both tokens came in one answer. Identify checks later that the hash is by the signature's
// algorithm.
func boundTo(id, access string, answered bool) bool {
	_, payload, _ := strings.Cut(id, ".")
	payload, _, _ = strings.Cut(payload, ".")
	decoded, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return false
	}
	claims, _, _ := members(decoded)
	if claims.index("at_hash") < 0 {
		return answered
	}
	for _, h := range []hash.Hash{sha256.New(), sha512.New384(), sha512.New()} {
		h.Write([]byte(access))
		half := h.Sum(nil)[:h.Size()/2]
		if text(claims.get("at_hash")) == base64.RawURLEncoding.EncodeToString(half) {
			return true
		}
	}
	return false
}

// expired reports whether an ID token has expired by the provider's clock, as far as the provider's
// last answer told the time.
func (p *Provider) expired(id string) bool {
	_, expires := jwtTimes(id)
	now := p.now().Add(time.Duration(p.ahead.Load()))
	return time.Unix(int64(expires), 0).Add(leeway).Before(now)
}
