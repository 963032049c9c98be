package storetest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Renewals loads and saves records with a profile of 1.1 kB from many goroutines, like renewals
// that change nothing in the profile.
func Renewals(b *testing.B, s grant.Store) {
	b.Helper()
	const users = 64
	odd := fmt.Sprintf(`{"user_id":"x","properties":{"note":%q}}`, strings.Repeat("note ", 200))
	for n := range users {
		g := Full(grant.Key{Provider: "p", User: fmt.Sprint("u", n)})
		g.Profile = Profile(schema.Profile{
			ID: g.User, Email: "jane@example.com", Name: "Jane Doe", Raw: json.RawMessage(odd),
		})
		if _, err := s.Save(b.Context(), g); err != nil {
			b.Fatal(err)
		}
	}
	free := make(chan grant.Key, users)
	for n := range users {
		free <- grant.Key{Provider: "p", User: fmt.Sprint("u", n)}
	}
	b.SetParallelism(16)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			k := <-free
			g, err := s.Load(b.Context(), k)
			if err == nil {
				g.Version++
				_, err = s.Save(b.Context(), g)
			}
			if err != nil {
				b.Error(err)
			}
			free <- k
		}
	})
}
