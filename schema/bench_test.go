package schema_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/renewd/renewd/schema"
)

// The events renewd handles most: a request as it comes in, and the outcome it sends.
func benchEvents(b *testing.B) map[string]golden {
	all := readGoldens(b)
	return map[string]golden{
		"request":    all["user.refresh_due-reason"],
		"bare":       all["user.refresh_due-empty"],
		"structured": all["user.refresh_due-structured"],
		"synced":     all["user.synced-first"],
		"login":      all["user.login"],
	}
}

func BenchmarkEncode(b *testing.B) {
	for name, g := range benchEvents(b) {
		e, err := g.decode()
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				schema.Encode(e)
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for name, g := range benchEvents(b) {
		h, at := g.header(),
			schema.Arrival{Subject: g.Subject, Stream: "REQUESTS", Sequence: 4711, Time: instant}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(g.Body)))
			for b.Loop() {
				if _, err := (schema.Subjects{}).Decode(h, g.Body, at); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkData(b *testing.B) {
	e, err := benchEvents(b)["synced"].decode()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := schema.Data[schema.Synced](e); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUser(b *testing.B) {
	for name, user := range map[string]string{
		"uuid":  "31c41c16-c281-44ae-9602-8a047e3bf33d",
		"email": "jane@example.com",
		"long":  strings.Repeat("é", 128),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := schema.UnescapeUser(schema.EscapeUser(user)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A flood of rubbish must cost no more than reading it.
func BenchmarkDecodeRubbish(b *testing.B) {
	body := json.RawMessage(`{"a":` + strings.Repeat("[", 1<<16))
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if _, err := (schema.Subjects{}).Decode(nil, body, arrival(requestSubject)); err == nil {
			b.Fatal("taken")
		}
	}
}
