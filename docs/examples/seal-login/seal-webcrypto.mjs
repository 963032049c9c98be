// Seals the tokens of a login to renewd's public key with nothing but WebCrypto: a compact JWE, ECDH-ES on P-256 with
// A256GCM (RFC 7516, RFC 7518 section 4.6). Reads {jwks, provider, user, tokens} on standard input, prints the JWE: the
// value of "tokens" in a user.login event.
import { webcrypto as crypto } from 'node:crypto';

const utf8 = new TextEncoder();
const b64 = (bytes) => Buffer.from(bytes).toString('base64url');
const u32 = (n) => new Uint8Array([n >>> 24, n >>> 16, n >>> 8, n]);
const prefixed = (text) => [u32(text.length), utf8.encode(text)];

export async function seal({ jwks, provider, user, tokens }) {
  const { kid, kty, crv, x, y } = jwks.keys.find((key) => key.use === 'enc');
  const curve = { name: 'ECDH', namedCurve: 'P-256' };
  const theirs = await crypto.subtle.importKey('jwk', { kty, crv, x, y }, curve, false, []);
  const mine = await crypto.subtle.generateKey(curve, true, ['deriveBits']);
  const shared = await crypto.subtle.deriveBits({ name: 'ECDH', public: theirs }, mine.privateKey, 256);

  // Concat KDF: round 1, the secret, the algorithm's name, no party infos, the key's length in bits.
  const kdf = Buffer.concat([u32(1), new Uint8Array(shared), ...prefixed('A256GCM'), ...prefixed(''), ...prefixed(''), u32(256)]);
  const key = await crypto.subtle.importKey('raw', await crypto.subtle.digest('SHA-256', kdf), 'AES-GCM', false, ['encrypt']);

  const epk = await crypto.subtle.exportKey('jwk', mine.publicKey);
  const header = b64(utf8.encode(JSON.stringify({
    alg: 'ECDH-ES', enc: 'A256GCM', kid, cty: 'json', epk: { kty: epk.kty, crv: epk.crv, x: epk.x, y: epk.y },
    iss: provider, sub: user, iat: Math.floor(Date.now() / 1000),
  })));
  const iv = crypto.getRandomValues(new Uint8Array(12));
  const sealed = new Uint8Array(await crypto.subtle.encrypt(
    { name: 'AES-GCM', iv, additionalData: utf8.encode(header) }, key, utf8.encode(JSON.stringify(tokens))));
  return [header, '', b64(iv), b64(sealed.slice(0, -16)), b64(sealed.slice(-16))].join('.');
}

let input = '';
for await (const chunk of process.stdin) input += chunk;
console.log(await seal(JSON.parse(input)));
