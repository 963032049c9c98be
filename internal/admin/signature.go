package admin

import (
	"context"
	"fmt"
	"time"

	"github.com/renewd/renewd/internal/seal"
)

const signAgain = "%s keys public, keys sign where the root is, keys publish --signed"

// signedSoon is how long before its end a signature gets a warning.
const signedSoon = 14 * 24 * time.Hour

// signature is what is wrong with the signed keys, if there are signed keys.
func (x *examination) signature(ctx context.Context) Finding {
	text, err := x.on.Engine.SignedKeys(ctx)
	if err != nil || text == nil {
		return Finding{}
	}
	signed, err := seal.OpenSigned(text, time.Now())
	if err != nil {
		return Finding{
			State: Broken, Advice: fmt.Sprintf(signAgain, x.program),
			Found: "every publisher that trusts a root refuses the signed public keys: " +
				err.Error(),
		}
	}
	same := string(signed.JWKS) == string(x.on.Keys.JWKS())
	return aboutSigned(signed.Until, same, time.Now(), x.program)
}

// aboutSigned is nothing where a signed set is of the key that seals, and good for a while.
func aboutSigned(until time.Time, same bool, now time.Time, app string) Finding {
	advice := fmt.Sprintf(signAgain, app)
	switch {
	case !same:
		return Finding{State: Warning, Advice: advice, Found: "the signed public key is another " +
			"than the plain one: logins of publishers that trust a root open only " +
			"while it is in the keyring"}
	case until.Sub(now) < signedSoon:
		return Finding{State: Warning, Advice: advice, Found: "the signature of " +
			"the public keys ends at " +
			until.UTC().Format(time.RFC3339) + ": then publishers that trust a root refuse them"}
	}
	return Finding{}
}
