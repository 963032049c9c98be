package postgres

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/testkit/golden"
	"github.com/renewd/renewd/internal/testkit/storetest"
)

// keptRow is a row as the table has it, for the golden files: the columns that hold a form of
// renewd's, and the others as they are.
type keptRow struct {
	Version     int64           `json:"version"`
	Status      string          `json:"status"`
	Fingerprint string          `json:"fingerprint"`
	Tokens      []byte          `json:"tokens"`
	Times       [7]time.Time    `json:"times"`
	Attempts    int32           `json:"attempts"`
	Outages     int32           `json:"outages"`
	LastError   string          `json:"last_error"`
	ClaimNonce  string          `json:"claim_nonce"`
	ClaimUntil  time.Time       `json:"claim_until"`
	Claim       json.RawMessage `json:"claim"`
	Profile     json.RawMessage `json:"profile"`
	State       json.RawMessage `json:"state"`
}

// compact is a golden file's JSON as it was stored.
func compact(t *testing.T, file []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := json.Compact(&out, file); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Rows of every version stay readable, and say after a save what they said before.
func TestRowsStayReadable(t *testing.T) {
	k := grant.Key{Provider: "propelauth", User: "jane@example.com"}
	written := func(t *testing.T, g grant.Grant) []byte {
		t.Helper()
		r, err := (&Store{cipher: storetest.Cipher{}}).rowOf(g)
		if err != nil {
			t.Fatal(err)
		}
		kept := keptRow{
			Version:     r.version,
			Status:      r.status,
			Fingerprint: r.fingerprint,
			Tokens:      r.tokens,
			Attempts:    r.attempts,
			Outages:     r.outages,
			LastError:   r.lastError,
			ClaimNonce:  *r.claim.nonce,
			ClaimUntil:  at(r.claim.until),
			Claim:       json.RawMessage(*r.claim.rest),
			Profile:     json.RawMessage(*r.profile),
			State:       json.RawMessage(r.state),
		}
		for i := range kept.Times {
			kept.Times[i] = at(r.times[i])
		}
		raw, err := json.Marshal(kept)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	again := func(t *testing.T, raw []byte) []byte {
		t.Helper()
		var kept keptRow
		if err := json.Unmarshal(raw, &kept); err != nil {
			t.Fatal(err)
		}
		r := &row{
			key:       k,
			revision:  1,
			version:   kept.Version,
			status:    kept.Status,
			tokens:    kept.Tokens,
			attempts:  kept.Attempts,
			outages:   kept.Outages,
			lastError: kept.LastError,
			profile:   text(compact(t, kept.Profile)),
			state:     string(compact(t, kept.State)),
			claim:     claimRow{&kept.ClaimNonce, stamp(kept.ClaimUntil), text(kept.Claim)},
		}
		for i := range kept.Times {
			r.times[i] = stamp(kept.Times[i])
		}
		g, err := (&Store{cipher: storetest.Cipher{}}).grantOf(r)
		if err != nil {
			t.Fatal(err)
		}
		g.Pair.ExpiresAt, g.StoredProfile = kept.Times[0], "" // the whole row is written
		again := written(t, g)
		var now keptRow
		if err := json.Unmarshal(again, &now); err != nil {
			t.Fatal(err)
		}
		if !storetest.SameTokens(now.Tokens, kept.Tokens) {
			return again
		}
		now.Tokens = kept.Tokens // what they bind is another form of the row
		if again, err = json.Marshal(now); err != nil {
			t.Fatal(err)
		}
		return again
	}
	golden.Check(t, "testdata/row", written(t, storetest.Full(k)), again)
}
