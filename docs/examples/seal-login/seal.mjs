// Seals the tokens of a login to renewd's public key with the jose package (npm install jose). Reads
// {jwks, provider, user, tokens} on standard input, prints the JWE: the value of "tokens" in a user.login event.
import { CompactEncrypt, importJWK } from 'jose';

export async function seal({ jwks, provider, user, tokens }) {
  const jwk = jwks.keys.find((key) => key.use === 'enc');
  return new CompactEncrypt(new TextEncoder().encode(JSON.stringify(tokens)))
    .setProtectedHeader({
      alg: 'ECDH-ES', enc: 'A256GCM', kid: jwk.kid, cty: 'json',
      iss: provider, sub: user, iat: Math.floor(Date.now() / 1000), // renewd holds these against the event
    })
    .encrypt(await importJWK(jwk, 'ECDH-ES'));
}

let input = '';
for await (const chunk of process.stdin) input += chunk;
console.log(await seal(JSON.parse(input)));
