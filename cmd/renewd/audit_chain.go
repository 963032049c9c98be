package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/audit"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
)

type auditChain struct {
	clientFlags
	File   string `arg:"" help:"The chain: a file outside of NATS, made if it is not there."`
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// chained is the result of audit chain, as -o json prints it.
type chained struct {
	Appended int    `json:"appended"`
	Outcomes int    `json:"outcomes"`
	Head     string `json:"head"`
}

// Run appends new outcomes. Outcomes from before a failure stay in the chain.
func (s auditChain) Run(ctx context.Context, a *app, c *cli) (err error) {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	nc, err := a.connect(conf, s.Server)
	if err != nil {
		return err
	}
	defer nc.Close()
	file, err := audit.OpenFile(s.File)
	if err != nil {
		return settings.Mistake(err)
	}
	q := consumers.Query{Prefix: conf.NATSPrefix, Since: file.Since()}
	var done chained
	done.Appended, err = file.Append(file, consumers.Replay(ctx, nc, q))
	if err = errors.Join(err, file.Close()); err != nil {
		return streamHint(err, a)
	}
	done.Outcomes, done.Head = file.Len(), file.Head()
	if s.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(done)
	}
	_, err = fmt.Fprintf(a.stdout, "appended %s; the chain has %d; note its head elsewhere:\n%s\n",
		plain.Plural(done.Appended, "outcome"), done.Outcomes, done.Head)
	return err
}

type auditVerify struct {
	clientFlags
	File   string   `arg:"" help:"A chain that renewd audit chain has written."`
	Seen   []string `placeholder:"HEAD" help:"A head of the chain that was noted before; may be repeated. The chain must still have it."`
	Output string   `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Run compares, and changes nothing.
func (s auditVerify) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(s.File)
	if err != nil {
		return settings.Mistake(err)
	}
	chain, _, err := audit.ReadChain(raw)
	if err != nil {
		return fmt.Errorf("%s: %w: it was changed, or cut at its front", s.File, err)
	}
	for _, head := range s.Seen {
		if !chain.Has(head) {
			return fmt.Errorf("%s: the chain has no head %s: lines at its end were removed or "+
				"replaced, or this is another chain", s.File, head)
		}
	}
	nc, err := a.connect(conf, s.Server)
	if err != nil {
		return err
	}
	defer nc.Close()
	ages := audit.Ages{
		Outcome: conf.OutcomeAge, Synced: min(conf.SyncedAge, conf.OutcomeAge),
		Rejected: min(conf.RejectedAge, time.Hour), // where the stream is crowded
	}
	stored := consumers.Replay(ctx, nc, consumers.Query{Prefix: conf.NATSPrefix})
	got, err := chain.Verify(stored, ages, time.Now())
	if err != nil {
		return streamHint(err, a)
	}
	if s.Output == "json" {
		err = json.NewEncoder(a.stdout).Encode(got)
	} else {
		err = printReport(a.stdout, got)
	}
	if err == nil && !got.Intact() {
		err = fmt.Errorf("%s: the stored outcomes are not those of the chain", s.File)
	}
	return err
}

func printReport(to io.Writer, r audit.Report) error {
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', 0)
	for _, row := range []struct {
		what  string
		n     int
		means string
	}{
		{"present", r.Present, "stored as the chain has them"},
		{"expired", r.Expired, "gone after their time (outcome_age, synced_age, rejected_age)"},
		{"erased", r.Erased, "gone since their user was erased: each has a user.forgotten"},
		{"newer", r.Newer, "not in the chain yet"},
		{"missing", r.Missing, "gone before their time; a full stream drops the oldest too"},
		{"foreign", r.Foreign, "changed since, or put in"},
		{"moved", r.Moved, "stored in another order"},
	} {
		fmt.Fprintf(w, "%s\t%d\t%s\n", row.what, row.n, row.means)
	}
	for _, text := range r.First {
		fmt.Fprintln(w, plain.Text(text))
	}
	fmt.Fprintln(w, "head", r.Head)
	return w.Flush()
}
