package grant_test

import (
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

func windows(t *testing.T, text string) grant.Policy {
	t.Helper()
	all, err := grant.ParseWindows(text)
	if err != nil {
		t.Fatal(err)
	}
	return grant.Policy{Windows: all}
}

func TestADueTimeOutsideAWindowMovesToTheNextOpening(t *testing.T) {
	const office = "Mon-Fri 09:00-17:00 Europe/Berlin"
	for name, tt := range map[string]struct{ windows, at, want string }{
		"none":                  {"", "2026-03-02T03:00:00Z", "2026-03-02T03:00:00Z"},
		"open":                  {office, "2026-03-02T12:00:00Z", "2026-03-02T12:00:00Z"},
		"as it opens":           {office, "2026-03-02T08:00:00Z", "2026-03-02T08:00:00Z"},
		"just before":           {office, "2026-03-02T07:59:59Z", "2026-03-02T08:00:00Z"},
		"as it closes":          {office, "2026-03-02T16:00:00Z", "2026-03-03T08:00:00Z"},
		"over the weekend":      {office, "2026-03-06T20:00:00Z", "2026-03-09T08:00:00Z"},
		"over a change of time": {office, "2026-03-27T20:00:00Z", "2026-03-30T07:00:00Z"},
		"utc without a zone": {"Mon 09:00-17:00", "2026-03-02T03:00:00Z",
			"2026-03-02T09:00:00Z"},
		"a list of days": {"Tue,Thu-Sat 09:00-10:00", "2026-03-03T11:00:00Z",
			"2026-03-05T09:00:00Z"},
		"round the week": {"Sat-Mon 09:00-10:00", "2026-03-02T11:00:00Z", "2026-03-07T09:00:00Z"},
		"overnight, in the evening": {"Mon 22:00-06:00", "2026-03-02T23:00:00Z",
			"2026-03-02T23:00:00Z"},
		"overnight, in the morning": {"Mon 22:00-06:00", "2026-03-03T05:00:00Z",
			"2026-03-03T05:00:00Z"},
		"overnight, after it": {"Mon 22:00-06:00", "2026-03-03T06:00:00Z", "2026-03-09T22:00:00Z"},
		"all day": {"Sat,Sun 00:00-24:00", "2026-03-07T23:59:00Z",
			"2026-03-07T23:59:00Z"},
		"the first of several": {office + "; Sat 10:00-12:00", "2026-03-06T20:00:00Z",
			"2026-03-07T10:00:00Z"},
		"open in one of several": {office + "; daily 02:00-04:00", "2026-03-06T03:00:00Z",
			"2026-03-06T03:00:00Z"},
		"in an hour that is not": {"Sun 02:30-04:00 Europe/Berlin", "2026-03-29T00:00:00Z",
			"2026-03-29T01:30:00Z"},
	} {
		at, err := time.Parse(time.RFC3339, tt.at)
		if err != nil {
			t.Fatal(err)
		}
		if got := new(windows(t, tt.windows)).Within(at, 0).Format(time.RFC3339); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

// The herd that has waited for an opening is spread, and stays in the window.
func TestAnOpeningIsSpread(t *testing.T) {
	at := time.Date(2026, 3, 2, 3, 0, 0, 0, time.UTC)
	for text, most := range map[string]time.Duration{
		"daily 09:00-17:00": 10 * time.Minute, "daily 09:00-09:04": 2 * time.Minute,
	} {
		p := windows(t, text)
		opens := p.Within(at, 0)
		if got := p.Within(at, 0.999999).Sub(opens); got <= most*9/10 || got >= most {
			t.Errorf("%s: spread over %v, want %v", text, got, most)
		}
	}
}

func TestWindowsThatMakeNoSense(t *testing.T) {
	for _, text := range []string{
		"Mon-Fri", "09:00-17:00", "Mon 9-17", "Mon 09:00", "Mon 25:00-26:00", "Funday 09:00-17:00",
		"Mon- 09:00-17:00", "Mon 09:00-17:00 Mars/Olympus", "Mon 09:00-17:00 Local",
		"Mon 24:00-01:00",
		"Mon 09:00-17:00 Europe/Berlin please", "Mon 09:00-17:00, Tue 09:00-17:00",
	} {
		_, err := grant.ParseWindows(text)
		if err == nil || !strings.Contains(err.Error(), "as in Mon-Fri") {
			t.Errorf("%s: %v", text, err)
		}
	}
}
