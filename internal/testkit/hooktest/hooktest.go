// Package hooktest signs webhooks as senders do, by the reference library of Standard Webhooks.
//
// The package never ships and sends nothing: only tests import it.
package hooktest

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// Sign returns the headers of a webhook sent at this time. Their names begin with front:
// "webhook-", or "svix-".
func Sign(t testing.TB, secret, front, id string, at time.Time, body string) http.Header {
	t.Helper()
	signer, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := signer.Sign(id, at, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	h := http.Header{}
	h.Set(front+"id", id)
	h.Set(front+"timestamp", strconv.FormatInt(at.Unix(), 10))
	h.Set(front+"signature", signature)
	return h
}
