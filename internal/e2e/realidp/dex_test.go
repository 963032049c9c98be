package realidp

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dexidp/dex/server"
	"github.com/dexidp/dex/server/signer"
	"github.com/dexidp/dex/server/tokens"
	"github.com/dexidp/dex/storage"
	"github.com/dexidp/dex/storage/sql"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/renewd/renewd/publishers"
)

// dexKind is Dex.
var dexKind = kind{
	name: "dex", preset: "dex", module: "github.com/dexidp/dex", start: startDex,
	endpoints: map[string]string{"/token": "token", "/userinfo": "userinfo"},
	wrongWay:  "none",
	title:     "dex %s",
	verdicts: map[string]verdict{
		"refreshed, rotated": {
			"success", "", "expires_in is a second less than the lifetime; there is no scope",
		},
		"revoked": {
			"permanent",
			"revoked",
			"invalid_request, as for a malformed request: " +
				"its text alone says that the token is dead",
		},
		"spent": {
			"permanent",
			"revoked",
			"shown again after reuseInterval; before its end, the newest token is answered",
		},
		"expired": {
			"permanent", "expired", "validIfNotUsedFor or absoluteLifetime is over",
		},
		"unknown": {"permanent", "revoked", "also a token that Dex has lost"},
		"no token": {
			"unknown", "", "the code of a dead token too; renewd sends no such request",
		},
		"user deleted": {
			"ambiguous",
			"",
			"the same answer comes once where PostgreSQL could not serialize access, " +
				"and then the same token is good. A 5xx is no verdict",
		},
		"user deleted, again":     {"ambiguous", "", "and so for ever"},
		"wrong secret or client":  {"config", "", "before the token is looked at"},
		"wrong secret, put right": {"success", "", ""},
		"no secret":               {"config", "", "client_auth: none, at a client that has one"},
		"unsupported grant":       {"config", "", ""},
		"userinfo": {
			"success", "", "the access token's claims: exp, iat, jti and at_hash differ each time",
		},
		"userinfo, bad token": {
			"refused", "", "403 instead of 401; the same for an expired one",
		},
		"userinfo, no token":        {"refused", "", ""},
		"userinfo, session revoked": {"success", "", "an access token is good until it expires"},
	},
}

// dex is Dex on PostgreSQL, with its own user accounts and rotating refresh tokens.
type dex struct {
	issuer  string
	storage storage.Storage
	signer  signer.Signer
	server  atomic.Pointer[server.Server]
	ends    context.Context // of all its servers
	client  storage.Client
	ahead   atomic.Int64 // how far Dex's clock is ahead of ours
}

// dexAbsolute is how long a refresh token lives at most, in use or not.
const dexAbsolute = 24 * time.Hour

// dexReuse is Dex's grace window, in which a refresh token that was answered is answered again.
// Under load Dex answers up to half of all refreshes with 500, some of them after it has spent the
// token. With a window of 3 s the second try after that may come too late, which costs sessions.
const dexReuse = 30 * time.Second

const dexConnector = "local"

func startDex(t *testing.T, issuer string) provider {
	t.Helper()
	db := startPostgres(t)
	at := must(pgconn.ParseConfig(db.URL("postgres")))(t)
	log := slog.New(slog.DiscardHandler)
	network := sql.NetworkDB{
		Database:          at.Database,
		User:              at.User,
		Host:              at.Host,
		Port:              at.Port,
		ConnectionTimeout: 10,
	}
	// A refresh holds one connection and asks for another. As many simultaneous refreshes as there
	// are connections jam Dex permanently. Its default is 5.
	network.MaxOpenConns = 60
	store := must((&sql.Postgres{NetworkDB: network, SSL: sql.SSL{Mode: "disable"}}).Open(log))(t)
	t.Cleanup(func() { _ = store.Close() })

	d := &dex{
		issuer:  issuer,
		storage: store,
		ends:    t.Context(),
		client:  storage.Client{ID: clientID, Secret: clientSecret, Name: clientID},
	}
	keys := signer.LocalConfig{KeysRotationPeriod: "6h"}
	d.signer = must(keys.Open(t.Context(), store, lifetime*time.Second, d.now, log))(t)
	local := storage.Connector{ID: dexConnector, Type: dexConnector, Name: dexConnector}
	err := errors.Join(store.CreateConnector(t.Context(), local),
		store.CreateClient(t.Context(), d.client), d.restart(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *dex) ServeHTTP(w http.ResponseWriter, r *http.Request) { d.server.Load().ServeHTTP(w, r) }

func (d *dex) restart(context.Context) error {
	s, err := server.NewServer(d.ends, server.Config{
		Issuer:             d.issuer,
		Storage:            d.storage,
		Signer:             d.signer,
		IDTokensValidFor:   lifetime * time.Second,
		RefreshTokenPolicy: tokens.NewRefreshStrategy(true, dexAbsolute, 0, dexReuse, d.now),
		Now:                d.now,
		Logger:             slog.New(slog.DiscardHandler),
	})
	if err == nil {
		d.server.Store(s)
	}
	return err
}

func (d *dex) now() time.Time { return time.Now().Add(time.Duration(d.ahead.Load())) }

// later sets Dex's clock ahead.
func (d *dex) later(by time.Duration) { d.ahead.Add(int64(by)) }

func (d *dex) enroll(ctx context.Context, name string) error {
	err := d.storage.CreatePassword(ctx, storage.Password{
		Email:    name + "@example.com",
		Hash:     []byte("nobody signs in by it"),
		Username: name,
		UserID:   name,
		Groups:   []string{"team-a"},
	})
	if errors.Is(err, storage.ErrAlreadyExists) {
		return nil
	}
	return err
}

// signIn issues tokens as Dex does at the end of a login in the browser. Their scopes are what a
// service asks for to get a profile and a refresh token.
func (d *dex) signIn(ctx context.Context, name string) (string, publishers.Tokens, error) {
	issuer, err := url.Parse(d.issuer)
	if err != nil {
		return "", publishers.Tokens{}, err
	}
	set, err := d.tokens(*issuer).Issue(ctx, tokens.Authorization{
		Client:      d.client,
		ConnectorID: dexConnector,
		Scopes:      []string{"openid", "email", "profile", "groups", "offline_access"},
		Claims: storage.Claims{
			UserID:        name,
			Username:      name,
			Email:         name + "@example.com",
			EmailVerified: true,
			Groups:        []string{"team-a"},
		},
	}, "", true)
	if err != nil {
		return "", publishers.Tokens{}, err
	}
	user, err := tokens.GenSubject(name, dexConnector)
	return user, publishers.Tokens{
		AccessToken:  set.AccessToken,
		RefreshToken: set.RefreshToken,
		IDToken:      set.IDToken,
		ExpiresAt:    set.Expiry,
	}, err
}

func (d *dex) tokens(issuer url.URL) *tokens.Issuer {
	return tokens.NewIssuer(d.storage, d.signer, issuer, lifetime*time.Second, d.now,
		slog.New(slog.DiscardHandler))
}

func (d *dex) revoke(ctx context.Context, name string) error {
	d.tokens(url.URL{}).Refresh.RevokeAll(ctx, name, dexConnector)
	return nil
}

func (d *dex) remove(ctx context.Context, name string) error {
	return d.storage.DeletePassword(ctx, name+"@example.com")
}
