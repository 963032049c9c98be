package main

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/renewd/renewd/internal/standin"
)

// An erasure that gave up in a storm removed something but told nothing. It is run again once all
// is healed, unless the person has signed in since.
func TestAnErasureThatGaveUpIsRunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storm := true
		tried := map[string]int{}
		erased, back, calm := aPerson("erased"), aPerson("back"), aPerson("calm")
		p := &people{
			all:   []*person{erased, back, calm},
			swept: map[string]bool{},
			say:   t.Logf,
			tape:  &tape{erased: map[string]erasure{}},
			opens: map[string]time.Time{},
		}
		p.forget = func(x *person) ([]byte, error) {
			if tried[x.name]++; storm {
				return []byte("some of it may be erased: run this again"),
					errors.New("exit status 1")
			}
			return nil, nil
		}
		for _, x := range []*person{erased, back} {
			if x.unsure = !p.erase(t.Context(), x); !x.unsure {
				t.Fatal("an erasure succeeded in the storm")
			}
		}
		began := erased.erasing[0]
		p.open(back)
		storm, tried = false, map[string]int{}
		<-time.After(time.Minute)

		if err := p.eraseAgain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(tried) != 1 || tried["erased"] != 1 {
			t.Errorf("erased again: %v", tried)
		}
		if !erased.erased || erased.unsure || erased.gaveUp || !p.swept[erased.login.id] {
			t.Errorf("after it was erased again: erased %t, unsure %t, gave up %t", erased.erased,
				erased.unsure, erased.gaveUp)
		}
		if !erased.erasing[0].Equal(began) {
			t.Errorf("the erasure began at %v, and its second try at %v", began, erased.erasing[0])
		}
		if back.erased || calm.erased {
			t.Error("an erasure took another person")
		}
	})
}

// An erasure that gives up while nothing is down is an error of the run.
func TestAnErasureThatGivesUpInTheCalmIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := aPerson("stuck")
		x.gaveUp = true
		p := &people{
			all:    []*person{x},
			say:    t.Logf,
			forget: func(*person) ([]byte, error) { return nil, errors.New("exit status 1") },
		}
		if p.eraseAgain(t.Context()) == nil {
			t.Error("no error")
		}
	})
}

func aPerson(name string) *person {
	return &person{
		provider: &standIn{Server: standin.New(standin.Options{}), id: strict},
		name:     name,
	}
}
