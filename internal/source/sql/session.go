package sql

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/appdb"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// session is a user's session as a row holds it.
type session struct {
	user            string
	access, refresh secret.Value
	expiresAt       time.Time // zero: not known
}

// token tells a user's sessions apart: the refresh token, or else the access token.
func (s session) token() secret.Value {
	if s.refresh.IsZero() {
		return s.access
	}
	return s.refresh
}

// Problem is why a row's session cannot be taken.
type Problem string

// The problems.
const (
	// NoUser: the row has tokens, and no user id. UserID: the id is not valid, too long say.
	NoUser Problem = "no_user"
	UserID Problem = "user_id"
	// NoAccess: there is a refresh token alone.
	NoAccess Problem = "no_access_token"
	// NotEncrypted: a token is not as Laravel encrypts. OtherKey: app_key does not open the token.
	NotEncrypted Problem = "not_encrypted"
	OtherKey     Problem = "other_key"
	// Double: several rows have this user id. No such row is taken.
	Double Problem = "double"
	// Spent: the tokens were taken before newer tokens of the user, which are gone from the row
	// now. A provider that gets spent tokens may take all of the user's tokens for stolen.
	Spent Problem = "spent"
	// TooLong: the tokens fit no message.
	TooLong Problem = "too_long"
)

// Problems are all problems, in the order in which reports have them.
func Problems() []Problem {
	return []Problem{NoUser, UserID, NoAccess, NotEncrypted, OtherKey, Double, Spent, TooLong}
}

// Says is the meaning of a problem, and its remedy.
func (p Problem) Says() string {
	return map[Problem]string{
		NoUser:       "tokens without a user id: fill in the user column",
		UserID:       "a user id that is longer than 256 bytes, or has control characters",
		NoAccess:     "a refresh token without an access token: the user must sign in again",
		NotEncrypted: "tokens that are not as Laravel encrypts: is encrypted to be false?",
		OtherKey:     "tokens that app_key does not open: was APP_KEY changed?",
		Double:       "several rows with one user id: none of them is taken",
		Spent:        "tokens that newer ones replaced: was the table restored from a backup?",
		TooLong:      "tokens that are too long for a message",
	}[p]
}

// session reads a row. empty: the row holds no tokens.
func (t *Table) session(r row) (s session, empty bool, p Problem) {
	var err error
	if s.access, err = t.open(r.access); err == nil {
		s.refresh, err = t.open(r.refresh)
	}
	switch {
	case errors.Is(err, appdb.ErrKey):
		return s, false, OtherKey
	case err != nil:
		return s, false, NotEncrypted
	case s.token().IsZero():
		s.user = r.user.String
		return s, true, ""
	case !r.user.Valid || r.user.String == "":
		return s, false, NoUser
	case schema.CheckUser(r.user.String) != nil:
		return s, false, UserID
	case s.access.IsZero():
		return s, false, NoAccess
	}
	s.user, s.expiresAt = r.user.String, when(r.expires)
	if s.expiresAt.IsZero() {
		s.expiresAt = expiryOf(s.access.Reveal())
	}
	return s, false, ""
}

// open is a token as the app means it.
func (t *Table) open(text string) (secret.Value, error) {
	if t.crypter == nil || text == "" {
		return secret.New(text), nil
	}
	plain, err := t.crypter.Decrypt(text)
	return secret.New(plain), err
}

// forms are the forms in which databases write times as text. A time without a zone is in UTC.
var forms = []string{"2006-01-02 15:04:05-07", "2006-01-02 15:04:05", time.RFC3339}

// when reads a time: a database's, or seconds since 1970. Zero: not a time.
func when(text string) time.Time {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n > 0 {
		return time.Unix(n, 0).UTC()
	}
	for _, form := range forms {
		if at, err := time.Parse(form, text); err == nil {
			return at.UTC()
		}
	}
	return time.Time{}
}

// before is a time of the database, in its form, that much earlier. Other texts stay as they are.
func before(text string, d time.Duration) string {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return strconv.FormatInt(n-int64(d.Seconds()), 10)
	}
	for _, form := range forms {
		if at, err := time.Parse(form, text); err == nil {
			return at.Add(-d).Format(form)
		}
	}
	return text
}

// expiryOf reads exp of a JWT, and checks nothing else in the JWT. Zero: no exp.
func expiryOf(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	var claims struct {
		Exp float64 `json:"exp"`
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(payload, &claims) != nil || claims.Exp <= 0 ||
		claims.Exp > 1e11 {
		return time.Time{}
	}
	return time.Unix(int64(claims.Exp), 0).UTC()
}
