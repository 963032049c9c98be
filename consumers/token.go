package consumers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/oauth2"

	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/schema"
)

// tokenWait is how long an answer may take if ctx does not end sooner: longer than renewd waits for
// a renewal.
const tokenWait = 25 * time.Second

// Token asks renewd for a user's access token that is good for at least minValid. A minValid of 0
// stands for schema.DefaultMinValid, a negative minValid for any live token. renewd answers with a
// token it has, or has the user renewed first, which takes up to some 15 seconds. A token may be
// good for less: its Short says why.
//
// The error wraps a *schema.NoToken if renewd gives no token: SignInAgain tells that only a login
// helps, RetryAfter when to ask again. Any other error is of NATS or of ctx, which ends this call's
// wait alone, or says that the answer could not be opened. The answer is sealed to a key made by
// this call, so no other connection can read the token. Safe for concurrent use.
func Token(
	ctx context.Context, nc *nats.Conn, w Whom, minValid time.Duration,
) (schema.AccessToken, error) {
	t, err := token(ctx, nc, w, minValid)
	if err != nil {
		return schema.AccessToken{}, fmt.Errorf("token of %s/%q: %w", w.Provider, w.User, err)
	}
	return t, nil
}

func token(
	ctx context.Context, nc *nats.Conn, w Whom, minValid time.Duration,
) (t schema.AccessToken, _ error) {
	subjects, err := schema.NewSubjects(w.Prefix)
	err = errors.Join(err, schema.CheckProvider(w.Provider), schema.CheckUser(w.User))
	if err != nil {
		return t, err
	}
	asker, err := seal.NewAsker()
	if err != nil {
		return t, err
	}
	body, err := request(asker, minValid)
	if err != nil {
		return t, err
	}
	ctx, cancel := context.WithTimeout(ctx, tokenWait)
	defer cancel()
	m, err := nc.RequestWithContext(ctx, subjects.TokenGet(w.Provider, w.User), body)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return t, fmt.Errorf("no renewd answers token requests here: does one run, "+
			"does this account import its token requests (renewd nats config --reader), "+
			"and is the prefix right? %w", err)
	case err != nil && ctx.Err() != nil:
		return t, context.Cause(ctx)
	case err != nil:
		return t, err
	case m.Header.Get(schema.TokenErrorCode) != "":
		return t, noToken(m)
	}
	plain, err := asker.Open(w.Provider, w.User, string(m.Data))
	if err != nil {
		return t, fmt.Errorf("the answer: %w", err)
	}
	if json.Unmarshal(plain, &t) != nil || t.AccessToken == "" {
		return schema.AccessToken{}, errors.New("the answer holds no access token")
	}
	return t, nil
}

// request is the body of a request. Its least validity is in whole seconds, rounded up.
func request(asker seal.Asker, minValid time.Duration) ([]byte, error) {
	key, err := asker.JWK()
	if err != nil {
		return nil, err
	}
	get := schema.TokenGet{Key: key}
	if minValid != 0 {
		least := min(int((max(minValid, 0)+time.Second-1)/time.Second), schema.MaxMinValid)
		get.MinValidSeconds = &least
	}
	return json.Marshal(get)
}

// noToken is the error in an answer.
func noToken(m *nats.Msg) error {
	no := &schema.NoToken{}
	if json.Unmarshal(m.Data, no) != nil || no.Code == "" {
		no = &schema.NoToken{Message: m.Header.Get(schema.TokenError)}
		no.Code = m.Header.Get(schema.TokenErrorCode)
	}
	return no
}

// TokenOption changes how a TokenSource asks.
type TokenOption func(*tokenSource)

// WithPrefix names the prefix of the installation. Default: none.
func WithPrefix(prefix string) TokenOption {
	return func(s *tokenSource) { s.whom.Prefix = prefix }
}

// WithMinValid is how long each token is still good when Token returns, more than 0. Default
// schema.DefaultMinValid.
func WithMinValid(d time.Duration) TokenOption { return func(s *tokenSource) { s.minValid = d } }

// WithContext ends every wait of the source with ctx, a server's context for instance. Default:
// each wait ends after 25 s.
func WithContext(ctx context.Context) TokenOption { return func(s *tokenSource) { s.ctx = ctx } }

// TokenSource gives a user's access tokens to any code that takes an oauth2.TokenSource, such as
// oauth2.NewClient. Requests then go out with a token that renewd keeps fresh, and the refresh
// token never leaves renewd. The source keeps a token until it is good for less than WithMinValid
// asks, and then asks again by Token. The source returns Token's errors: errors.As finds the
// *schema.NoToken that says whether the user must sign in again. Drop the source when the user's
// session ends, since the source may give out the kept token until the token ends. The result is
// for one user, and safe for concurrent use.
func TokenSource(nc *nats.Conn, provider, user string, opts ...TokenOption) oauth2.TokenSource {
	s := &tokenSource{
		nc: nc, whom: Whom{Provider: provider, User: user}, minValid: schema.DefaultMinValid,
		ctx: context.Background(),
	}
	for _, opt := range opts {
		opt(s)
	}
	s.minValid = max(s.minValid, time.Second)
	return oauth2.ReuseTokenSourceWithExpiry(nil, s, s.minValid)
}

// tokenSource asks for each token.
type tokenSource struct {
	ctx      context.Context
	nc       *nats.Conn
	whom     Whom
	minValid time.Duration
}

// Token implements oauth2.TokenSource.
func (s *tokenSource) Token() (*oauth2.Token, error) {
	t, err := Token(s.ctx, s.nc, s.whom, s.minValid)
	if err != nil {
		return nil, err
	}
	o := &oauth2.Token{AccessToken: t.AccessToken, TokenType: t.TokenType, Expiry: t.ExpiresAt}
	return o.WithExtra(map[string]any{"scope": t.Scope, "version": t.Version}), nil
}
