package grant

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/schema"
)

// Mark names one state of a grant's record: its version and, by fingerprint, its refresh token.
// Every timer and every outcome carries the mark of its record. If the record is older than the
// mark of any timer or outcome, its store was restored from a backup, or has lost writes it had
// acknowledged. The zero Mark is "not known".
type Mark struct {
	Version int64
	Token   string // empty: the record held no refresh token
}

// Mark is the mark of g as stored: a candidate's token has no part in the mark.
func (g *Grant) Mark() Mark {
	pair := &g.Pair
	if g.onCandidate {
		pair = &g.Candidate.Pair
	}
	return Mark{g.Version, pair.Refresh.Fingerprint()}
}

// Newest returns the later of m and o.
func (m Mark) Newest(o Mark) Mark {
	if o.Version > m.Version {
		return o
	}
	return m
}

// Supersedes reports whether m is of a later state than g, and of another refresh token: the token
// in g was rotated or ended since, and its presentation may end the user's session. Where the
// provider does not rotate, the token is the same in all states, and nothing is ever superseded.
func (m Mark) Supersedes(g *Grant) bool {
	return m.Version > g.Version && m.Token != g.Mark().Token
}

// String is the form for ParseMark: the version, then the token if there is a token.
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

// Unsure reports whether the outcomes must be looked at before any work on g for w: w was made
// without looking at a record (a request), or comes from a later state than g.
func (w Work) Unsure(g *Grant) bool {
	renewed := g.Status == Live || g.Status == Dormant
	return w.Mark.Version == 0 && renewed || w.Mark.Version > g.Version
}

// Superseded is g when its refresh token must not be presented, since a later token is known to
// have been stored. Tokens stay as they are, until a login or an operator (Accepted) ends this. A
// candidate of the older state goes: its token may be spent too. NextDueAt stays set until Told.
func (g Grant) Superseded(t Turn) Grant {
	g = g.AsStored()
	g.change(t)
	g.turn(t, Synced)
	for _, c := range g.Candidate.all() {
		g.Owed = append(slices.Clip(g.Owed),
			g.owed(c, "the store was restored from before it was handled: sign in again")...)
	}
	g.Status, g.LastError = Suspended, schema.ReasonSuperseded
	g.FailedAt, g.NextDueAt = t.Now, t.Now
	g.Candidate = nil
	g.Refreshed, g.Recovered = false, false
	g.Pending = g.pending(schema.UserRefreshFailed, schema.RefreshFailed{
		Cause:    g.Cause,
		BeganAt:  g.BeganAt,
		Version:  g.Version,
		Reason:   schema.ReasonSuperseded,
		Attempts: g.Attempts,
	})
	return g
}

// Refusal is why a grant that is not live is not worked on: a reason of user.refresh_failed.
func (g *Grant) Refusal() string {
	if g.IsSuperseded() {
		return schema.ReasonSuperseded
	}
	return string(g.Status)
}

// IsSuperseded reports whether g waits for a login or an operator since Superseded.
func (g *Grant) IsSuperseded() bool {
	return g.Status == Suspended && g.LastError == schema.ReasonSuperseded
}

// Accepted is g when an operator decides to go on with its tokens, superseded or not: due at once,
// and later than everything published. A grant held by a user.suspend stays suspended.
func (g Grant) Accepted(t Turn) Grant {
	g.change(t)
	g.turn(t, "")
	g.Cause, g.BeganAt = schema.Cause{}, time.Time{}
	if g.suspended() {
		return g // until a user.resume
	}
	g.Status = Live
	g.Attempts, g.Outages, g.LastError, g.Recovered = 0, 0, "", true
	g.NextDueAt = t.Now
	return g
}
