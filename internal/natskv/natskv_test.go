package natskv_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/natskv"
	"github.com/renewd/renewd/internal/storetest"
	"github.com/renewd/renewd/internal/stream"
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
