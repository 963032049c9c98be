package natskv

import (
	"testing"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/storetest"
	"github.com/renewd/renewd/internal/testkit/golden"
)

// Records of every version stay readable, and say after a save what they said before.
func TestRecordsStayReadable(t *testing.T) {
	k := grant.Key{Provider: "propelauth", User: "jane@example.com"}
	written := func(t *testing.T, g grant.Grant) []byte {
		t.Helper()
		raw, err := encode(storetest.Cipher{}, g, false)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	again := func(t *testing.T, kept []byte) []byte {
		t.Helper()
		g, err := decode(storetest.Cipher{}, k, kept, 1)
		if err != nil {
			t.Fatal(err)
		}
		return written(t, g)
	}
	golden.Check(t, "testdata/record", written(t, storetest.Full(k)), again)
}
