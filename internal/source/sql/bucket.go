package sql

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/bucket"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// The keys of the bucket of sources begin with the kind of the value, and then the source's name.
const (
	keySalt   = "salt."
	keyMark   = "mark."
	keyImport = "import."
	keyPlace  = "place."
	keyStatus = "status."
	keyLease  = "lease."
)

// Bucket is the stored state of one source. A Bucket is safe for concurrent use.
type Bucket struct {
	kv   jetstream.KeyValue
	name string
	salt []byte
}

// OpenBucket opens the stored state of a source. The bucket is there once a source is in the
// settings.
func OpenBucket(
	ctx context.Context, js jetstream.JetStream, subjects schema.Subjects, name string,
) (*Bucket, error) {
	kv, err := openKV(ctx, js, subjects)
	if err != nil {
		return nil, err
	}
	b := &Bucket{kv: kv, name: name}
	fresh := make([]byte, sha256.Size)
	_, _ = rand.Read(fresh) // rand.Read never fails
	_, err = kv.Create(ctx, keySalt+name, fresh)
	if err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
		return nil, fmt.Errorf("write to bucket %s: %w", kv.Bucket(), err)
	}
	salt, err := kv.Get(ctx, keySalt+name)
	if err != nil {
		return nil, fmt.Errorf("read from bucket %s: %w", kv.Bucket(), err)
	}
	b.salt = salt.Value()
	return b, nil
}

func openKV(
	ctx context.Context, js jetstream.JetStream, subjects schema.Subjects,
) (jetstream.KeyValue, error) {
	return bucket.Open(ctx, js, subjects.Name(topology.BucketSources))
}

// mark is the session last seen, or taken, in a user's row.
type mark struct {
	// Token is the fingerprint of the row's refresh token, or of its access token if it had none.
	Token string `json:"token"`
	// Refresh: Token is the fingerprint of a refresh token.
	Refresh bool `json:"refresh,omitempty"`
	// SignedIn is the row's time of the user's last sign-in.
	SignedIn string `json:"signed_in,omitempty"`
	// Suspect: the token changed, and SignedIn did not. If SignedIn changes later, the token came
	// from a sign-in, of an app that writes token and time one after the other.
	Suspect bool `json:"suspect,omitempty"`
	// Taken: the session was published as a login. Else it was only seen, by adopt observe.
	Taken bool `json:"taken,omitempty"`
	// Past are the tokens taken before, the newest first. A row with a past token was restored from
	// a backup.
	Past []string `json:"past,omitempty"`
}

// pasts is how many earlier tokens a mark keeps.
const pasts = 4

// markKey names a mark's user only to a reader who has the salt and the id. The mark stays after an
// erasure, so that the tokens still in the app's row do not bring the user back.
func (b *Bucket) markKey(user string) string {
	mac := hmac.New(sha256.New, b.salt)
	mac.Write([]byte(user))
	return keyMark + b.name + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:16])
}

// mark is the user's; nil: no mark.
func (b *Bucket) mark(ctx context.Context, user string) (*mark, error) {
	e, err := bucket.Get[mark](ctx, b.kv, b.markKey(user))
	if e.Revision == 0 || err != nil {
		return nil, err
	}
	return &e.Value, nil
}

func (b *Bucket) setMark(ctx context.Context, user string, m mark) error {
	return b.store(ctx, b.markKey(user), m)
}

// Progress is how far an import has come.
type Progress struct {
	Began time.Time `json:"began"`
	Done  time.Time `json:"done,omitzero"`
	// After is the id of the last row that was looked at.
	After string `json:"after,omitempty"`
	Tally Tally  `json:"tally"`
}

// Progress is how far the source's import has come; the zero Progress: no import has begun.
func (b *Bucket) Progress(ctx context.Context) (Progress, error) {
	return load[Progress](ctx, b, keyImport+b.name)
}

// place is how far the watch has seen all changes.
type place struct {
	Updated string `json:"updated"` // as the table has it
}

// Status is the report on a source by the process that watches it, each few seconds.
type Status struct {
	At   time.Time `json:"at"`
	Host string    `json:"host,omitempty"`
	// Waits: the watch waits for an import to begin.
	Waits bool `json:"waits,omitempty"`
	// Notified: the database tells of changes.
	Notified bool `json:"notified,omitempty"`
	// Tally is of the rows that changed, since Since.
	Since time.Time `json:"since,omitzero"`
	Tally Tally     `json:"tally"`
	// ForeignAt is when a refresh token was last seen changed without a sign-in.
	ForeignAt time.Time `json:"foreign_at,omitzero"`
	// DownSince: since then the table cannot be read, or no login be published, and Error says why.
	DownSince time.Time `json:"down_since,omitzero"`
	Error     string    `json:"error,omitempty"`
}

// Status is the source's last status; the zero Status: no report yet.
func (b *Bucket) Status(ctx context.Context) (Status, error) {
	return load[Status](ctx, b, keyStatus+b.name)
}

// load reads a value; the zero value: the key is missing.
func load[T any](ctx context.Context, b *Bucket, key string) (v T, err error) {
	e, err := bucket.Get[T](ctx, b.kv, key)
	return e.Value, err
}

func (b *Bucket) store(ctx context.Context, key string, value any) error {
	return bucket.Set(ctx, b.kv, key, value)
}
