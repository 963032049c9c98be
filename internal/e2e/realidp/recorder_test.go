package realidp

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// answer is one exchange with a provider's token or userinfo endpoint. Tokens in it are hashes.
type answer struct {
	Endpoint    string // token or userinfo
	User        string // whose refresh token was presented; empty if unknown
	Presented   string // hash of the refresh token that was presented
	Renewed     string // hash of the new refresh token in the answer; empty if it had none
	Status      int
	ContentType string
	Body        string
	Start, End  time.Time
	Lost        bool // the client was gone before it could have read the answer
}

// recorder stands between renewd and a provider. It keeps every answer, knows the owner of each
// refresh token, and notes whatever a client must never do with a refresh token. Its door can be
// held: a client that presents a token then waits in front of the provider, which has not seen the
// token yet.
type recorder struct {
	watched
	backend   http.Handler
	endpoints map[string]string // by path

	answers []answer
	owner   map[string]string // refresh token's hash → user
	spent   map[string]bool   // hashes of refresh tokens that were answered with another one
	renewed map[string]int    // user → answers with tokens
	present map[string]int    // user → presentations that are not answered yet
	doubt   map[string]bool   // hashes of refresh tokens that a 5xx may have spent
	lost    map[string]bool   // users whose session the provider lost, see leave
	inside  int               // presentations that the provider is handling
	waiting int               // presentations in front of the held door
	hungUp  int               // presentations whose client went away in front of the door
	door    chan struct{}     // closed: open
	wrong   []string
}

func newRecorder(backend http.Handler, endpoints map[string]string) *recorder {
	r := &recorder{
		watched:   newWatched(),
		backend:   backend,
		endpoints: endpoints,
		owner:     map[string]string{},
		spent:     map[string]bool{},
		renewed:   map[string]int{},
		doubt:     map[string]bool{},
		lost:      map[string]bool{},
		present:   map[string]int{},
		door:      make(chan struct{}),
	}
	close(r.door)
	return r
}

// own tells the recorder of a refresh token that a user got at sign-in.
func (r *recorder) own(user, token string) { r.update(func() { r.owner[hash(token)] = user }) }

// hold closes the door.
func (r *recorder) hold() { r.update(func() { r.door = make(chan struct{}) }) }

// release opens the door for all who wait.
func (r *recorder) release() { r.update(func() { close(r.door) }) }

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	endpoint := r.endpoints[req.URL.Path]
	if endpoint == "" {
		r.backend.ServeHTTP(w, req)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, 1<<16))
	if err != nil {
		return // the client is gone, or sends what ours never do
	}
	req.Body = io.NopCloser(bytes.NewReader(body))
	a := answer{Endpoint: endpoint, Start: time.Now()}
	if form, err := url.ParseQuery(string(body)); err == nil && form.Has("refresh_token") {
		a.Presented = hash(form.Get("refresh_token"))
	}
	if a.Presented != "" && !r.enter(req.Context(), &a) {
		return
	}
	said := httptest.NewRecorder()
	r.backend.ServeHTTP(said, req)
	a.Status, a.ContentType = said.Code, said.Header().Get("Content-Type")
	a.Body, a.Renewed = redact(said.Body.Bytes())
	if a.Renewed == a.Presented {
		a.Renewed = "" // the provider does not rotate this token
	}
	maps.Copy(w.Header(), said.Header())
	w.Header().Set("Content-Length", fmt.Sprint(said.Body.Len()))
	w.WriteHeader(said.Code)
	_, err = w.Write(said.Body.Bytes())
	a.Lost = cmp.Or(err, http.NewResponseController(w).Flush(), req.Context().Err()) != nil
	a.End = time.Now()
	r.leave(a)
}

// enter notes a presentation and lets it through the door. It returns false if the client went away
// before.
func (r *recorder) enter(ctx context.Context, a *answer) bool {
	var door chan struct{}
	r.update(func() {
		a.User = r.owner[a.Presented]
		door = r.door
		r.waiting++
		if r.spent[a.Presented] {
			r.wrong = append(r.wrong,
				fmt.Sprintf("%s: token %s was presented again after it had "+
					"been answered with a new one", a.User, a.Presented))
		}
		if r.present[a.User]++; a.User != "" && r.present[a.User] > 1 {
			r.wrong = append(r.wrong,
				fmt.Sprintf("%s: %d presentations at a time", a.User, r.present[a.User]))
		}
	})
	select {
	case <-door:
	case <-ctx.Done():
	}
	gone := ctx.Err() != nil || closedByPeer(ctx)
	r.update(func() {
		r.waiting--
		if gone {
			r.hungUp++
			r.present[a.User]--
			return
		}
		r.inside++
	})
	return !gone
}

// leave notes an answer. An answer that the client did not read spends no token, since the client
// is then right to present that token again.
func (r *recorder) leave(a answer) {
	r.update(func() {
		r.answers = append(r.answers, a)
		if a.Presented == "" {
			return
		}
		r.inside--
		r.present[a.User]--
		if a.Renewed != "" {
			r.owner[a.Renewed] = a.User
			r.spent[a.Presented] = !a.Lost
		}
		switch tokens := strings.Contains(a.Body, `"access_token"`); {
		case a.Status == http.StatusOK && !tokens:
			r.lost[a.User] = true // the provider, Glewlwyd, broke the session's record
		case a.Status == http.StatusOK && !a.Lost:
			r.renewed[a.User]++
		case a.Status >= 500:
			r.doubt[a.Presented] = true
		case a.Status >= 400 && a.Status != http.StatusUnauthorized && r.doubt[a.Presented]:
			r.lost[a.User] = true
		}
	})
}

// lostSessions returns a copy of the set of users whose session the provider has lost by itself.
func (r *recorder) lostSessions() (lost map[string]bool) {
	r.look(func() { lost = maps.Clone(r.lost) })
	return lost
}

// refusals are the presentations that were answered with a 4xx.
func (r *recorder) refusals() (all []answer) {
	r.look(func() {
		for _, a := range r.answers {
			if a.Presented != "" && a.Status/100 == 4 {
				all = append(all, a)
			}
		}
	})
	return all
}

// summary counts the answers by what they say, one line each.
func (r *recorder) summary() string {
	counts := map[string]int{}
	r.look(func() {
		for _, a := range r.answers {
			what := a.Body
			if a.Status == http.StatusOK {
				what = strings.Join(members(a.Body), " ")
			}
			answer := fmt.Sprintf("%s %d %s %s",
				a.Endpoint, a.Status, a.ContentType, strings.TrimSpace(what))
			counts[answer]++
		}
	})
	var lines []string
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		lines = append(lines, fmt.Sprintf("%6d × %s", counts[what], what))
	}
	return strings.Join(lines, "\n")
}

func members(body string) []string {
	var object map[string]json.RawMessage
	_ = json.Unmarshal([]byte(body), &object)
	return slices.Sorted(maps.Keys(object))
}

func hash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:6])
}

var secrets = regexp.MustCompile(`("(access_token|refresh_token|id_token)"\s*:\s*")([^"]*)(")`)

// redact replaces tokens with hashes, and returns the hash of the refresh token.
func redact(body []byte) (text, refresh string) {
	text = secrets.ReplaceAllStringFunc(string(body), func(member string) string {
		part := secrets.FindStringSubmatch(member)
		if part[2] == "refresh_token" {
			refresh = hash(part[3])
		}
		return part[1] + hash(part[3]) + part[4]
	})
	return text, refresh
}

type connKey struct{}

// withConn puts a server's connection where closedByPeer finds it.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// closedByPeer checks whether the client has closed its end, as the system does for a process that
// was killed. The server notices that by itself, but some time later.
func closedByPeer(ctx context.Context) bool {
	c, ok := ctx.Value(connKey{}).(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	closed := false
	err = raw.Control(func(fd uintptr) {
		n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1),
			syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		closed = n == 0 && err == nil || err != nil && err != syscall.EAGAIN
	})
	return closed || err != nil
}
