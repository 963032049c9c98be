package refresh

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
	"go.opentelemetry.io/otel/metric"
)

// Config holds the parts and the settings of a Consumer.
type Config struct {
	Store     grant.Store
	Timers    Timers
	Outcomes  Outcomes
	Parking   Parking
	Logins    Logins
	Now       func() time.Time // the stream's clock, which all workers share
	Providers map[string]Provider
	// Subjects names the subject on which a rejected login came.
	Subjects schema.Subjects
	// Cipher seals and opens parked pairs.
	Cipher grant.Cipher
	// Parse reads the grant and the work out of a due message.
	Parse func(subject string, h schema.Header) (grant.Key, grant.Work, error)
	// Source is the CloudEvents source of outcomes. Default "/renewd".
	Source string
	// ClaimFor is how long a claim lasts unless a heartbeat extends it. Default 10 s; keep it at
	// the runner's AckWait.
	ClaimFor time.Duration
	// ParkAfter is how long the store may take to save a rotated pair before the pair is parked as
	// well. Default 250 ms.
	ParkAfter time.Duration
	// Unsaved is how many pairs may wait to be saved before no more tokens are presented. Default
	// 64.
	Unsaved int
	// SaveLimit is how long after the work's end the store is still offered a pair that is neither
	// saved nor parked. Default 1 min.
	SaveLimit time.Duration
	// MaxProfile is the size of the largest profile to be stored and published, in bytes of JSON:
	// half of the largest message of the stream, say. schema.FitProfile leaves something out of a
	// larger profile. Default 512 KiB.
	MaxProfile int
	// Rand draws from [0,1), for jitter; safe for concurrent use.
	Rand   func() float64
	Logger *slog.Logger
	Meter  metric.Meter
}

// Consumer handles due renewals.
type Consumer struct {
	Config
	providers map[string]*Provider // the providers of Config, with their defaults
	meters    meters
	unsaved   *backlog
	since     time.Time // when this worker started, by the stream's clock
}

// New checks c and fills in its defaults. Errors name the field.
func New(c Config) (*Consumer, error) {
	for name, missing := range map[string]bool{
		"Store": c.Store == nil, "Timers": c.Timers == nil, "Outcomes": c.Outcomes == nil,
		"Parking": c.Parking == nil, "Logins": c.Logins == nil, "Now": c.Now == nil,
		"Cipher": c.Cipher == nil, "Parse": c.Parse == nil, "Rand": c.Rand == nil,
		"Logger": c.Logger == nil, "Meter": c.Meter == nil,
	} {
		if missing {
			return nil, fmt.Errorf("refresh: %s: missing", name)
		}
	}
	if c.Source == "" {
		c.Source = "/renewd"
	}
	if c.ClaimFor == 0 {
		c.ClaimFor = 10 * time.Second
	}
	if c.ParkAfter == 0 {
		c.ParkAfter = 250 * time.Millisecond
	}
	if c.Unsaved == 0 {
		c.Unsaved = 64
	}
	if c.SaveLimit == 0 {
		c.SaveLimit = time.Minute
	}
	if c.MaxProfile == 0 {
		c.MaxProfile = 512 << 10
	}
	providers := make(map[string]*Provider, len(c.Providers))
	for id, p := range c.Providers {
		p.Policy = p.Policy.WithDefaults()
		if err := p.Policy.Validate(); err != nil {
			return nil, fmt.Errorf("refresh: provider %s: %w", id, err)
		}
		p.named = new(atomic.Int64)
		providers[id] = &p
	}
	m, err := newMeters(c.Meter)
	if err != nil {
		return nil, err
	}
	return &Consumer{
		Config: c, providers: providers, meters: m, unsaved: &backlog{limit: c.Unsaved},
		since: c.Now(),
	}, nil
}
