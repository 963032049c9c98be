package sql

import (
	"fmt"
	"testing"
	"time"
)

// Rows whose time of change is yet to come keep no others from being seen: the place stays where
// the others are, and goes on with them.
func TestTimesToComeHoldNobodyUp(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	text := func(after time.Duration) string { return now.Add(after).Format(time.DateTime) }
	v := &view{place: place{Updated: text(-time.Hour)}}
	for i := range spare - 3 {
		v.pass(row{id: fmt.Sprintf("ahead%d", i), updated: text(20 * time.Hour)})
	}
	for range 3 { // a row counts once, by its newest time
		v.pass(row{id: "ahead0", updated: text(25 * time.Hour)})
	}
	for i := range 100 { // more than a clock can be ahead
		v.pass(row{id: fmt.Sprintf("never%d", i), updated: text(50 * time.Hour)})
	}
	const honest = 1000
	for i := range honest {
		v.pass(row{id: fmt.Sprint(i), updated: text(time.Duration(i-honest) * time.Second)})
	}
	if want := text(-4 * time.Second); v.place.Updated != want { // 3 rows after it, and those ahead
		t.Errorf("the place is %s, want %s", v.place.Updated, want)
	}
	rows := []row{{id: "1", updated: text(50 * time.Hour)}, {id: "2", updated: text(-time.Hour)},
		{id: "3", updated: text(0)}, {id: "4"}}
	if got := earliest(rows); got != text(-time.Hour) {
		t.Errorf("of the rows of a walk the first changed at %s", got)
	}
}
