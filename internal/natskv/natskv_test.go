package natskv_test

import (
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
	"github.com/renewd/renewd/internal/natstest"
	"github.com/renewd/renewd/internal/storetest"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

// server starts one NATS server with the bucket of grants.
func server(t *testing.T) jetstream.JetStream {
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

func open(t *testing.T, js jetstream.JetStream, replicas int) *natskv.Store {
	t.Helper()
	if _, err := stream.Ensure(t.Context(), js, stream.Topology{Grants: true, Replicas: replicas}.WithDefaults()); err != nil {
		t.Fatal(err)
	}
	s, err := natskv.Open(t.Context(), js, natskv.Config{Bucket: stream.BucketGrants, Cipher: storetest.Cipher{}, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) grant.Store { return open(t, server(t), 1) })
}

// On three nodes every node answers with what the leader has.
func TestStoreOnThreeNodes(t *testing.T) {
	servers := natstest.Cluster(t)
	var opened atomic.Int32
	storetest.Run(t, func(t *testing.T) grant.Store {
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
		s, err := settled(t, js, fmt.Sprintf("t%d", n))
		for end := time.Now().Add(30 * time.Second); err != nil; s, err = settled(t, js, fmt.Sprintf("t%d", n)) {
			if time.Now().After(end) {
				t.Fatal(err)
			}
			<-time.After(50 * time.Millisecond)
		}
		return s
	})
}

// settled opens a bucket of its own on the cluster and uses it once: right after its creation not every node knows of it,
// and a write that was sent twice conflicts with itself. Callers look then; the suite does not.
func settled(t *testing.T, js jetstream.JetStream, prefix string) (*natskv.Store, error) {
	t.Helper()
	subjects, err := schema.NewSubjects(prefix)
	if err != nil {
		t.Fatal(err)
	}
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
