package idp

import (
	"context"
	"encoding/base64"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
)

// ClientAuth is how renewd names itself to a token endpoint (RFC 6749 section 2.3).
type ClientAuth string

// The ways of client authentication. AuthAuto is AuthPrivateKey with a ClientKey, and AuthNone with
// neither key nor secret. With a secret AuthAuto is AuthBasic, the way every server supports (RFC
// 6749 section 2.3.1) and the default of OpenID Connect Discovery. AuthAuto is AuthPost instead if
// discovery offers AuthPost alone, or does not decide and the preset wants AuthPost first. Until a
// way is proven, the other way is tried once if the first is refused.
const (
	AuthAuto  ClientAuth = ""
	AuthNone  ClientAuth = "none"  // client_id in the form
	AuthPost  ClientAuth = "post"  // client_id and client_secret in the form
	AuthBasic ClientAuth = "basic" // both in the Authorization header
	// AuthPrivateKey is a JWT that ClientKey has signed, in the form (RFC 7523 section 2.2).
	AuthPrivateKey ClientAuth = "private_key_jwt"
)

// ways are the ways in which a client with a secret names itself, in the order of the tries.
// offered are the ways in the discovery document, if any.
func ways(set, first ClientAuth, offered []string) []ClientAuth {
	if set != AuthAuto {
		return []ClientAuth{set}
	}
	basic, post := slices.Contains(offered, "client_secret_basic"),
		slices.Contains(offered, "client_secret_post")
	switch {
	case basic && !post:
		return []ClientAuth{AuthBasic}
	case post && !basic:
		return []ClientAuth{AuthPost}
	case first == AuthPost:
		return []ClientAuth{AuthPost, AuthBasic}
	}
	return []ClientAuth{AuthBasic, AuthPost}
}

// credential is a way for renewd to name itself, with the secret to use, if any.
type credential struct {
	way    ClientAuth
	secret secret.Value
}

// authenticate names the client in a single way (RFC 6749 section 2.3): in the form or in the
// returned header.
func (c credential) authenticate(id string, form url.Values) http.Header {
	switch c.way {
	case AuthBasic:
		// Form-encoded before base64, RFC 6749 section 2.3.1.
		pair := url.QueryEscape(id) + ":" + url.QueryEscape(c.secret.Reveal())
		return http.Header{
			"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(pair))},
		}
	case AuthPost:
		form.Set("client_secret", c.secret.Reveal())
	}
	form.Set("client_id", id)
	return nil
}

// credentials remembers by which credential the provider takes this client. credentials is safe for
// concurrent use.
type credentials struct {
	searching chan struct{} // holds a value while a call tries the other credentials; capacity 1

	mu       sync.Mutex
	all      []credential // in the order of the tries; nil before the first call
	now      int          // index of the credential in use
	refused  bool         // the provider refused all credentials, one after another
	searches int          // how often a call tried the other credentials
	last     ClientAuth   // way of the last call that was not refused
}

// current returns the credential in use, and the number of searches for another credential so far.
// list makes all credentials, before the first call.
func (c *credentials) current(list func() []credential) (credential, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = list()
	}
	return c.all[c.now], c.searches
}

// search returns the credentials that a call may still try after its credential, used, was refused.
// since is the number of searches that came with used. One call at a time tries all other
// credentials: a herd of calls must not. A call refused meanwhile tries only the credential found
// by that search, if any. Once all credentials were refused no call tries a second credential: each
// such call moves on to the next credential. At its end the caller calls done with the credential
// that was taken, or nil, and whether all others were refused.
func (c *credentials) search(
	ctx context.Context, used credential, since int,
) (others []credential, done func(taken *credential, refused bool)) {
	nothing := func(*credential, bool) {}
	select {
	case c.searching <- struct{}{}:
	case <-ctx.Done():
		return nil, nothing
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	inUse := c.all[c.now] == used
	if len(c.all) > 1 && !c.refused && c.searches == since {
		others = slices.DeleteFunc(slices.Clone(c.all), func(o credential) bool {
			return o == used
		})
		return others, c.searched
	}
	<-c.searching
	switch {
	case c.refused && inUse:
		c.now = (c.now + 1) % len(c.all)
	case !c.refused && !inUse:
		others = c.all[c.now : c.now+1]
	}
	return others, nothing
}

func (c *credentials) searched(taken *credential, refused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.searches++
	if c.refused = refused; taken != nil {
		c.use(*taken)
	}
	<-c.searching
}

// use makes taken the credential in use, unless its way was given up meanwhile.
func (c *credentials) use(taken credential) {
	if i := slices.Index(c.all, taken); i >= 0 {
		c.now = i
	}
}

// open reports whether there are two ways, and neither is proven.
func (c *credentials) open() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.all, func(o credential) bool { return o.way != c.all[0].way })
}

// taken notes that the provider let a client in with this credential.
func (c *credentials) taken(by credential) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refused {
		c.refused = false
		c.use(by)
	}
}

// came notes the way of a client that was not refused.
func (c *credentials) came(by credential) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = by.way
}

// proven notes that the provider issued tokens for this credential. From now on its way is the
// right way, and the other way is not tried again. Another secret still is, because secrets are
// replaced.
func (c *credentials) proven(by credential) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.ContainsFunc(c.all, func(o credential) bool { return o.way != by.way }) {
		return
	}
	inUse := c.all[c.now]
	c.all = slices.DeleteFunc(slices.Clone(c.all), func(o credential) bool {
		return o.way != by.way
	})
	if c.now = 0; inUse.way == by.way {
		c.use(inUse)
	} else {
		c.use(by)
	}
}

// answer is a token endpoint's answer, with the tokens and the code read from its body.
type answer struct {
	reply
	tokens grant.Tokens
	code   string // the error code in the body, as received
}

// refusesClient reports whether the answer says in words that the client is not let in. Keycloak
// has its own words for this refusal. Such a request has spent nothing: a server authenticates the
// client before looking at the token (RFC 6749 section 5.2). No other answer proves as much, an
// empty body least of all: Glewlwyd spends a token and answers with an empty body.
func (a answer) refusesClient() bool {
	refused := a.code == "invalid_client" && a.status == http.StatusBadRequest ||
		(a.code == "invalid_client" || a.code == "unauthorized_client") &&
			a.status == http.StatusUnauthorized
	return refused && a.tokens.Refresh.IsZero()
}

// malformed reports whether the answer calls the request malformed. A server may say so if it
// cannot read a way of authentication (RFC 6749 section 5.2). Nothing of such a request was done.
func (a answer) malformed() bool {
	return a.status == http.StatusBadRequest && a.code == "invalid_request" &&
		a.tokens.Refresh.IsZero()
}

// takesClient reports whether the answer is about the token: then the client was let in.
func (a answer) takesClient() bool {
	_, dead := permanent[a.code]
	return a.status < 300 && a.code == "" || dead && a.status < 500
}

// post sends a form to the token endpoint, or to another endpoint with the same client
// authentication. The form is sent again with the next credential in two cases: the answer refuses
// the client while its way or secret is not settled, or calls the request malformed while the way
// is not settled. Each credential is tried once, and only after the answer to the try before, so
// that a token is never under way twice. A caller that paces calls counts all tries as one call,
// because a search happens once in a process's life.
func (p *Provider) post(
	ctx context.Context, op, target string, e endpoints, form url.Values,
) (a answer, used credential, err error) {
	defer func() {
		if err == nil && !a.refusesClient() {
			p.credentials.came(used)
		}
	}()
	return p.postAsAny(ctx, op, target, e, form)
}

func (p *Provider) postAsAny(
	ctx context.Context, op, target string, e endpoints, form url.Values,
) (answer, credential, error) {
	used, since := p.credentials.current(func() []credential {
		return p.config.credentials(p.firstWay, e.Auth)
	})
	first, err := p.postAs(ctx, used, e.Token, op, target, form)
	malformed := err == nil && first.malformed() && p.credentials.open()
	if err != nil || !first.refusesClient() && !malformed {
		if err == nil && first.takesClient() {
			p.credentials.taken(used)
		}
		return first, used, err
	}
	others, done := p.credentials.search(ctx, used, since)
	for _, c := range others {
		if ctx.Err() != nil {
			done(nil, false)
			return first, used, nil
		}
		again, err := p.postAs(ctx, c, e.Token, op, target, form)
		if err == nil && (again.refusesClient() || malformed && again.malformed()) {
			continue
		}
		if err == nil && again.takesClient() {
			done(&c, false)
		} else {
			done(nil, false)
		}
		return again, c, err
	}
	done(nil, !malformed)
	return first, used, nil
}

// postAs makes one call. An assertion is meant for audience: the token endpoint, even if the call
// goes to another endpoint (OpenID Connect Core section 9).
func (p *Provider) postAs(
	ctx context.Context, c credential, audience, op, target string, form url.Values,
) (answer, error) {
	form = maps.Clone(form)
	header := c.authenticate(p.config.ClientID, form)
	if c.way == AuthPrivateKey {
		assertion, err := p.asserter.assert(audience, p.now().Add(time.Duration(p.ahead.Load())))
		if err != nil {
			return answer{}, &grant.Fault{Class: grant.Config, Op: op, Err: err}
		}
		form.Set("client_assertion_type", assertionType)
		form.Set("client_assertion", assertion)
	}
	r, err := p.send(ctx, call{
		op:     op,
		method: http.MethodPost,
		url:    target,
		header: header,
		form:   form,
		limit:  maxTokenBody,
	})
	a, at := answer{reply: r}, p.date(r.header)
	if err == nil {
		p.ahead.Store(int64(at.Sub(p.now())))
	}
	a.tokens, a.code = parseTokens(r.body, !r.cut, r.header.Get("Content-Type"), at)
	return a, err
}

// assertionType is the type of a JWT assertion (RFC 7523 section 2.2).
const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// credentials are all credentials of the settings, in the order of the tries.
func (c Config) credentials(first ClientAuth, offered []string) (all []credential) {
	if c.ClientAuth == AuthNone || c.ClientAuth == AuthPrivateKey {
		return []credential{{way: c.ClientAuth}}
	}
	for _, secret := range []secret.Value{c.ClientSecret, c.NextSecret} {
		for _, way := range ways(c.ClientAuth, first, offered) {
			if !secret.IsZero() {
				all = append(all, credential{way, secret})
			}
		}
	}
	return all
}
