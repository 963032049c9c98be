package grant

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/schema"
)

// Mark names one state of a grant's record: its version and, by fingerprint, the refresh token it
// held. Every timer and every outcome carries the mark of the record it was made from. A record
// that is older than they are gives itself away by that: its store was restored from a backup, or
// has lost writes that it had acknowledged. The zero Mark is "not known".
type Mark struct {
	Version int64
	Token   string // empty: the record held no refresh token
}

// Mark is that of g as it is stored: a candidate's token has no part in it.
func (g Grant) Mark() Mark { return Mark{g.Version, g.AsStored().Fingerprint()} }

// Newest returns the later of m and o.
func (m Mark) Newest(o Mark) Mark {
	if o.Version > m.Version {
		return o
	}
	return m
}

// Supersedes reports whether m is of a later state than g is in, and of another refresh token: the
// one in g was rotated or ended since, and presenting it may end the user's session. Where the
// provider does not rotate, the token is the same in all states, and nothing is ever superseded.
func (m Mark) Supersedes(g Grant) bool { return m.Version > g.Version && m.Token != g.Mark().Token }

// String is the form that ParseMark reads: the version, then the token if there is one.
func (m Mark) String() string { return strings.TrimSpace(fmt.Sprintf("%d %s", m.Version, m.Token)) }

// ParseMark is the inverse of Mark.String; the empty string is the zero Mark.
func ParseMark(s string) (Mark, error) {
	if s == "" {
		return Mark{}, nil
	}
	version, token, _ := strings.Cut(s, " ")
	n, err := strconv.ParseInt(version, 10, 64)
	if err != nil || n <= 0 {
		return Mark{}, fmt.Errorf("mark %q: want <version> <token fingerprint>", s)
	}
	return Mark{n, token}, nil
}

// Unsure reports whether the outcomes must be looked at before anything is done with g for w: w was
// made without looking at a record (a request), or it comes from a later state than g is in.
func (w Work) Unsure(g Grant) bool {
	return w.Mark.Version == 0 && g.Status == Live || w.Mark.Version > g.Version
}

// Superseded is g when its refresh token must not be presented because a later one is known to have
// been stored. Tokens stay as they are; a login ends this, or an operator (Accepted). A candidate
// of that older state goes: its token may be spent as well. NextDueAt stays set until Told.
func (g Grant) Superseded(t Turn) Grant {
	g = g.AsStored().change(t).turn(t, Synced)
	for _, c := range g.Candidate.all() {
		g.Owed = append(slices.Clip(g.Owed), g.owed(c, "the store was restored from before it was handled: sign in again")...)
	}
	g.Status, g.LastError, g.FailedAt, g.NextDueAt, g.Candidate = Suspended, schema.ReasonSuperseded, t.Now, t.Now, nil
	g.Refreshed, g.Recovered = false, false
	g.Pending = g.pending(schema.UserRefreshFailed, schema.RefreshFailed{
		Cause: g.Cause, BeganAt: g.BeganAt, Version: g.Version, Reason: schema.ReasonSuperseded, Attempts: g.Attempts,
	})
	return g
}

// Refusal is why a grant that is not live is not worked on: a reason of user.refresh_failed.
func (g Grant) Refusal() string {
	if g.IsSuperseded() {
		return schema.ReasonSuperseded
	}
	return string(g.Status)
}

// IsSuperseded reports whether g waits for a login or an operator since Superseded.
func (g Grant) IsSuperseded() bool {
	return g.Status == Suspended && g.LastError == schema.ReasonSuperseded
}

// Accepted is g when an operator decides to go on with the tokens it has, superseded or not: due at
// once, and later than all that was published.
func (g Grant) Accepted(t Turn) Grant {
	g = g.change(t).turn(t, "")
	g.Status, g.Cause, g.BeganAt = Live, schema.Cause{}, time.Time{}
	g.Attempts, g.Outages, g.LastError, g.Recovered = 0, 0, "", true
	g.NextDueAt = t.Now
	return g
}
