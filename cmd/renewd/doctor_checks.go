package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/guard"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

func (x *examination) streams(ctx context.Context) finding {
	plan, err := stream.Plan(ctx, x.plant.js, x.plant.conf.topology())
	if err != nil {
		return failed(err, "is JetStream on, and may this user ask about streams? On a cluster: has each stream a leader?")
	}
	plan, unbounded := plan.WithoutBounds(false)
	differ := 0
	for _, i := range plan.Items {
		if i.Action == stream.Create || i.Action == stream.Update {
			differ++
		}
	}
	rest := unbraked(plan)
	switch {
	case differ == 0 && len(unbounded) > 0:
		return finding{
			State: warning,
			Found: strings.Join(unbounded, ", ") +
				" without the limits of the settings (outcome_bytes, command_bytes)",
			Advice: fmt.Sprintf("%s streams plan shows whether they would cut anything, "+
				"%s streams apply sets them", x.app.name, x.app.name),
		}
	case differ == 0:
		return finding{State: fine, Found: counted(len(plan.Items), "stream or consumer", "streams and consumers") + ", all as the settings want them"}
	case rest.OnlySenders():
		return finding{State: warning, Found: withoutSenders,
			Advice: fmt.Sprintf("once no worker of an older version is left: %s streams apply", x.app.name)}
	case !rest.Pending():
		return finding{State: warning, Found: "a provider's renewals are slowed down", Advice: "see its state below; it is put right when the provider recovers"}
	}
	return finding{State: broken, Found: counted(differ, "stream or consumer differs", "streams and consumers differ") + " from the settings",
		Advice: fmt.Sprintf("%s streams plan shows how, %s streams apply puts it right", x.app.name, x.app.name)}
}

func (x *examination) clock(ctx context.Context) finding {
	if err := x.plant.engine.SyncClock(ctx); err != nil {
		return failed(err, "the streams must be there: see above")
	}
	if err := x.plant.engine.Ready(); err != nil {
		return failed(err, "set both clocks by NTP; renewd is not ready meanwhile, since timers fire by the server's clock")
	}
	switch skew := x.plant.engine.Skew().Round(time.Millisecond); {
	case skew > 0:
		return finding{State: fine, Found: fmt.Sprintf("the NATS server's is %v ahead of this machine's", skew)}
	case skew < 0:
		return finding{State: fine, Found: fmt.Sprintf("the NATS server's is %v behind this machine's", -skew)}
	}
	return finding{State: fine, Found: "the NATS server's and this machine's agree"}
}

func (x *examination) publicKey(ctx context.Context) finding {
	published, err := x.plant.engine.Keys(ctx)
	switch {
	case err != nil:
		return failed(err, "the bucket of public keys must be there: see the streams above")
	case published == nil:
		return finding{State: broken, Found: "no public key is published, so no service can seal a login", Advice: "start renewd, which publishes it"}
	case bytes.Equal(published, x.plant.keys.JWKS()):
		return finding{State: fine, Found: "published, and of this keyring"}
	case x.plant.keys.published(published):
		return finding{State: fine, Found: "published, and of this keyring: workers publish the key that this file seals with once they read it"}
	}
	return finding{State: broken, Found: "the published public key is another keyring's: logins are sealed so that this one cannot open them",
		Advice: fmt.Sprintf("give every renewd the same keyring; if this is the right one: %s keys publish", x.app.name)}
}

// backlog is how many messages may wait before that is worth a word.
const backlog = 1000

func (x *examination) queues(ctx context.Context) finding {
	d, err := x.plant.engine.Depths(ctx)
	if err != nil {
		return failed(err, "the streams must be there: see above")
	}
	f := finding{State: fine, Found: fmt.Sprintf("%s; %d outcomes", counted(int(d.Timers), "timer", "timers"), d.Outcomes)}
	for _, q := range d.Queues {
		f.Found += fmt.Sprintf("; %s %d waiting, %d in hand", q.Consumer, q.Waiting, q.InHand)
		if q.Waiting > backlog && f.State == fine {
			f.State, f.Advice = warning, "is renewd running, and is it keeping up? Add workers, or raise the provider's concurrency"
		}
		if !q.Paused {
			x.waiting += q.Waiting
		} else {
			f.Found += ", paused"
			f.State, f.Advice = warning, "a provider is left alone for a while: see its state below"
		}
	}
	return f
}

// workers looks whether anything runs that takes what waits.
func (x *examination) workers(ctx context.Context) finding {
	all, err := x.plant.engine.Workers(ctx)
	if err != nil {
		return failed(err, "the buckets must be there: see the streams above")
	}
	if len(all) > 0 {
		var hosts []string
		for _, w := range all {
			if w.Host != "" && !slices.Contains(hosts, w.Host) {
				hosts = append(hosts, w.Host)
			}
		}
		return finding{State: fine, Found: counted(len(all), "runs", "run") + inBrackets(strings.Join(hosts, ", "))}
	}
	x.idle = true
	f := finding{State: warning, Found: "none was heard of in the last two minutes", Advice: "start one: " + x.app.name + " serve. Timers fire meanwhile and wait for it"}
	if x.waiting > 0 {
		f.State, f.Found = broken, f.Found+", and "+counted(int(x.waiting), "message waits", "messages wait")
	}
	return f
}

// room looks at how full the streams are, and at who would miss outcomes if the oldest went.
func (x *examination) room(ctx context.Context) finding {
	d, err := x.plant.engine.Depths(ctx)
	if err != nil {
		return failed(err, "the streams must be there: see above")
	}
	f := finding{State: fine}
	var found []string
	for _, s := range d.Sizes {
		if s.Limit == 0 {
			found = append(found, fmt.Sprintf("%s %s", s.Stream, megabytes(s.Bytes)))
			continue
		}
		of := byteSize(s.Limit)
		found = append(found, fmt.Sprintf("%s %.0f %% of %s", s.Stream, 100*s.Full(), of))
		if s.Crowded() && f.State == fine {
			f.State, f.Advice = warning, s.Hint()
		}
		if s.Crowded() && s.Stream == stream.Outcomes {
			behind, err := x.behind(ctx)
			if err != nil {
				return failed(err, "the streams must be there: see above")
			}
			found = append(found, behind...)
		}
	}
	f.Found = strings.Join(found, "; ")
	return f
}

// behind names the subscribers that have not read some of the older half of the outcomes.
func (x *examination) behind(ctx context.Context) (names []string, err error) {
	s, err := x.plant.js.Stream(ctx, x.plant.conf.subjects().Name(stream.Outcomes))
	if err != nil {
		return nil, err
	}
	state := s.CachedInfo().State
	middle := state.FirstSeq + (state.LastSeq-state.FirstSeq)/2
	list := s.ListConsumers(ctx)
	for c := range list.Info() {
		if c.Config.Durable != "" && c.NumPending > 0 && c.AckFloor.Stream < middle {
			names = append(names,
				fmt.Sprintf("subscriber %s has %d of them to read", c.Name, c.NumPending))
		}
	}
	return names, list.Err()
}

func megabytes(n uint64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func (x *examination) parked(ctx context.Context) finding {
	name := x.plant.conf.subjects().Name(stream.Parked)
	s, err := x.plant.js.Stream(ctx, name)
	if err != nil {
		return failed(err, "the streams must be there: see above")
	}
	state := s.CachedInfo().State
	if state.Msgs == 0 {
		return finding{State: fine, Found: "none"}
	}
	return finding{State: warning, Found: fmt.Sprintf("%s, the oldest since %s", counted(int(state.Msgs), "pair waits", "pairs wait"), clock(state.FirstTime)),
		Advice: "the store did not take them; they are applied once it does. If it is back, and they stay for minutes: is renewd running?"}
}

// provider looks at what is known of a provider's health, and whether it answers. No token is shown
// to it.
func (x *examination) provider(ctx context.Context, s providerSettings, connected bool) finding {
	client, err := x.plant.client(s)
	if err != nil {
		return failed(err, "correct the provider's settings")
	}
	defer client.Close()
	if err := client.Reach(ctx); err != nil {
		return failed(err, "is its address right (auth_url), and can it be reached from here? Nobody is signed out meanwhile")
	}
	if !connected {
		return finding{State: fine, Found: "it answers"}
	}
	bucket, err := x.plant.js.KeyValue(ctx, x.plant.conf.subjects().Name(stream.BucketProviders))
	if err != nil {
		return failed(err, "the buckets must be there: see the streams above")
	}
	known, _, err := guard.Load(ctx, bucket, s.ID)
	if errors.Is(err, guard.ErrRecord) {
		return failed(err, "until then its refusals sign nobody out")
	} else if err != nil {
		return failed(err, "the buckets must be there: see the streams above")
	}
	return standingFound(known, client.Settings())
}

// standingFound says in a sentence how a provider that answers stands, with these settings.
func standingFound(known guard.State, settings string) finding {
	switch {
	case known.Paused != nil:
		until := "until it is resumed"
		if !known.Paused.Until.IsZero() {
			until = "until " + clock(known.Paused.Until)
		}
		return finding{State: warning, Found: fmt.Sprintf("it answers, but %s paused it at %s, %s%s", known.Paused.By, clock(known.Paused.Since), until, inBrackets(known.Paused.Note)),
			Advice: guard.Hint(guard.ReasonPaused)}
	case known.Outage != nil:
		o := known.Outage
		return finding{State: warning, Found: fmt.Sprintf("it answers, but its renewals pause: %s since %s, next try %s", o.Reason, clock(o.Since), clock(o.Until)),
			Advice: guard.Hint(o.Reason)}
	case known.Doubt != nil:
		d := known.Doubt
		what := map[string]string{
			guard.ReasonConfig: "refuses this client", guard.ReasonUnknown: "refuses everybody in words that nobody knows",
		}[d.Reason]
		return finding{State: warning, Found: "it answers, but " + cmp.Or(what, "refuses most users") + " since " + clock(d.Since) + ": nobody is signed out" + waiting(*d),
			Advice: guard.Hint(d.Reason)}
	case known.Settings != settings || known.ProvenAt.IsZero():
		return finding{State: warning, Found: "it answers; nobody was renewed with these settings yet", Advice: "until somebody is, a refusal is held back and signs nobody out"}
	}
	return finding{State: fine, Found: "it answers; the settings have worked since " + clock(known.ProvenAt)}
}

// waiting says whether a doubt makes renewals wait.
func waiting(d guard.Doubt) string {
	if d.Until.IsZero() {
		return ", the others are renewed"
	}
	return ", and nobody is renewed, next try " + clock(d.Until)
}

func (x *examination) store(ctx context.Context) finding {
	what := "grants in NATS KV"
	if !x.plant.conf.DatabaseURL.IsZero() {
		what = "PostgreSQL at " + databaseHost(x.plant.conf.DatabaseURL)
	}
	if err := x.plant.openStore(ctx); err != nil {
		return failed(err, "start it, or correct RENEWD_DATABASE_URL; renewd waits for it and goes on where it stopped")
	}
	return finding{State: fine, Found: what}
}

// census is what a walk over the grants finds.
type census struct {
	all, live, ended, suspended, unproven, unreadable int
	overdue, untimed, looked                          int
	alone, unsure                                     int // who fails alone for a day or longer, who is refused in unknown words
	latest                                            time.Duration
	examples, odd                                     []string // of the late and untimed; of the alone and unsure
}

// overdueAfter is from when on a renewal is late: the reconciler's own measure.
const overdueAfter = time.Minute

// walk looks at every grant, and at the timers of the first of them.
func (x *examination) walk(ctx context.Context, streams bool) finding {
	var n census
	for cursor := ""; ; {
		page, next, err := x.plant.store.List(ctx, cursor, 500)
		if err != nil {
			return failed(err, "the store stopped answering: run this again")
		}
		for _, g := range page {
			if err := x.count(ctx, g, &n, streams); err != nil {
				return failed(err, "NATS stopped answering: run this again")
			}
		}
		if next == "" {
			return x.verdict(n, streams)
		}
		cursor = next
	}
}

func (x *examination) count(ctx context.Context, g grant.Listed, n *census, streams bool) error {
	if g.Err == nil && g.Status == grant.Forgotten {
		return nil // nobody's: the place of an erased user
	}
	n.all++
	switch {
	case g.Err != nil:
		n.unreadable++
		return nil
	case g.Status == grant.Unproven:
		n.unproven++
		return nil
	case g.Status == grant.ReauthRequired:
		n.ended++
		return nil
	case g.Status != grant.Live:
		n.suspended++
		return nil
	}
	n.live++
	if g.LastError == schema.ReasonFailingAlone {
		n.alone++
		example(&n.odd, g.Key)
	}
	if g.Verdict != nil && g.Verdict.Unsure {
		n.unsure++
		example(&n.odd, g.Key)
	}
	late := time.Since(g.NextDueAt)
	if late > overdueAfter && (g.Claim == nil || g.Claim.Until.Before(time.Now())) {
		n.overdue++
		n.latest = max(n.latest, late)
		example(&n.examples, g.Key)
	}
	if !streams || x.grants > 0 && n.looked >= x.grants {
		return nil
	}
	n.looked++
	err := x.timer(ctx, g.Key)
	if errors.Is(err, errNoTimer) {
		n.untimed++
		example(&n.examples, g.Key)
		return nil
	}
	return err
}

func example(list *[]string, k grant.Key) {
	if len(*list) < 3 {
		*list = append(*list, k.String())
	}
}

// timer returns errNoTimer if the grant neither waits for its time nor is due.
func (x *examination) timer(ctx context.Context, k grant.Key) error {
	for range 2 { // between the two looks a timer may have fired
		has, err := x.plant.engine.HasTimer(ctx, k)
		if has || err != nil {
			return err
		}
	}
	return errNoTimer
}

func (x *examination) verdict(n census, streams bool) finding {
	f := finding{State: fine, Found: fmt.Sprintf("%s: %d live, %d must sign in again, %d suspended", counted(n.all, "grant", "grants"), n.live, n.ended, n.suspended)}
	worse := func(s condition, found, advice string) {
		if f.State != broken {
			f.State, f.Advice = s, advice
		}
		f.Found += "; " + found
	}
	if n.unproven > 0 {
		f.Found += fmt.Sprintf(", %d not proven yet", n.unproven)
	}
	if n.suspended > 0 {
		worse(warning, "some are suspended", fmt.Sprintf("their tokens were superseded, as after a restore: %s store check", x.app.name))
	}
	if n.overdue > 0 {
		state, advice := warning, fmt.Sprintf("is the provider well? For instance %v; the reconciler wakes them within minutes", n.examples)
		if x.idle {
			state, advice = broken, fmt.Sprintf("no worker runs that could renew them, for instance %v: %s serve", n.examples, x.app.name)
		}
		worse(state, fmt.Sprintf("%d overdue, the latest by %v", n.overdue, n.latest.Round(time.Second)), advice)
	}
	if n.alone > 0 {
		worse(warning, fmt.Sprintf("%d failed alone for a day or longer", n.alone),
			fmt.Sprintf("the provider fails for them and renews others, but has not said that they must sign in again: ask it why, for instance about %v", n.odd))
	}
	if n.unsure > 0 {
		worse(warning, fmt.Sprintf("%d refused in words that nobody knows", n.unsure),
			fmt.Sprintf("if others are renewed meanwhile, they are told to sign in again after three refusals, hours apart; a rule for this provider says at once what its words mean. For instance %v", n.odd))
	}
	if n.untimed > 0 {
		worse(broken, fmt.Sprintf("%d of %d live ones have no timer", n.untimed, n.looked),
			fmt.Sprintf("the running renewd sets them anew once they are a minute late; for instance %v. If it happens again, tell us: it must not", n.examples))
	}
	if n.unreadable > 0 {
		worse(broken, fmt.Sprintf("%d cannot be opened", n.unreadable), "is this the keyring they were written with (RENEWD_KEYS_FILE)?")
	}
	if streams && n.looked < n.live {
		f.Found += fmt.Sprintf("; timers of the first %d were looked at, see --grants", n.looked)
	}
	return f
}
