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
	"github.com/renewd/renewd/schema"
)

// leeway is by how much the provider's clock may be off.
const leeway = 5 * time.Minute

// identities checks ID tokens (OpenID Connect Core section 3.1.3.7).
type identities struct {
	verifier *oidc.IDTokenVerifier
	away     *atomic.Bool // the provider's keys could not be fetched when they were wanted last
}

// identities makes what checks the ID tokens of a provider that was discovered.
func (p *Provider) identities(found *oidc.Provider) identities {
	away := new(atomic.Bool)
	keys := &http.Client{
		Transport: &door{base: p.round, every: p.header, away: away}, Timeout: p.config.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	// Its expiry is checked against the provider's clock, which the verifier does not know.
	c := &oidc.Config{ClientID: p.config.ClientID, SkipExpiryCheck: true}
	return identities{found.VerifierContext(oidc.ClientContext(context.Background(), keys), c), away}
}

// Identify is UserInfo for a provider that has no userinfo endpoint (Config.NoUserInfo): the profile
// is in the ID token id. It counts if the provider signed it for this client and for access, the
// access token that it was issued with: it has the hash of it, at_hash. Without that claim, which a
// token endpoint may leave out (section 3.1.3.6; Entra does), it counts only if answered: renewd got
// both in one answer of the provider. Errors: grant.ErrAccessRefused
// where id is none, is not of access or has expired, so that the next refresh may bring one that is;
// grant.ErrSubjectMismatch where it is about somebody else; else a *grant.Fault: Unsent where the
// provider's keys cannot be had, Unknown where id is not to be trusted or names nobody.
func (p *Provider) Identify(ctx context.Context, id, access grant.Secret, answered bool, user string) (schema.Profile, error) {
	// Before anything is believed, since the provider may have given up the keys of an old one.
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
		return fault(grant.Unsent, errors.New("the provider's keys cannot be fetched from its jwks_uri"))
	case err != nil: // go-oidc quotes what it does not like
		return fault(grant.Unknown, errors.New("the ID token is not one that this provider signed for this client"))
	case token.AccessTokenHash != "" && token.VerifyAccessToken(access.Reveal()) != nil: // the hash is not that of its signature
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
		return fault(grant.Unknown, fmt.Errorf("the ID token has no %s: it names nobody", p.config.Subject))
	}
	return schema.Profile{}, grant.ErrSubjectMismatch
}

// boundTo reports whether an ID token was issued with access: it has the left half of a hash of it, by
// the hash of its signature algorithm (OpenID Connect Core section 3.1.3.6), or none, and both came in
// one answer.
func boundTo(id, access string, answered bool) bool {
	_, payload, _ := strings.Cut(id, ".")
	payload, _, _ = strings.Cut(payload, ".")
	decoded, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return false
	}
	claims, _, _ := members(decoded)
	if _, hashed := claims["at_hash"]; !hashed {
		return answered
	}
	for _, h := range []hash.Hash{sha256.New(), sha512.New384(), sha512.New()} {
		h.Write([]byte(access))
		if half := h.Sum(nil)[:h.Size()/2]; text(claims["at_hash"]) == base64.RawURLEncoding.EncodeToString(half) {
			return true
		}
	}
	return false
}

// expired reports whether an ID token has ended by the provider's clock, as far as its last answer to
// a refresh told what time it is there.
func (p *Provider) expired(id string) bool {
	_, expires := jwtTimes(id)
	now := p.now().Add(time.Duration(p.ahead.Load()))
	return time.Unix(int64(expires), 0).Add(leeway).Before(now)
}
