package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"runtime/metrics"
	"slices"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/schema"
)

// screen prints lines. On a terminal it keeps the newest summary below the lines. Safe for
// concurrent use.
type screen struct {
	live bool // a terminal
	mu   sync.Mutex
	out  io.Writer
	last string // the summary on the screen
}

func newScreen(out io.Writer) *screen { return &screen{live: isTerminal(out), out: out} }

const eraseLine = "\r\x1b[K"

// Write prints whole lines.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == "" {
		return s.out.Write(p)
	}
	var b bytes.Buffer
	b.WriteString(eraseLine)
	b.Write(p)
	b.WriteString(s.last)
	if _, err := s.out.Write(b.Bytes()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// summary shows text in place of the last summary. Without a terminal it prints text as a new line.
func (s *screen) summary(text string, colour palette) {
	if !s.live {
		fmt.Fprintln(s, text)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = colour.paint("1", cut(text, s.width()))
	fmt.Fprint(s.out, eraseLine+s.last)
}

// end takes the summary's line out of the way.
func (s *screen) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != "" {
		fmt.Fprintln(s.out)
		s.last = ""
	}
}

func (s *screen) width() int {
	if f, ok := s.out.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil {
			return width
		}
	}
	return 80
}

// cut shortens text to one line.
func cut(text string, width int) string {
	r := []rune(text)
	if len(r) >= width {
		r = r[:max(0, width-1)]
	}
	return string(r)
}

// summarise shows the score, in place every second, or as a line every ten.
func (w *devWorld) summarise(ctx context.Context) error {
	every := w.app.dev.summaryEvery
	if every == 0 {
		every = 10 * time.Second
		if w.screen.live {
			every = time.Second
		}
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			w.screen.summary(w.score.text(now), w.colour)
		}
	}
}

// score counts the outcomes of the users' grants.
type score struct {
	mu       sync.Mutex
	began    time.Time
	renewed  int
	signed   int // had to sign in again
	failed   int
	lateness []time.Duration // of the last thousand renewals by timer
	latest   time.Duration
}

func newScore(now time.Time) *score { return &score{began: now} }

const scoreWindow = 1000

func (s *score) add(e schema.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch e.Type {
	case schema.UserReauthRequired:
		s.signed++
	case schema.UserRefreshFailed, schema.MessageRejected:
		s.failed++
	case schema.UserSynced:
		d, err := schema.Data[schema.Synced](e)
		if err != nil || !d.Refreshed {
			return
		}
		s.renewed++
		// A grant that fell due while no renewd ran is late for that reason.
		if d.Cause.Type == schema.CauseTimer && d.Cause.Time.After(s.began) {
			s.late(max(0, e.Time.Sub(d.Cause.Time)))
		}
	}
}

// late notes how long after its time a renewal was done and told.
func (s *score) late(d time.Duration) {
	s.latest = max(s.latest, d)
	if s.lateness = append(s.lateness, d); len(s.lateness) > scoreWindow {
		s.lateness = slices.Delete(s.lateness, 0, len(s.lateness)-scoreWindow)
	}
}

func (s *score) text(now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	late := "none by timer yet"
	if n := len(s.lateness); n > 0 {
		late = fmt.Sprintf("late by %v, at most %v",
			slices.Sorted(slices.Values(s.lateness))[n/2].Round(time.Millisecond),
			s.latest.Round(time.Millisecond))
	}
	runs := settings.FormatDuration(now.Sub(s.began).Round(time.Second))
	return fmt.Sprintf("── %s · %s (%s) · %d signed out · %s · %d MB ──",
		runs, plain.Plural(s.renewed, "renewal"), late, s.signed, plain.Plural(s.failed, "failure"),
		memory()>>20)
}

// memory is this process's memory, in bytes.
func memory() uint64 {
	samples := []metrics.Sample{
		{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"},
	}
	metrics.Read(samples)
	return samples[0].Value.Uint64() - samples[1].Value.Uint64()
}
