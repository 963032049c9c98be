// Calls an API with a user's fresh access token, and hears at once when the user must sign in
// again. Node 18 or later, no packages.
//
//   TOKENS_URL=http://127.0.0.1:7460 TOKENS_SECRET=renewd_shop.… \
//   API_URL=https://auth.example.com/oauth/userinfo node fresh-token.mjs propelauth 31c41c16-…
//
// With --listen it goes on and prints the end of the session. A browser's EventSource cannot send
// the secret, and must not have it: listen in the server, and tell the browser from there.

const { TOKENS_URL, TOKENS_SECRET, API_URL } = process.env
const authorization = { Authorization: `Bearer ${TOKENS_SECRET}` }

async function freshToken(provider, user) {
  const path = [provider, user].map(encodeURIComponent).join('/')
  const answer = await fetch(`${TOKENS_URL}/v1/users/${path}/token?min_valid=5m`, { headers: authorization })
  const body = await answer.json()
  if (!answer.ok) throw Object.assign(new Error(`${body.code}: ${body.detail ?? body.title}`), { problem: body })
  return body.access_token
}

// events yields outcomes. After a cut it goes on where it was, so none is missed.
async function* events(query) {
  for (let last; ; await new Promise((done) => setTimeout(done, 1000))) {
    try {
      const headers = { ...authorization, Accept: 'text/event-stream', ...(last && { 'Last-Event-ID': last }) }
      const answer = await fetch(`${TOKENS_URL}/v1/outcomes?${new URLSearchParams(query)}`, { headers })
      if (!answer.ok) throw new Error(`${answer.status}: ${await answer.text()}`)
      let text = ''
      for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) {
        const parts = (text + chunk).split('\n\n')
        text = parts.pop()
        for (const part of parts) {
          const field = (name) => part.split('\n').find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2)
          if (field('data')) yield JSON.parse(field('data'))
          last = field('id') ?? last // also without an event: the place to come back with
        }
      }
    } catch (err) {
      console.error('cut off:', err.message)
    }
  }
}

const [provider, user, listen] = process.argv.slice(2)
const ended = listen === '--listen' && events({ type: 'user.reauth_required', provider, user }).next()
try {
  const token = await freshToken(provider, user)
  const answer = await fetch(API_URL, { headers: { Authorization: `Bearer ${token}` } })
  console.log(`the API answers ${answer.status}: ${await answer.text()}`)
} catch (err) {
  if (!['sign_in_again', 'signed_out'].includes(err.problem?.code)) throw err
  console.error('sign in again:', err.problem.reason ?? err.problem.code)
  process.exit(3)
}
if (ended) {
  const { value } = await ended
  console.log('sign in again:', value.data.reason) // here: end this user's sessions
  process.exit(0)
}
