"""Calls an API with a user's fresh access token, with the standard library alone.

TOKENS_URL=http://127.0.0.1:7460 TOKENS_SECRET=renewd_shop.… \
API_URL=https://auth.example.com/oauth/userinfo python3 fresh_token.py propelauth 31c41c16-…
"""

import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request


class NoToken(Exception):
    """renewd has no token for the user now: its problem says what to do."""

    def __init__(self, problem):
        super().__init__(f"{problem['code']}: {problem.get('detail', problem['title'])}")
        self.problem = problem


def get(url, bearer):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {bearer}"})
    with urllib.request.urlopen(request, timeout=30) as answer:  # renewd answers within 20 s
        return json.load(answer)


def fresh_token(provider, user, min_valid="5m"):
    """A token that is good for as long as min_valid says. renewd renews it first if it must."""
    path = "/".join(urllib.parse.quote(part, safe="") for part in (provider, user))
    url = f"{os.environ['TOKENS_URL']}/v1/users/{path}/token?min_valid={min_valid}"
    try:
        return get(url, os.environ["TOKENS_SECRET"])["access_token"]
    except urllib.error.HTTPError as err:
        raise NoToken(json.load(err)) from None


def main(provider, user):
    try:
        token = fresh_token(provider, user)
    except NoToken as no:
        # The session has ended: send the user to your login.
        if no.problem["code"] in ("sign_in_again", "signed_out"):
            print("sign in again:", no.problem.get("reason", no.problem["code"]), file=sys.stderr)
            return 3
        if no.problem["status"] == 503:
            print("try again in", no.problem["retry_after_seconds"], "s", file=sys.stderr)
            return 4
        raise
    print("the API answers:", json.dumps(get(os.environ["API_URL"], token)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
