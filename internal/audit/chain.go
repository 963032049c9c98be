package audit

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/renewd/renewd/schema"
)

// Chain is what a file outside of NATS says of the outcomes, one line for each, in the order in
// which they were stored:
//
//	renewd-chain 1 SALT
//	TIME TYPE USER DIGEST CHAIN
//
// DIGEST is an HMAC of the outcome under the salt, and USER an HMAC of its provider and user, so
// that a line names no user. CHAIN is the SHA-256 of the line's front and of the CHAIN before it. A
// CHAIN noted elsewhere tells whether any line up to it was changed or removed. All of them are
// hexadecimal, since a CHAIN is given to a command, where base64url may look like a flag.
//
// A Chain is not safe for concurrent use.
type Chain struct {
	salt   []byte
	titled bool // its title is in the file
	lines  []line
	at     map[string]int // a digest's place in lines
	head   string
}

// line is an outcome in the chain.
type line struct {
	time   time.Time // when the outcome happened, to the second
	of     schema.Type
	user   string
	digest string
	chain  string
}

const (
	chainTitle = "renewd-chain 1"
	saltSize   = 32 // bytes
	userSize   = 10 // bytes of a digest that tell users apart
)

// ErrChain: a file is no chain, or was changed by hand.
var ErrChain = errors.New("not a chain of outcomes as it was written")

// NewChain begins an empty chain with a fresh salt.
func NewChain() (*Chain, error) {
	c := &Chain{salt: make([]byte, saltSize), at: map[string]int{}}
	if _, err := rand.Read(c.salt); err != nil {
		return nil, err
	}
	c.head = hash("", c.title())
	return c, nil
}

// ReadChain reads a chain back and follows it. The error wraps ErrChain where a line does not
// follow from the lines before it. A last line without its end, as a crash leaves it, does not
// count: whole is the number of bytes that count.
func ReadChain(raw []byte) (c *Chain, whole int, err error) {
	whole = bytes.LastIndexByte(raw, '\n') + 1
	if whole == 0 {
		c, err = NewChain()
		return c, 0, err
	}
	lines := strings.Split(strings.TrimSuffix(string(raw[:whole]), "\n"), "\n")
	salt, ok := strings.CutPrefix(lines[0], chainTitle+" ")
	key, err := hex.DecodeString(salt)
	if !ok || err != nil || len(key) != saltSize {
		return nil, 0, fmt.Errorf("%w: line 1: want %q and a salt", ErrChain, chainTitle)
	}
	c = &Chain{salt: key, at: map[string]int{}, titled: true}
	c.head = hash("", c.title())
	for n, text := range lines[1:] {
		l, err := parseLine(text)
		if err != nil || l.chain != hash(c.head, l.front()) {
			return nil, 0, fmt.Errorf("%w: line %d does not follow from the lines before it",
				ErrChain, n+2)
		}
		c.add(l)
	}
	return c, whole, nil
}

func parseLine(text string) (l line, err error) {
	words := strings.Split(text, " ")
	if len(words) != 5 {
		return l, ErrChain
	}
	l = line{of: schema.Type(words[1]), user: words[2], digest: words[3], chain: words[4]}
	l.time, err = time.Parse(time.RFC3339, words[0])
	return l, err
}

func (c *Chain) title() string {
	return chainTitle + " " + hex.EncodeToString(c.salt)
}

func (l line) front() string {
	at := l.time.UTC().Format(time.RFC3339)
	return strings.Join([]string{at, string(l.of), l.user, l.digest}, " ")
}

func hash(before, text string) string {
	sum := sha256.Sum256([]byte(before + "\n" + text))
	return hex.EncodeToString(sum[:])
}

func (c *Chain) add(l line) {
	c.at[l.digest] = len(c.lines)
	c.lines = append(c.lines, l)
	c.head = l.chain
}

// mac is a digest of texts under the chain's salt.
func (c *Chain) mac(size int, texts ...string) string {
	m := hmac.New(sha256.New, c.salt)
	for _, text := range texts {
		fmt.Fprintf(m, "%d:%s", len(text), text)
	}
	return hex.EncodeToString(m.Sum(nil)[:size])
}

// lineOf is an outcome's line, without its place in the chain.
func (c *Chain) lineOf(e schema.Event) line {
	data := bytes.NewBuffer(nil)
	if json.Compact(data, e.Data) != nil {
		data = bytes.NewBuffer(e.Data)
	}
	return line{
		time: e.Time.UTC().Truncate(time.Second), of: e.Type, user: c.userOf(e),
		digest: c.mac(sha256.Size, e.ID, e.Source, string(e.Type), e.Provider, e.User,
			e.Time.UTC().Format(time.RFC3339Nano), data.String()),
	}
}

// userOf tells the outcomes of one user from those of others; "-": the outcome is no user's.
func (c *Chain) userOf(e schema.Event) string {
	if e.User == "" {
		return "-"
	}
	return c.mac(userSize, "user", e.Provider, e.User)
}

// Head is the CHAIN of the newest line, and so stands for all lines.
func (c *Chain) Head() string { return c.head }

// Len is how many outcomes are in the chain.
func (c *Chain) Len() int { return len(c.lines) }

// Has reports whether a line of the chain, or its title, has this CHAIN.
func (c *Chain) Has(chain string) bool {
	return chain == hash("", c.title()) ||
		slices.ContainsFunc(c.lines, func(l line) bool { return l.chain == chain })
}

// overlap is how long before the chain's newest outcome reading begins again: an outcome is stored
// after it happened, by a clock that differs.
const overlap = time.Hour

// Since is the time from which on outcomes may be missing in the chain; zero: all are missing.
func (c *Chain) Since() time.Time {
	if len(c.lines) == 0 {
		return time.Time{}
	}
	return c.lines[len(c.lines)-1].time.Add(-overlap)
}

// Append writes a line for each outcome missing in the chain, and the title before the first line.
// It returns how many outcomes it has added. A malformed event is left out.
func (c *Chain) Append(w io.Writer, outcomes iter.Seq2[schema.Event, error]) (n int, err error) {
	out := bufio.NewWriterSize(w, 1<<20)
	if !c.titled {
		fmt.Fprintln(out, c.title())
		c.titled = true
	}
	for e, err := range outcomes {
		if _, foreign := errors.AsType[*schema.Malformed](err); foreign {
			continue
		}
		if err != nil {
			return n, errors.Join(err, out.Flush())
		}
		l := c.lineOf(e)
		if _, there := c.at[l.digest]; there {
			continue
		}
		l.chain = hash(c.head, l.front())
		c.add(l)
		n++
		if _, err := fmt.Fprintln(out, l.front(), l.chain); err != nil {
			return n, err
		}
	}
	return n, out.Flush()
}
