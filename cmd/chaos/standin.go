package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/renewd/renewd/internal/standin"
)

// standIn is a provider.
type standIn struct {
	*standin.Server
	id       string
	url      string
	grace    bool
	listener net.Listener
	http     *http.Server
	seen     *presentations
	asked    *calls
}

// The providers: graceful honours a spent token for a while, and strict never does.
const (
	graceful = "grace"
	strict   = "strict"
)

// Each provider has the settings as shipped, but shorter times: tokens live seconds, so intervals
// of minutes must be seconds too. The provider without a grace window has a revocation endpoint.
const providerSettings = `
  - id: %s
    preset: %s
    auth_url: %s
    client_id: chaos
    allow_http_loopback: true
    timeout: 6s
    concurrency: %d
    rate: %v
    policy: {floor: 1s, retry_min: 1s, retry_max: 5s, retry_later: 10s, confirm_min: 5s,
      confirm_max: 8s, confirm_unknown: 10s, margin_share: %v, jitter_share: %v}
    guard: {release: 5s, alone: 20s}
`

// floor is the policy's least time between two attempts on one grant.
const floor = time.Second

// tuning holds the settings changed while workers run.
type tuning struct {
	concurrency int
	rate        float64
	margin      float64 // as a share of a token's life
	jitter      float64
}

// asShipped are the defaults of tuning.
var asShipped = tuning{concurrency: 64, margin: 0.2, jitter: 0.1}

// write writes the settings file. A worker reads the file at its start.
func (w *world) write(t tuning) error {
	text := "providers:\n"
	for _, id := range []string{graceful, strict} {
		preset := "propelauth"
		if id == strict {
			preset = "oidc"
		}
		text += fmt.Sprintf(providerSettings, id, preset, w.providers[id].url, t.concurrency,
			t.rate, t.margin, t.jitter)
	}
	return os.WriteFile(w.config, []byte(text+w.outside.settings()), 0o600)
}

func (w *world) startProviders(context.Context) error {
	for _, id := range []string{graceful, strict} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		p := &standIn{
			id:       id,
			url:      "http://" + l.Addr().String(),
			grace:    id == graceful,
			listener: l,
			seen:     &presentations{owners: w.owners},
			asked:    &calls{},
		}
		o := standin.Options{
			Lifetime: w.Life,
			ClientID: "chaos",
			Latency:  20 * time.Millisecond,
			Rotation: standin.Strict,
			OIDC:     true,
			Observe:  p.seen.add,
			Asked:    p.asked.add,
		}
		if p.grace {
			o.Rotation, o.Grace, o.OIDC = standin.Grace, 30*time.Second, false
		}
		p.Server = standin.New(o)
		p.http = &http.Server{
			Handler:           p.Server,
			ReadHeaderTimeout: 10 * time.Second,
			ConnContext:       w.owners.note,
		}
		go func() { _ = p.http.Serve(l) }() // until close
		w.providers[id] = p
	}
	w.config = filepath.Join(w.dir, "renewd.yaml")
	return w.write(asShipped)
}
