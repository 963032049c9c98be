package natsd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/renewd/renewd/internal/secret"
)

// Auth is the proof that clients of the embedded server must show: one token, or one user with a
// password, or one of some nkeys, or a user of a file of accounts. Without accounts every client
// let in may publish and read everything, renewd's own subjects included.
type Auth struct {
	Token    secret.Value
	User     string
	Password secret.Value
	// Nkeys are public user keys, U…; see ParseNkeys.
	Nkeys []string
	// Accounts is a file with the settings of a NATS server. Only its accounts and their users
	// count. This process itself has the rights of the user OwnUser.
	Accounts string
}

// OwnUser is renewd's own user in a file of accounts.
const OwnUser = "renewd"

func (a Auth) isZero() bool {
	return a.Token.IsZero() && a.User == "" && a.Password.IsZero() && len(a.Nkeys) == 0 &&
		a.Accounts == ""
}

// ParseNkeys reads a file of public user nkeys, one nkey a line. Empty lines and comments after #
// are left out.
func ParseNkeys(file []byte) ([]string, error) {
	var keys []string
	lines := bufio.NewScanner(bytes.NewReader(file))
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		key := strings.TrimSpace(line)
		if key == "" {
			continue
		}
		if !nkeys.IsValidPublicUserKey(key) {
			// The key itself stays out of the text: a seed put here by mistake must not reach a
			// log.
			return nil, fmt.Errorf("line %d: no public user nkey: want U and 55 more characters, "+
				"as `nsc` or `nk -gen user -pubout` print it", n)
		}
		keys = append(keys, key)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, errors.New("no nkey in the file")
	}
	return keys, nil
}

// apply sets a in the server's options, and returns this process's own proof.
func (a Auth) apply(o *server.Options) ([]nats.Option, error) {
	kinds := 0
	for _, given := range []bool{
		!a.Token.IsZero(), a.User != "" || !a.Password.IsZero(), len(a.Nkeys) > 0, a.Accounts != "",
	} {
		if given {
			kinds++
		}
	}
	switch {
	case kinds == 0:
		return nil, nil
	case kinds > 1:
		return nil, errors.New("auth: want a token, or a user and password, or nkeys, or " +
			"accounts, not several of them")
	case !a.Token.IsZero():
		o.Authorization = a.Token.Reveal()
		return []nats.Option{nats.Token(a.Token.Reveal())}, nil
	case len(a.Nkeys) > 0:
		return a.nkeys(o)
	case a.Accounts != "":
		return a.accounts(o)
	case a.User == "" || a.Password.IsZero():
		return nil, errors.New("auth: user and password go together")
	}
	o.Username, o.Password = a.User, a.Password.Reveal()
	return []nats.Option{nats.UserInfo(a.User, a.Password.Reveal())}, nil
}

// nkeys lets the given keys in, and a key in this process only, for its own connections.
func (a Auth) nkeys(o *server.Options) ([]nats.Option, error) {
	own, show, err := ownKey()
	if err != nil {
		return nil, err
	}
	for _, key := range append([]string{own}, a.Nkeys...) {
		o.Nkeys = append(o.Nkeys, &server.NkeyUser{Nkey: key})
	}
	return []nats.Option{show}, nil
}

// accounts lets in the file's users, and a key in this process only, with the rights of OwnUser.
func (a Auth) accounts(o *server.Options) ([]nats.Option, error) {
	file, err := server.ProcessConfigFile(a.Accounts)
	if err != nil {
		return nil, fmt.Errorf("auth: accounts: %w", err)
	}
	i := slices.IndexFunc(file.Users, func(u *server.User) bool {
		return u.Username == OwnUser && u.Account != nil
	})
	if i < 0 {
		return nil, fmt.Errorf("auth: accounts: %s: no account has the user %s: "+
			"renewd nats config prints such a file", a.Accounts, OwnUser)
	}
	own, show, err := ownKey()
	if err != nil {
		return nil, err
	}
	renewd := file.Users[i]
	o.Accounts, o.Users = file.Accounts, file.Users
	o.Nkeys = append(file.Nkeys, &server.NkeyUser{
		Nkey: own, Account: renewd.Account, Permissions: withUpdates(renewd.Permissions),
	})
	return []nats.Option{show}, nil
}

// withUpdates is p with the right to change the settings of any stream of the account. The process
// that holds the streams' files adapts the streams to its own settings at its start. Before that no
// operator can, since no server is up.
func withUpdates(p *server.Permissions) *server.Permissions {
	if p == nil || p.Publish == nil {
		return p
	}
	publish := *p.Publish
	publish.Allow = append(slices.Clone(publish.Allow), "$JS.API.STREAM.UPDATE.*")
	return &server.Permissions{
		Publish: &publish, Subscribe: p.Subscribe, Response: p.Response,
	}
}

// checkPasswords refuses an empty password, which an unset variable leaves behind. Where any client
// may try passwords, checkPasswords also refuses a short password, which can be guessed. The length
// of a hashed password cannot be checked.
func checkPasswords(users []*server.User, open bool) error {
	const enough = 16 // bytes
	for _, u := range users {
		n := len(u.Password)
		if n == 0 {
			return fmt.Errorf("user %s: its password is empty: set the variable that the "+
				"file names", u.Username)
		}
		if open && n < enough && !strings.HasPrefix(u.Password, "$2") {
			return fmt.Errorf("user %s: password of %d bytes: want %d or more, random; for "+
				"instance from: openssl rand -hex 24",
				u.Username, n, enough)
		}
	}
	return nil
}

// ownKey is a public user key of this process only, with the option to show the key.
func ownKey() (public string, show nats.Option, err error) {
	pair, err := nkeys.CreateUser()
	if err == nil {
		public, err = pair.PublicKey()
	}
	if err != nil {
		return "", nil, fmt.Errorf("auth: create own nkey: %w", err)
	}
	return public, nats.Nkey(public, pair.Sign), nil
}
