package natskv_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/natskv"
	"github.com/renewd/renewd/internal/natstest"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/storetest"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

// server starts one NATS server with the bucket of grants.
func server(t testing.TB) jetstream.JetStream {
	t.Helper()
	s, err := natsd.Start(t.Context(), natsd.Config{StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	nc, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func open(t testing.TB, js jetstream.JetStream, replicas int) *natskv.Store {
	t.Helper()
	return openWith(t, js, replicas, false)
}

func openWith(t testing.TB, js jetstream.JetStream, replicas int, private bool) *natskv.Store {
	t.Helper()
	if _, err := stream.Ensure(t.Context(), js, stream.Topology{Grants: true, Replicas: replicas}.WithDefaults()); err != nil {
		t.Fatal(err)
	}
	s, err := natskv.Open(t.Context(), js, natskv.Config{
		Bucket: stream.BucketGrants, Cipher: storetest.Cipher{}, Now: time.Now, SealProfiles: private,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStoreWithSealedProfiles(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Fixture {
		js := server(t)
		f := fixture(openWith(t, js, 1, true), js, stream.BucketGrants)
		f.SealsProfiles = true
		return f
	})
}

// A profile is sealed, or no longer, with the next save, and read as it is until then.
func TestProfilesChangeTheirForm(t *testing.T) {
	js := server(t)
	plain, private := open(t, js, 1), openWith(t, js, 1, true)
	storetest.ProfilesChangeTheirForm(t, plain, private, func(k grant.Key) bool {
		kv, err := js.KeyValue(t.Context(), stream.BucketGrants)
		if err != nil {
			t.Fatal(err)
		}
		entry, err := kv.Get(t.Context(), k.Provider+"."+schema.EscapeUser(k.User))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(entry.Value()), "Döe")
	})
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Fixture {
		js := server(t)
		return fixture(open(t, js, 1), js, stream.BucketGrants)
	})
}

// fixture looks at records, and damages them, in the bucket itself.
func fixture(s *natskv.Store, js jetstream.JetStream, bucket string) storetest.Fixture {
	traces := func(t *testing.T, k grant.Key) int {
		t.Helper()
		s, err := js.Stream(t.Context(), "KV_"+bucket)
		if err != nil {
			t.Fatal(err)
		}
		info, err := s.Info(t.Context(), jetstream.WithSubjectFilter("$KV."+bucket+"."+k.Provider+"."+schema.EscapeUser(k.User)))
		if err != nil {
			t.Fatal(err)
		}
		return len(info.State.Subjects)
	}
	return storetest.Fixture{Store: s, Traces: traces, Damage: func(t *testing.T, k grant.Key, d storetest.Damage) {
		t.Helper()
		kv, err := js.KeyValue(t.Context(), bucket)
		if err != nil {
			t.Fatal(err)
		}
		name := k.Provider + "." + schema.EscapeUser(k.User)
		damaged := []byte(`{"Version": 12`)
		if d == storetest.LostKey {
			entry, err := kv.Get(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			var record map[string]json.RawMessage
			if err := json.Unmarshal(entry.Value(), &record); err != nil {
				t.Fatal(err)
			}
			if record["sealed"], err = json.Marshal(storetest.LostPair); err != nil {
				t.Fatal(err)
			}
			if damaged, err = json.Marshal(record); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := kv.Put(t.Context(), name, damaged); err != nil {
			t.Fatal(err)
		}
	}}
}

// On three nodes every node answers with what the leader has.
func TestStoreOnThreeNodes(t *testing.T) {
	servers := natstest.Cluster(t)
	var opened atomic.Int32
	storetest.Run(t, func(t *testing.T) storetest.Fixture {
		n := int(opened.Add(1))
		nc, err := nats.Connect(servers[n%len(servers)].ClientURL())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		s, err := settled(t, js, prefixOf(n))
		for end := time.Now().Add(30 * time.Second); err != nil; s, err = settled(t, js, prefixOf(n)) {
			if time.Now().After(end) {
				t.Fatal(err)
			}
			<-time.After(50 * time.Millisecond)
		}
		return fixture(s, js, prefixed(t, prefixOf(n)).Name(stream.BucketGrants))
	})
}

func prefixOf(n int) string { return fmt.Sprintf("t%d", n) }

func prefixed(t *testing.T, prefix string) schema.Subjects {
	t.Helper()
	subjects, err := schema.NewSubjects(prefix)
	if err != nil {
		t.Fatal(err)
	}
	return subjects
}

// settled opens a bucket of its own on the cluster and uses it once: right after its creation not
// every node knows of it, and a write that was sent twice conflicts with itself. Callers look then;
// the suite does not.
func settled(t *testing.T, js jetstream.JetStream, prefix string) (*natskv.Store, error) {
	t.Helper()
	subjects := prefixed(t, prefix)
	bucket := subjects.Name(stream.BucketGrants)
	for _, c := range (stream.Topology{Subjects: subjects, Replicas: 3, Grants: true}).WithDefaults().Streams() {
		if c.Name == "KV_"+bucket {
			if _, err := js.CreateOrUpdateStream(t.Context(), c); err != nil {
				return nil, err
			}
		}
	}
	s, err := natskv.Open(t.Context(), js, natskv.Config{Bucket: bucket, Cipher: storetest.Cipher{}, Now: time.Now})
	if err != nil {
		return nil, err
	}
	warm := grant.Grant{Key: grant.Key{Provider: "warm", User: "up"}}
	if _, err := s.Save(t.Context(), warm); err != nil && !errors.Is(err, grant.ErrConflict) {
		return nil, err
	}
	if _, _, err := s.List(t.Context(), "", 10); err != nil {
		return nil, err
	}
	if warm, err = s.Load(t.Context(), warm.Key); err != nil {
		return nil, err
	}
	return s, s.Delete(t.Context(), warm.Key, warm.Revision)
}

// A save whose reply was lost on the way is found stored.
func TestSaveWhoseReplyWasLost(t *testing.T) {
	s, err := natsd.Start(t.Context(), natsd.Config{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	proxy := storetest.NewProxy(t, strings.TrimPrefix(s.ClientURL(), "nats://"))
	nc, err := nats.Connect("nats://"+proxy.Addr(), nats.ReconnectWait(10*time.Millisecond), nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(2*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	storetest.LostReply(t, open(t, js, 1), proxy)
}

func TestMissingBucketSaysWhatToDo(t *testing.T) {
	_, err := natskv.Open(t.Context(), server(t), natskv.Config{Bucket: "nowhere", Cipher: storetest.Cipher{}, Now: time.Now})
	if err == nil {
		t.Fatal("opened a bucket that is not there")
	}
	t.Log(err)
}

func TestDirectReadsAreRefused(t *testing.T) {
	js := server(t)
	if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "direct"}); err != nil {
		t.Fatal(err)
	}
	if _, err := natskv.Open(t.Context(), js, natskv.Config{Bucket: "direct", Cipher: storetest.Cipher{}, Now: time.Now}); err == nil {
		t.Fatal("opened a bucket whose reads may be stale")
	}
}

// Neither another's clock nor one's own, set wrong or set anew, ends a claim that is alive.
func TestNoClockEndsALiveClaim(t *testing.T) {
	js := server(t)
	s := open(t, js, 1)
	var step atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(step.Load())) }
	rival, err := natskv.Open(t.Context(), js, natskv.Config{Bucket: stream.BucketGrants, Cipher: storetest.Cipher{}, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	for _, by := range []time.Duration{11 * time.Second, -11 * time.Second, time.Hour, -time.Hour, 2 * time.Hour} {
		t.Run(by.String(), func(t *testing.T) {
			g := storetest.Full(grant.Key{Provider: "p", User: by.String()})
			g.Claim = nil
			if _, err := s.Save(t.Context(), g); err != nil {
				t.Fatal(err)
			}
			mine := grant.ClaimRequest{Nonce: "mine", For: time.Hour}
			if _, _, err := s.Claim(t.Context(), g.Key, mine); err != nil {
				t.Fatal(err)
			}
			for _, at := range []time.Duration{0, by} {
				step.Store(int64(at))
				for range 3 {
					if _, _, err := rival.Claim(t.Context(), g.Key, grant.ClaimRequest{Nonce: "other", For: time.Second}); !errors.Is(err, grant.ErrClaimed) {
						t.Fatalf("with a clock %v ahead: %v", at, err)
					}
				}
			}
			if _, _, err := s.Claim(t.Context(), g.Key, mine); err != nil {
				t.Errorf("its holder lost it: %v", err)
			}
		})
	}
}

// A record over the server's limit is refused as such, not as an outage.
func TestTooLargeIsRefused(t *testing.T) {
	s := open(t, server(t), 1)
	g := storetest.Full(grant.Key{Provider: "p", User: "u"})
	g.Profile = grant.Profile(`"` + strings.Repeat("x", 2<<20) + `"`)
	if _, err := s.Save(t.Context(), g); !errors.Is(err, grant.ErrRefused) {
		t.Errorf("saved 2 MiB: %v", err)
	}
}

// interrupted does something after each publish.
type interrupted struct {
	jetstream.JetStream
	published func()
}

func (i interrupted) PublishMsg(ctx context.Context, m *nats.Msg, opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	ack, err := i.JetStream.PublishMsg(ctx, m, opts...)
	i.published()
	return ack, err
}

// A record that is made while the one before it is being erased stays.
func TestErasureSparesWhatCameAfterIt(t *testing.T) {
	js := server(t)
	s := open(t, js, 1)
	g := storetest.Full(grant.Key{Provider: "p", User: "u"})
	rev, err := s.Save(t.Context(), g)
	if err != nil {
		t.Fatal(err)
	}
	between := 0
	eraser, err := natskv.Open(t.Context(), interrupted{js, func() {
		between++
		if _, err := s.Save(t.Context(), g); err != nil {
			t.Error(err)
		}
	}}, natskv.Config{Bucket: stream.BucketGrants, Cipher: storetest.Cipher{}, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if err := eraser.Delete(t.Context(), g.Key, rev); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(t.Context(), g.Key); err != nil || between != 1 {
		t.Errorf("the record made in between: %v, made %d times", err, between)
	}
}

// The mark that an erasure left which was cut short goes with the next.
func TestErasureCutShortIsEnded(t *testing.T) {
	js := server(t)
	f := fixture(open(t, js, 1), js, stream.BucketGrants)
	k := grant.Key{Provider: "p", User: "u"}
	rev, err := f.Save(t.Context(), storetest.Full(k))
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), stream.BucketGrants)
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Purge(t.Context(), "p.u"); err != nil {
		t.Fatal(err)
	}
	if err := f.Delete(t.Context(), k, rev); !errors.Is(err, grant.ErrNotFound) || f.Traces(t, k) != 0 {
		t.Errorf("%v, and %d traces", err, f.Traces(t, k))
	}
}

// What a later version put into a record stays when it is sealed anew.
func TestResealKeepsWhatItDoesNotKnow(t *testing.T) {
	js := server(t)
	s := open(t, js, 1)
	k := grant.Key{Provider: "p", User: "u"}
	if _, err := s.Save(t.Context(), storetest.Full(k)); err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), stream.BucketGrants)
	if err != nil {
		t.Fatal(err)
	}
	entry, err := kv.Get(t.Context(), "p.u")
	if err != nil {
		t.Fatal(err)
	}
	later := append([]byte(`{"Later":{"n":1.50},`), entry.Value()[1:]...)
	revision, err := kv.Put(t.Context(), "p.u", later)
	if err == nil {
		err = s.Reseal(t.Context(), k, revision)
	}
	if err == nil {
		entry, err = kv.Get(t.Context(), "p.u")
	}
	var was, is map[string]json.RawMessage
	err = errors.Join(err, json.Unmarshal(later, &was), json.Unmarshal(entry.Value(), &is))
	if err != nil {
		t.Fatal(err)
	}
	delete(was, "sealed")
	delete(is, "sealed")
	if entry.Revision() == revision || !reflect.DeepEqual(is, was) {
		t.Errorf("sealed anew at revision %d it is\n%s\nwas\n%s", entry.Revision(), is, was)
	}
}

func BenchmarkRenewals(b *testing.B) {
	keys, err := seal.NewKeyring(time.Now())
	if err != nil {
		b.Fatal(err)
	}
	for _, private := range []bool{false, true} {
		b.Run(fmt.Sprintf("sealed=%t", private), func(b *testing.B) {
			js := server(b)
			open(b, js, 1) // makes the bucket
			s, err := natskv.Open(b.Context(), js, natskv.Config{
				Bucket: stream.BucketGrants, Cipher: keys, Now: time.Now, SealProfiles: private,
			})
			if err != nil {
				b.Fatal(err)
			}
			storetest.Renewals(b, s)
		})
	}
}
