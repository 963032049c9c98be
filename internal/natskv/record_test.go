package natskv

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/testkit/golden"
	"github.com/renewd/renewd/internal/testkit/storetest"
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
	again := func(t *testing.T, file []byte) []byte {
		t.Helper()
		kept := compact(t, file)
		g, _, err := decode(storetest.Cipher{}, k, kept, 1, false)
		if err != nil {
			t.Fatal(err)
		}
		return withTokens(t, written(t, g), kept)
	}
	golden.Check(t, "testdata/record", written(t, storetest.Full(k)), again)
}

// compact is a golden file as it was stored.
func compact(t *testing.T, file []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := json.Compact(&out, file); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// withTokens is raw with the sealed tokens of kept, if both seal the same tokens. The sealed tokens
// themselves differ, since each bind another form of the record.
func withTokens(t *testing.T, raw, kept []byte) []byte {
	t.Helper()
	var now, was record
	if err := errors.Join(json.Unmarshal(raw, &now), json.Unmarshal(kept, &was)); err != nil {
		t.Fatal(err)
	}
	if !storetest.SameTokens(now.Sealed, was.Sealed) {
		return raw
	}
	return whole(cut(raw), was.Sealed)
}

// What a later version put into a record stays when the record is sealed again, and so does what
// that version bound.
func TestResealKeepsWhatItDoesNotKnow(t *testing.T) {
	k := grant.Key{Provider: "p", User: "u"}
	g := storetest.Full(k)
	var r map[string]json.RawMessage
	bare, err := opened(recordOf(g))
	if err == nil {
		err = json.Unmarshal(append(bare, '}'), &r)
	}
	if err != nil {
		t.Fatal(err)
	}
	r["Later"] = json.RawMessage(`{"n":1.50}`)
	for _, bound := range []bool{false, true} {
		if bound {
			r["Bound"] = json.RawMessage("true")
		}
		open, err := opened(r)
		if err != nil {
			t.Fatal(err)
		}
		var digest grant.Digest
		if bound {
			digest = grant.DigestOf(open)
		}
		sealed, err := grant.SealTokens(storetest.Cipher{}, &g, false, digest)
		if err != nil {
			t.Fatal(err)
		}
		again, err := reseal(storetest.Cipher{}, k, whole(open, sealed), false)
		if err != nil {
			t.Fatal(err)
		}
		if _, marked, err := decode(storetest.Cipher{}, k, again, 1, true); err != nil || !marked {
			t.Errorf("bound %t: sealed anew: %v", bound, err)
		}
		var is map[string]json.RawMessage
		if err := json.Unmarshal(again, &is); err != nil {
			t.Fatal(err)
		}
		delete(is, "sealed")
		delete(is, "Bound")
		want := maps.Clone(r)
		delete(want, "Bound")
		if !reflect.DeepEqual(is, want) {
			t.Errorf("bound %t: re-sealed it is\n%s\nwas\n%s", bound, is, want)
		}
	}
}

// A program that takes a record apart, as Reseal of earlier versions did, puts the record together
// in the form that opens.
func TestRecordsAreInTheOrderOfTheirNames(t *testing.T) {
	k := grant.Key{Provider: "p", User: "u"}
	for _, g := range []grant.Grant{
		storetest.Full(k), {Key: k, Version: 1, Status: grant.Forgotten},
	} {
		raw, err := encode(storetest.Cipher{}, g, false)
		if err != nil {
			t.Fatal(err)
		}
		var all map[string]json.RawMessage
		if err := json.Unmarshal(raw, &all); err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(all)
		if err != nil || !bytes.Equal(again, raw) {
			t.Errorf("put together again it is\n%s\nwas\n%s", again, raw)
		}
	}
}

// A record that is put together in any other way than the way that was bound does not open.
func TestOnlyTheBoundFormOpens(t *testing.T) {
	k := grant.Key{Provider: "p", User: "u"}
	good, err := encode(storetest.Cipher{}, storetest.Full(k), false)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(good, []byte(`,"sealed":`))
	tokens := string(good[at+1 : len(good)-1])
	rest := string(good[1:at])
	for what, forged := range map[string]string{
		"a member twice":          `{"Status":"suspended",` + rest + "," + tokens + "}",
		"a member twice, later":   `{` + rest + `,"Status":"suspended",` + tokens + "}",
		"in other letters":        `{` + rest + `,"status":"suspended",` + tokens + "}",
		"after the tokens":        `{` + rest + "," + tokens + `,"status":"suspended"}`,
		"before and after":        `{` + tokens + "," + rest + "," + tokens + "}",
		"half of a pending":       `{"Pending":{"stale":false},` + rest + "," + tokens + "}",
		"with a space at the end": string(good) + " ",
		"with an escape in it": strings.Replace(
			string(good), tokens[:14], tokens[:10]+fmt.Sprintf(`\u%04x`, tokens[10])+tokens[11:14],
			1,
		),
	} {
		_, _, err := decode(storetest.Cipher{}, k, []byte(forged), 1, false)
		if !errors.Is(err, grant.ErrAltered) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Unbound is a record as written by versions that bound no record.
func Unbound(raw []byte, k grant.Key, private bool) ([]byte, error) {
	g, _, err := decode(storetest.Cipher{}, k, raw, 1, false)
	if err != nil {
		return nil, err
	}
	r := recordOf(g)
	if private {
		r.Profile = ""
	}
	if r.Sealed, err = grant.SealTokens(storetest.Cipher{}, &g, private, nil); err != nil {
		return nil, err
	}
	return json.Marshal(r)
}
