package stream_test

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// A command that is put off while the grant's own timer is about to fire does not take the timer's
// place: the server would remove both when it fires the timer that it knows of. Both come.
func TestACommandTakesNoPlaceOfATimerThatFires(t *testing.T) {
	js, e := fresh(t)
	for round := range 5 {
		now := time.Now()
		timer, asked := fmt.Sprint("t", round), fmt.Sprint("r", round)
		must(t, e.Arm(t.Context(), alice, now.Add(700*time.Millisecond), work(timer)))
		must(t, e.Arm(t.Context(), alice, now.Add(2*time.Second), command(asked)))
		var got []string
		for range 2 {
			m := renewal(t, js)
			_, w, err := e.ParseWork(m.Subject(), map[string][]string(m.Headers()))
			must(t, err)
			got = append(got, w.Cause.ID)
			ack(t, m)
		}
		if want := []string{timer, asked}; !slices.Equal(got, want) {
			t.Errorf("came %v, want %v", got, want)
		}
	}
}
