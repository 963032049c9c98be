package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/schema"
)

// tokenReads is the source of a read's renewals.
const tokenReads = "/renewd/tokens"

// Each door is asked this often, and has at most this many waiting readers at a time.
const (
	readEvery = 50 * time.Millisecond
	readsWait = 64
)

// tokenRead is an access token read by an app.
type tokenRead struct {
	who     *person
	door    string
	sent    time.Time
	want    time.Duration // the least validity asked for; 0: any living token
	version int64
	short   string
	ends    time.Time // as the answer says
	known   bool      // the provider made the token
	made    standin.Issued
}

// The doors.
const (
	doorHTTP = "HTTP"
	doorNATS = "NATS"
)

// readers are apps that keep reading access tokens from all workers.
type readers struct {
	world  *world
	people *people
	secret string // of their client
	http   http.Client

	mu         sync.Mutex
	read       []tokenRead
	refused    int // there is no token for the user
	unanswered int // the door is down, or told to ask again
}

// newReaders makes the readers with their client.
func newReaders(w *world, p *people) (*readers, error) {
	secret, err := output(w.command(nil, "clients", "add", "chaos", "--may", "token"))
	if err != nil {
		return nil, fmt.Errorf("clients add: %w", err)
	}
	return &readers{
		world:  w,
		people: p,
		secret: secret,
		http:   http.Client{Timeout: 20 * time.Second},
	}, nil
}

// run reads until ctx ends, and returns when all reads begun are answered.
func (r *readers) run(ctx context.Context) {
	var wg sync.WaitGroup
	for stream, ask := range map[string]func(
		*rand.Rand, *person, time.Duration,
	) (schema.AccessToken, error){
		doorHTTP: r.overHTTP, doorNATS: r.overNATS,
	} {
		wg.Go(func() { r.door(ctx, stream, ask) })
	}
	wg.Wait()
}

func (r *readers) door(
	ctx context.Context, door string,
	ask func(*rand.Rand, *person, time.Duration) (schema.AccessToken, error),
) {
	draw := rand.New(rand.NewPCG(r.world.Seed, uint64(len(door))<<8+uint64(door[0])))
	places := make(chan struct{}, readsWait)
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		one := tokenRead{
			who: r.people.all[draw.IntN(len(r.people.all))], door: door,
			want: r.wants(draw),
		}
		own := rand.New(rand.NewPCG(draw.Uint64(), 0))
		select {
		case places <- struct{}{}:
		default:
			continue // all readers wait
		}
		wg.Go(func() {
			defer func() { <-places }()
			one.sent = time.Now()
			t, err := ask(own, one.who, one.want)
			r.note(one, t, err)
		})
	}
}

// wants draws a least validity. Most reads take the present token. The longest validity has tokens
// renewed some seconds before their timer fires.
func (r *readers) wants(draw *rand.Rand) time.Duration {
	switch draw.IntN(16) {
	case 0:
		return r.world.Life / 4
	case 1, 2, 3:
		return r.world.Life / 10
	}
	return 0
}

var errUnanswered = errors.New("not answered")

// overHTTP asks any worker.
func (r *readers) overHTTP(
	draw *rand.Rand, x *person, want time.Duration,
) (t schema.AccessToken, _ error) {
	k := r.world.workers[draw.IntN(len(r.world.workers))]
	at := fmt.Sprintf("http://%s/v1/users/%s/%s/token?min_valid=%s",
		k.http, x.provider.id, url.PathEscape(x.name), want)
	q, err := http.NewRequest(http.MethodGet, at, nil)
	if err != nil {
		return t, err
	}
	q.Header.Set("Authorization", "Bearer "+r.secret)
	res, err := r.http.Do(q)
	if err != nil {
		return t, fmt.Errorf("%w: %w", errUnanswered, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusConflict:
		return t, fmt.Errorf("status %d", res.StatusCode)
	default:
		return t, fmt.Errorf("%w: status %d", errUnanswered, res.StatusCode)
	}
	if err != nil || json.Unmarshal(body, &t) != nil {
		return t, fmt.Errorf("%w: cut off", errUnanswered)
	}
	return t, nil
}

// overNATS asks whichever worker the server chooses.
func (r *readers) overNATS(
	_ *rand.Rand, x *person, want time.Duration,
) (schema.AccessToken, error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.http.Timeout)
	defer cancel()
	if want == 0 {
		want = -1 // any living token
	}
	whom := consumers.Whom{Provider: x.provider.id, User: x.name}
	t, err := consumers.Token(ctx, r.world.nc, whom, want)
	if no, ok := errors.AsType[*schema.NoToken](err); err != nil &&
		(!ok || no.RetryAfterSeconds > 0) {
		err = fmt.Errorf("%w: %w", errUnanswered, err)
	}
	return t, err
}

// note keeps the answer and the provider's knowledge of the token, but not the token.
func (r *readers) note(one tokenRead, t schema.AccessToken, err error) {
	one.version, one.short, one.ends = t.Version, t.Short, t.ExpiresAt
	one.made, one.known = one.who.provider.Issued(t.AccessToken)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.read = append(r.read, one)
	case errors.Is(err, errUnanswered):
		r.unanswered++
	default:
		r.refused++
	}
}

func (t tokenRead) String() string {
	var text strings.Builder
	fmt.Fprintf(&text,
		"%s of %s over %s at %s for %v: session %d, generation %d, version %d, until %s",
		t.who.name, t.who.provider.id, t.door, t.sent.Format(clockFormat), t.want,
		t.made.Session, t.made.Generation, t.version, t.ends.Format(clockFormat))
	if t.short != "" {
		fmt.Fprintf(&text, ", %s", t.short)
	}
	return text.String()
}
