package natskv

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// record is a grant as the bucket keeps it: everything but the key, the revision and the plain
// tokens. Records outlive the program that wrote them, so no name in it ever changes: what is added
// is optional, and testdata holds a record of each form that was ever written.
type record struct {
	Sealed       []byte           `json:"sealed"` // the tokens, see grant.SealTokens
	Version      int64            `json:"Version"`
	Status       grant.Status     `json:"Status"`
	Verdict      *grant.Verdict   `json:"Verdict"`
	Claim        *grant.Claim     `json:"Claim"`
	Doubt        *grant.Doubt     `json:"Doubt"`
	Candidate    *grant.Candidate `json:"Candidate,omitempty"`
	SavedBy      string           `json:"SavedBy"`
	Cause        schema.Cause     `json:"Cause"`
	BeganAt      time.Time        `json:"BeganAt"`
	Progress     grant.Progress   `json:"Progress"`
	Pending      *grant.Pending   `json:"Pending"`
	Owed         []grant.Pending  `json:"Owed,omitempty"`
	Refreshed    bool             `json:"Refreshed"`
	Recovered    bool             `json:"Recovered"`
	Attempts     int              `json:"Attempts"`
	Outages      int              `json:"Outages"`
	LastError    string           `json:"LastError"`
	FailingSince time.Time        `json:"FailingSince,omitzero"`
	ToldAlone    bool             `json:"ToldAlone,omitempty"`
	Profile      grant.Profile    `json:"Profile"`
	Login        grant.Order      `json:"Login"`
	NextDueAt    time.Time        `json:"NextDueAt"`
	LoginAt      time.Time        `json:"LoginAt"`
	RefreshedAt  time.Time        `json:"RefreshedAt"`
	SyncedAt     time.Time        `json:"SyncedAt"`
	FailedAt     time.Time        `json:"FailedAt"`
	ActiveAt     time.Time        `json:"ActiveAt"`
}

func recordOf(g grant.Grant) record {
	return record{
		Version: g.Version, Status: g.Status, Verdict: g.Verdict, Claim: g.Claim, Doubt: g.Doubt,
		Candidate: g.Candidate, SavedBy: g.SavedBy, Cause: g.Cause, BeganAt: g.BeganAt, Progress: g.Progress,
		Pending: g.Pending, Owed: g.Owed, Refreshed: g.Refreshed, Recovered: g.Recovered, Attempts: g.Attempts,
		Outages: g.Outages, LastError: g.LastError, FailingSince: g.FailingSince, ToldAlone: g.ToldAlone,
		Profile: g.Profile, Login: g.Login, NextDueAt: g.NextDueAt, LoginAt: g.LoginAt, RefreshedAt: g.RefreshedAt,
		SyncedAt: g.SyncedAt, FailedAt: g.FailedAt, ActiveAt: g.ActiveAt,
	}
}

// encode writes a record; with profile that is sealed with the tokens.
func encode(c grant.Cipher, g grant.Grant, profile bool) (raw []byte, err error) {
	r := recordOf(g)
	if r.Sealed, err = grant.SealTokens(c, g, profile); err != nil {
		return nil, err
	}
	if profile {
		r.Profile = ""
	}
	return json.Marshal(r)
}

// grant is the inverse of recordOf, but for the tokens.
func (r record) grant() grant.Grant {
	return grant.Grant{
		Version: r.Version, Status: r.Status, Verdict: r.Verdict, Claim: r.Claim, Doubt: r.Doubt,
		Candidate: r.Candidate, SavedBy: r.SavedBy, Cause: r.Cause, BeganAt: r.BeganAt, Progress: r.Progress,
		Pending: r.Pending, Owed: r.Owed, Refreshed: r.Refreshed, Recovered: r.Recovered, Attempts: r.Attempts,
		Outages: r.Outages, LastError: r.LastError, FailingSince: r.FailingSince, ToldAlone: r.ToldAlone,
		Profile: r.Profile, Login: r.Login, NextDueAt: r.NextDueAt, LoginAt: r.LoginAt, RefreshedAt: r.RefreshedAt,
		SyncedAt: r.SyncedAt, FailedAt: r.FailedAt, ActiveAt: r.ActiveAt,
	}
}

// decode is the inverse of encode. Beside ErrUnreadable it returns all that can be read but the
// tokens.
func decode(c grant.Cipher, k grant.Key, raw []byte, revision uint64) (grant.Grant, error) {
	var r record
	damage := json.Unmarshal(raw, &r) // fills what it can
	g := r.grant()
	g.Key, g.Revision = k, revision
	if damage != nil {
		return g, fmt.Errorf("%w: it is damaged: %w", grant.ErrUnreadable, damage)
	}
	err := grant.OpenTokens(c, &g, r.Sealed)
	return g, err
}
