package storetest

import (
	"errors"
	"testing"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/testkit/link"
)

// LostReply holds s, which reaches its server through l, against the contract: a save whose reply
// was lost is no conflict, and Load shows by the writer's mark that the record was stored.
func LostReply(t *testing.T, s grant.Store, l *link.Link) {
	t.Helper()
	g := insert(t, s, Full(jane))
	for range 2 { // so that nothing is left to prepare at the loss
		rev, err := s.Save(t.Context(), g)
		must(t, err)
		g.Revision = rev
	}
	g.SavedBy, g.Version = "mine", g.Version+1
	l.LoseNextReply()
	_, err := s.Save(t.Context(), g)
	if err == nil || errors.Is(err, grant.ErrConflict) || errors.Is(err, grant.ErrNotFound) ||
		l.Lost() != 1 {
		t.Fatalf("save: %v, %d replies lost", err, l.Lost())
	}
	var got grant.Grant
	eventually(t, func() bool {
		got, err = s.Load(t.Context(), jane)
		return err == nil
	})
	if got.SavedBy != "mine" || got.Version != g.Version || got.Revision == g.Revision {
		t.Errorf("the save whose reply was lost is not there: saved by %q, version %d", got.SavedBy,
			got.Version)
	}
	_, err = s.Save(t.Context(), g)
	wantErr(t, err, grant.ErrConflict)
}
