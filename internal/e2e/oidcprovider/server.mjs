// A certified OpenID provider for the whole-system test: one-time refresh tokens, and a token presented twice revokes
// its whole family. Logins are minted through the provider's own models, so no browser is needed. Paths that start
// with /_ are the test's own. The only line on standard output that is JSON says where it listens.
import { generateKeyPairSync, randomBytes, webcrypto } from 'node:crypto';
import { createServer } from 'node:http';
import { Provider } from 'oidc-provider';

// Node 18, which Debian 12 ships, lacks two things that the provider needs.
globalThis.crypto ??= webcrypto;
URL.parse ??= (url, base) => (URL.canParse(url, base) ? new URL(url, base) : null);

const clientId = 'renewd-e2e';
const scope = 'openid email profile';
const accessTokenSeconds = Number(process.env.ACCESS_TOKEN_SECONDS ?? 4);

// Rows is the provider's storage. Its own in-memory one forgets all but the last 1,000 rows.
const rows = new Map();
class Rows {
  constructor(model) { this.model = model; }
  key(id) { return `${this.model}:${id}`; }
  async upsert(id, payload) { rows.set(this.key(id), payload); }
  async find(id) { return rows.get(this.key(id)); }
  async findByUid() { return undefined; }
  async findByUserCode() { return undefined; }
  async destroy(id) { rows.delete(this.key(id)); }
  async consume(id) { rows.get(this.key(id)).consumed = Math.floor(Date.now() / 1000); }
  async revokeByGrantId(grantId) {
    for (const [key, row] of rows) {
      if (key.startsWith(`${this.model}:`) && row.grantId === grantId) rows.delete(key);
    }
  }
}

// spent holds every refresh token that was ever rotated, also after its family is gone, so that no second presentation
// goes uncounted.
const spent = new Set();
const stats = { refreshes: 0, reuse: 0, refused: 0, revoked: 0 };
const grants = new Map(); // user -> id of the newest grant

function newProvider(issuer) {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const provider = new Provider(issuer, {
    adapter: Rows,
    clients: [{
      client_id: clientId,
      token_endpoint_auth_method: 'none',
      grant_types: ['authorization_code', 'refresh_token'],
      redirect_uris: ['https://app.example/callback'],
      id_token_signed_response_alg: 'ES256',
    }],
    claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name', 'given_name', 'family_name', 'preferred_username'] },
    conformIdTokenClaims: false,
    cookies: { keys: [randomBytes(32).toString('hex')] },
    features: { devInteractions: { enabled: false } },
    findAccount: (_ctx, user) => ({
      accountId: user,
      claims: () => ({
        sub: user, email: `${user}@example.com`, email_verified: true,
        name: `Test ${user}`, given_name: 'Test', family_name: user, preferred_username: user,
      }),
    }),
    jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'ES256', kid: 'e2e' }] },
    rotateRefreshToken: true,
    ttl: { AccessToken: accessTokenSeconds, Grant: 86400, IdToken: 3600, RefreshToken: 86400 },
  });
  provider.on('refresh_token.consumed', (token) => spent.add(token.jti));
  provider.on('grant.success', () => { stats.refreshes += 1; });
  provider.on('grant.revoked', () => { stats.revoked += 1; });
  provider.on('grant.error', (ctx) => {
    if (spent.has(ctx.oidc?.params?.refresh_token)) stats.reuse += 1;
    else stats.refused += 1;
  });
  provider.on('server_error', (_ctx, err) => console.error(err));
  return provider;
}

// mint signs a user in: what the token endpoint answers at the end of an authorization code flow.
async function mint(provider, user) {
  const client = await provider.Client.find(clientId);
  const grant = new provider.Grant({ accountId: user, clientId });
  grant.addOIDCScope(scope);
  const common = { accountId: user, client, grantId: await grant.save(), gty: 'authorization_code', scope };
  const tokens = {
    access_token: await new provider.AccessToken(common).save(),
    refresh_token: await new provider.RefreshToken(common).save(),
    expires_in: accessTokenSeconds, token_type: 'Bearer', scope,
  };
  grants.set(user, common.grantId);
  return tokens;
}

// end signs a user out at the provider, as an administrator would: the grant is gone with all its tokens.
async function end(provider, user) {
  const grantId = grants.get(user);
  if (!grantId) return { ended: false };
  await Promise.all([provider.AccessToken, provider.RefreshToken].map((model) => model.revokeByGrantId(grantId)));
  await provider.Grant.adapter.destroy(grantId);
  return { ended: true };
}

const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = newProvider(issuer);
  const serve = provider.callback();
  const own = {
    'POST /_mint': (user) => mint(provider, user),
    'POST /_end': (user) => end(provider, user),
    'GET /_stats': async () => stats,
  };
  server.on('request', async (req, res) => {
    const url = new URL(req.url, issuer);
    const handle = own[`${req.method} ${url.pathname}`];
    if (!handle) return serve(req, res);
    const body = JSON.stringify(await handle(url.searchParams.get('user')));
    return res.writeHead(200, { 'content-type': 'application/json' }).end(body);
  });
  console.log(JSON.stringify({ issuer, client_id: clientId }));
});
