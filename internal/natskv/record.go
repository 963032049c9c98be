package natskv

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// record is a grant as the bucket keeps it: everything but the key, the revision and the plain
// tokens. Records outlive the program that wrote them, so no name in a record ever changes. New
// fields are optional, and testdata holds a record of each form ever written.
//
// Its members are in the order of their names, Sealed last, since the tokens bind everything before
// them, byte by byte. A program that takes a record apart and keeps unknown members puts the record
// together again in just this order. So no name may come after Sealed's.
type record struct {
	ActiveAt     time.Time        `json:"ActiveAt"`
	Attempts     int              `json:"Attempts"`
	BeganAt      time.Time        `json:"BeganAt"`
	Bound        bool             `json:"Bound,omitempty"` // there is a grant.Digest in Sealed
	Candidate    *grant.Candidate `json:"Candidate,omitempty"`
	Cause        schema.Cause     `json:"Cause"`
	Claim        *grant.Claim     `json:"Claim"`
	Disproven    grant.Position   `json:"Disproven,omitzero"`
	Doubt        *grant.Doubt     `json:"Doubt"`
	FailedAt     time.Time        `json:"FailedAt"`
	FailingSince time.Time        `json:"FailingSince,omitzero"`
	Hold         grant.Position   `json:"Hold,omitzero"`
	LastError    string           `json:"LastError"`
	Login        grant.Position   `json:"Login"`
	LoginAt      time.Time        `json:"LoginAt"`
	NextDueAt    time.Time        `json:"NextDueAt"`
	Outages      int              `json:"Outages"`
	Owed         []grant.Pending  `json:"Owed,omitempty"`
	Pending      *grant.Pending   `json:"Pending"`
	Profile      grant.Profile    `json:"Profile"`
	Progress     grant.Progress   `json:"Progress"`
	Recovered    bool             `json:"Recovered"`
	Refreshed    bool             `json:"Refreshed"`
	RefreshedAt  time.Time        `json:"RefreshedAt"`
	SavedBy      string           `json:"SavedBy"`
	Status       grant.Status     `json:"Status"`
	SyncedAt     time.Time        `json:"SyncedAt"`
	ToldAlone    bool             `json:"ToldAlone,omitempty"`
	Verdict      *grant.Verdict   `json:"Verdict"`
	Version      int64            `json:"Version"`
	// Sealed are the tokens, see grant.SealTokens. Written by whole alone.
	Sealed []byte `json:"sealed,omitempty"`
}

func recordOf(g grant.Grant) record {
	return record{
		Version:      g.Version,
		Status:       g.Status,
		Verdict:      g.Verdict,
		Claim:        g.Claim,
		Doubt:        g.Doubt,
		Candidate:    g.Candidate,
		SavedBy:      g.SavedBy,
		Cause:        g.Cause,
		BeganAt:      g.BeganAt,
		Progress:     g.Progress,
		Pending:      g.Pending,
		Owed:         g.Owed,
		Refreshed:    g.Refreshed,
		Recovered:    g.Recovered,
		Attempts:     g.Attempts,
		Outages:      g.Outages,
		LastError:    g.LastError,
		FailingSince: g.FailingSince,
		ToldAlone:    g.ToldAlone,
		Profile:      g.Profile,
		Login:        g.Login,
		Disproven:    g.Disproven,
		NextDueAt:    g.NextDueAt,
		LoginAt:      g.LoginAt,
		RefreshedAt:  g.RefreshedAt,
		SyncedAt:     g.SyncedAt,
		FailedAt:     g.FailedAt,
		ActiveAt:     g.ActiveAt,
		Hold:         g.Hold,
	}
}

// encode writes a record. With profile, the profile is sealed with the tokens.
func encode(c grant.Cipher, g grant.Grant, profile bool) (raw []byte, err error) {
	r := recordOf(g)
	r.Bound = true
	if profile {
		r.Profile = ""
	}
	open, err := opened(r)
	if err != nil {
		return nil, err
	}
	sealed, err := grant.SealTokens(c, &g, profile, grant.DigestOf(open))
	if err != nil {
		return nil, err
	}
	return whole(open, sealed), nil
}

// beforeSealed begins the last member of a record.
const beforeSealed = `,"sealed":"`

// opened is the part before the sealed tokens, of a record without sealed tokens.
func opened(record any) ([]byte, error) {
	raw, err := json.Marshal(record)
	return bytes.TrimSuffix(raw, []byte("}")), err
}

// whole puts the sealed tokens behind opened, the part of the record before the tokens.
func whole(opened, sealed []byte) []byte {
	size := len(opened) + len(beforeSealed) + base64.StdEncoding.EncodedLen(len(sealed)) + len(`"}`)
	out := append(append(make([]byte, 0, size), opened...), beforeSealed...)
	return append(base64.StdEncoding.AppendEncode(out, sealed), `"}`...)
}

// cut is the inverse of whole, for raw JSON: the part before the sealed tokens. cut is nil for a
// record of another form, which is not bound, or was put together by another writer. The last
// member of an object ends with the object, and has no quote in it. So the part cut off has no
// other member.
func cut(raw []byte) (opened []byte) {
	at := bytes.LastIndex(raw, []byte(beforeSealed))
	if at < 0 {
		return nil
	}
	tokens, last := bytes.CutSuffix(raw[at+len(beforeSealed):], []byte(`"}`))
	if !last || bytes.ContainsAny(tokens, `"\`) {
		return nil
	}
	return raw[:at]
}

// beside describes the part beside the sealed tokens of r. raw is r's JSON.
func (r record) beside(raw []byte, required bool) grant.Beside {
	return grant.Beside{Digest: grant.DigestOf(cut(raw)), Marked: r.Bound, Required: required}
}

// grant is the inverse of recordOf, but for the tokens.
func (r record) grant() grant.Grant {
	return grant.Grant{
		Version:      r.Version,
		Status:       r.Status,
		Verdict:      r.Verdict,
		Claim:        r.Claim,
		Doubt:        r.Doubt,
		Candidate:    r.Candidate,
		SavedBy:      r.SavedBy,
		Cause:        r.Cause,
		BeganAt:      r.BeganAt,
		Progress:     r.Progress,
		Pending:      r.Pending,
		Owed:         r.Owed,
		Refreshed:    r.Refreshed,
		Recovered:    r.Recovered,
		Attempts:     r.Attempts,
		Outages:      r.Outages,
		LastError:    r.LastError,
		FailingSince: r.FailingSince,
		ToldAlone:    r.ToldAlone,
		Profile:      r.Profile,
		Login:        r.Login,
		Disproven:    r.Disproven,
		NextDueAt:    r.NextDueAt,
		LoginAt:      r.LoginAt,
		RefreshedAt:  r.RefreshedAt,
		SyncedAt:     r.SyncedAt,
		FailedAt:     r.FailedAt,
		ActiveAt:     r.ActiveAt,
		Hold:         r.Hold,
	}
}

// decode is the inverse of encode. With ErrUnreadable it returns everything readable but the
// tokens. With bound, an unbound record cannot be read.
func decode(
	c grant.Cipher, k grant.Key, raw []byte, revision uint64, bound bool,
) (g grant.Grant, marked bool, err error) {
	var r record
	damage := json.Unmarshal(raw, &r) // fills every readable field
	g = r.grant()
	g.Key, g.Revision = k, revision
	if damage != nil {
		return g, r.Bound, fmt.Errorf("%w: it is damaged: %w", grant.ErrUnreadable, damage)
	}
	err = grant.OpenTokens(c, &g, r.Sealed, r.beside(raw, bound))
	return g, r.Bound, err
}

// reseal is raw with its tokens sealed again, and bound if it was not bound before. The rest of raw
// stays unchanged, fields unknown to this version included.
func reseal(c grant.Cipher, k grant.Key, raw []byte, bound bool) ([]byte, error) {
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("%w: it is damaged: %w", grant.ErrUnreadable, err)
	}
	was := r.beside(raw, bound)
	open := cut(raw)
	if !r.Bound {
		var err error
		if open, err = marked(raw); err != nil {
			return nil, err
		}
	}
	sealed, err := grant.ResealTokens(c, k, r.Version, r.Sealed, was, grant.DigestOf(open))
	if err != nil {
		return nil, err
	}
	return whole(open, sealed), nil
}

// marked is the part before the sealed tokens of raw once raw is bound.
func marked(raw []byte) ([]byte, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("%w: it is damaged: %w", grant.ErrUnreadable, err)
	}
	delete(all, "sealed")
	all["Bound"] = json.RawMessage("true")
	return opened(all)
}
