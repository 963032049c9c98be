package natskv_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/natskv"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/testkit/link"
	testnats "github.com/renewd/renewd/internal/testkit/nats"
	"github.com/renewd/renewd/internal/testkit/storetest"
	"github.com/renewd/renewd/internal/testkit/streams"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// server starts one NATS server with the bucket of grants.
func server(t testing.TB) jetstream.JetStream {
	t.Helper()
	js := streams.Start(t, natsd.Config{})
	return js
}

func open(t testing.TB, js jetstream.JetStream, replicas int) *natskv.Store {
	t.Helper()
	return openWith(t, js, replicas, false)
}

func openWith(t testing.TB, js jetstream.JetStream, replicas int, private bool) *natskv.Store {
	t.Helper()
	if _, err := topology.Ensure(
		t.Context(), js, topology.Topology{Grants: true, Replicas: replicas}.WithDefaults(),
	); err != nil {
		t.Fatal(err)
	}
	s, err := natskv.Open(t.Context(), js, natskv.Config{
		Bucket:       topology.BucketGrants,
		Cipher:       storetest.Cipher{},
		Now:          time.Now,
		SealProfiles: private,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStoreWithSealedProfiles(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Fixture {
		js := server(t)
		f := fixture(openWith(t, js, 1, true), js, topology.BucketGrants)
		f.SealsProfiles = true
		return f
	})
}

// A profile is sealed, or no longer, with the next save, and read as it is until then.
func TestProfilesChangeTheirForm(t *testing.T) {
	js := server(t)
	plain, private := open(t, js, 1), openWith(t, js, 1, true)
	storetest.ProfilesChangeTheirForm(t, plain, private, func(k grant.Key) bool {
		kv, err := js.KeyValue(t.Context(), topology.BucketGrants)
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
		return fixture(open(t, js, 1), js, topology.BucketGrants)
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
		info, err := s.Info(t.Context(), jetstream.WithSubjectFilter("$KV."+bucket+"."+k.Provider+
			"."+schema.EscapeUser(k.User)))
		if err != nil {
			t.Fatal(err)
		}
		return len(info.State.Subjects)
	}
	return storetest.Fixture{
		Store:  s,
		Traces: traces,
		Damage: func(t *testing.T, k grant.Key, d storetest.Damage) {
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
		},
	}
}

// A change of a record by any writer but renewd is noticed.
func TestForgedRecords(t *testing.T) {
	for _, private := range []bool{false, true} {
		t.Run(fmt.Sprintf("sealed=%t", private), func(t *testing.T) {
			storetest.Forged(t, func(t *testing.T) (storetest.Fixture, storetest.Forgery) {
				js := server(t)
				f := fixture(openWith(t, js, 1, private), js, topology.BucketGrants)
				f.SealsProfiles = private
				return f, forgery(t, js, private)
			})
		})
	}
}

// forgery takes records in the bucket apart, and puts them together in the form that renewd writes.
func forgery(t *testing.T, js jetstream.JetStream, private bool) storetest.Forgery {
	t.Helper()
	kv, err := js.KeyValue(t.Context(), topology.BucketGrants)
	if err != nil {
		t.Fatal(err)
	}
	strict, err := natskv.Open(t.Context(), js, natskv.Config{
		Bucket:       topology.BucketGrants,
		Cipher:       storetest.Cipher{},
		Now:          time.Now,
		SealProfiles: private,
		RequireBound: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	name := func(k grant.Key) string { return k.Provider + "." + schema.EscapeUser(k.User) }
	get := func(t *testing.T, k grant.Key) []byte {
		t.Helper()
		entry, err := kv.Get(t.Context(), name(k))
		if err != nil {
			t.Fatal(err)
		}
		return entry.Value()
	}
	put := func(t *testing.T, k grant.Key, raw []byte, err error) {
		t.Helper()
		if err == nil {
			_, err = kv.Put(t.Context(), name(k), raw)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return storetest.Forgery{
		Fields: func(t *testing.T, k grant.Key) map[string]string {
			t.Helper()
			var all map[string]json.RawMessage
			if err := json.Unmarshal(get(t, k), &all); err != nil {
				t.Fatal(err)
			}
			fields := map[string]string{}
			for name, value := range all {
				fields[name] = string(value)
			}
			return fields
		},
		Write: func(t *testing.T, k grant.Key, fields map[string]string) {
			t.Helper()
			all := map[string]json.RawMessage{}
			for name, value := range fields {
				all[name] = json.RawMessage(value)
			}
			raw, err := json.Marshal(all)
			put(t, k, raw, err)
		},
		Sealed: []string{"sealed", "Version"},
		Unbind: func(t *testing.T, k grant.Key) {
			t.Helper()
			raw, err := natskv.Unbound(get(t, k), k, private)
			put(t, k, raw, err)
		},
		Strict: strict,
	}
}

// On three nodes every node answers with what the leader has.
func TestStoreOnThreeNodes(t *testing.T) {
	servers := testnats.Cluster(t)
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
		end := time.Now().Add(30 * time.Second)
		for ; err != nil; s, err = settled(t, js, prefixOf(n)) {
			if time.Now().After(end) {
				t.Fatal(err)
			}
			<-time.After(50 * time.Millisecond)
		}
		return fixture(s, js, prefixed(t, prefixOf(n)).Name(topology.BucketGrants))
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

// settled opens a new bucket on the cluster and uses it once. Right after the creation of a bucket
// not every node knows of it, and a write that was sent twice conflicts with itself. Callers look
// then; the suite does not.
func settled(t *testing.T, js jetstream.JetStream, prefix string) (*natskv.Store, error) {
	t.Helper()
	subjects := prefixed(t, prefix)
	bucket := subjects.Name(topology.BucketGrants)
	for _, c := range (topology.Topology{
		Subjects: subjects,
		Replicas: 3,
		Grants:   true,
	}).WithDefaults().Streams() {
		if c.Name == "KV_"+bucket {
			if _, err := js.CreateOrUpdateStream(t.Context(), c); err != nil {
				return nil, err
			}
		}
	}
	s, err := natskv.Open(t.Context(), js, natskv.Config{
		Bucket: bucket,
		Cipher: storetest.Cipher{},
		Now:    time.Now,
	})
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
	wire := link.For(t, strings.TrimPrefix(s.ClientURL(), "nats://"))
	nc, err := nats.Connect("nats://"+wire.Addr(), nats.ReconnectWait(10*time.Millisecond),
		nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(2*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	storetest.LostReply(t, open(t, js, 1), wire)
}

func TestMissingBucketSaysWhatToDo(t *testing.T) {
	_, err := natskv.Open(t.Context(), server(t), natskv.Config{
		Bucket: "nowhere",
		Cipher: storetest.Cipher{},
		Now:    time.Now,
	})
	if err == nil {
		t.Fatal("opened a bucket that is not there")
	}
	t.Log(err)
}

func TestDirectReadsAreRefused(t *testing.T) {
	js := server(t)
	if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{
		Bucket: "direct",
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := natskv.Open(t.Context(), js, natskv.Config{
		Bucket: "direct",
		Cipher: storetest.Cipher{},
		Now:    time.Now,
	}); err == nil {
		t.Fatal("opened a bucket whose reads may be stale")
	}
}

// No clock, neither another machine's nor this one's, ends a claim that is alive when it is set
// wrong or set again.
func TestNoClockEndsALiveClaim(t *testing.T) {
	js := server(t)
	s := open(t, js, 1)
	var step atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(step.Load())) }
	rival, err := natskv.Open(t.Context(), js, natskv.Config{
		Bucket: topology.BucketGrants,
		Cipher: storetest.Cipher{},
		Now:    now,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, by := range []time.Duration{
		11 * time.Second, -11 * time.Second, time.Hour, -time.Hour, 2 * time.Hour,
	} {
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
					if _, _, err := rival.Claim(t.Context(), g.Key, grant.ClaimRequest{
						Nonce: "other",
						For:   time.Second,
					}); !errors.Is(err, grant.ErrClaimed) {
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

func (i interrupted) PublishMsg(
	ctx context.Context, m *nats.Msg, opts ...jetstream.PublishOpt,
) (*jetstream.PubAck, error) {
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
	}}, natskv.Config{Bucket: topology.BucketGrants, Cipher: storetest.Cipher{}, Now: time.Now})
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

// The mark of an erasure that was cut short is removed by the next erasure.
func TestErasureCutShortIsEnded(t *testing.T) {
	js := server(t)
	f := fixture(open(t, js, 1), js, topology.BucketGrants)
	k := grant.Key{Provider: "p", User: "u"}
	rev, err := f.Save(t.Context(), storetest.Full(k))
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), topology.BucketGrants)
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Purge(t.Context(), "p.u"); err != nil {
		t.Fatal(err)
	}
	if err := f.Delete(t.Context(), k, rev); !errors.Is(err, grant.ErrNotFound) ||
		f.Traces(t, k) != 0 {
		t.Errorf("%v, and %d traces", err, f.Traces(t, k))
	}
}

func BenchmarkRenewals(b *testing.B) {
	keys, err := seal.NewKeyring(time.Now())
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct{ private, files bool }{
		{false, false}, {true, false}, {false, true},
	} {
		b.Run(fmt.Sprintf("sealed=%t,files=%t", c.private, c.files), func(b *testing.B) {
			var config natsd.Config
			if c.files {
				config.Key = secret.New("a key of the server's files")
			}
			js := streams.Start(b, config)
			open(b, js, 1) // makes the bucket
			s, err := natskv.Open(b.Context(), js, natskv.Config{
				Bucket: topology.BucketGrants, Cipher: keys, Now: time.Now, SealProfiles: c.private,
			})
			if err != nil {
				b.Fatal(err)
			}
			storetest.Renewals(b, s)
		})
	}
}
