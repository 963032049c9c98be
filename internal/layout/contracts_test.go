package layout

import (
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.yaml.in/yaml/v3"

	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// described is a stream as the AsyncAPI document shows it.
type described struct {
	Subjects    []string `yaml:"subjects"`
	Retention   string   `yaml:"retention"`
	Discard     string   `yaml:"discard"`
	PerSubject  int64    `yaml:"max_msgs_per_subject"`
	MaxAge      string   `yaml:"max_age"`
	MaxBytes    string   `yaml:"max_bytes"`
	MaxSize     int32    `yaml:"max_msg_size"`
	AllowTTL    bool     `yaml:"allow_msg_ttl"`
	AllowDirect bool     `yaml:"allow_direct"`
}

// The streams that services meet are made as the AsyncAPI document describes them.
func TestDocumentedStreamsAreTheOnesMade(t *testing.T) {
	text, err := fs.ReadFile(schema.Files(), "asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		JetStream struct {
			Streams map[string]described `yaml:"streams"`
		} `yaml:"x-jetstream"`
	}
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	made := map[string]described{}
	// the settings' defaults
	limited := topology.Topology{OutcomeBytes: 4 << 30, CommandBytes: 512 << 20}
	for _, s := range limited.WithDefaults().Streams() {
		made[s.Name] = describe(s)
	}
	for _, name := range []string{topology.Logins, topology.Requests, topology.Outcomes} {
		want, got := made[name], doc.JetStream.Streams[name]
		slices.Sort(want.Subjects)
		slices.Sort(got.Subjects)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s is described as\n%+v\nand made as\n%+v", name, got, want)
		}
	}
	if n := len(doc.JetStream.Streams); n != 3 {
		t.Errorf("%d streams described: %q", n, slices.Collect(maps.Keys(doc.JetStream.Streams)))
	}
}

func describe(s jetstream.StreamConfig) described {
	d := described{
		Subjects:    s.Subjects,
		Retention:   "limits",
		Discard:     "old",
		PerSubject:  max(s.MaxMsgsPerSubject, 0),
		MaxSize:     max(s.MaxMsgSize, 0),
		MaxAge:      fmt.Sprintf("%dd", s.MaxAge/(24*time.Hour)),
		AllowTTL:    s.AllowMsgTTL,
		AllowDirect: s.AllowDirect,
	}
	if s.MaxBytes > 0 {
		d.MaxBytes = fmt.Sprintf("%dMiB", s.MaxBytes>>20)
	}
	if s.Retention == jetstream.WorkQueuePolicy {
		d.Retention = "workqueue"
	}
	if s.Discard == jetstream.DiscardNew {
		d.Discard = "new"
	}
	return d
}
