package admin

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/health"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/topology"
)

func (x *examination) streams(ctx context.Context) Finding {
	plan, err := topology.Plan(ctx, x.on.JS, daemon.Topology(x.on.Conf))
	if err != nil {
		return failed(err,
			"is JetStream on, and may this user ask about streams? On a cluster: "+
				"has each stream a leader?")
	}
	plan, unbounded := plan.WithoutBounds(false)
	differ := 0
	for _, i := range plan.Items {
		if i.Action == topology.Create || i.Action == topology.Update {
			differ++
		}
	}
	rest := daemon.Unbraked(plan)
	switch {
	case differ == 0 && len(unbounded) > 0:
		return Finding{
			State: Warning,
			Found: strings.Join(unbounded, ", ") +
				" without the limits of the settings (outcome_bytes, command_bytes)",
			Advice: fmt.Sprintf("%s streams plan shows whether they would cut anything, "+
				"%s streams apply sets them", x.program, x.program),
		}
	case differ == 0:
		return Finding{
			State: Fine,
			Found: plain.Counted(len(plan.Items), "stream or consumer", "streams and consumers") +
				", all as the settings want them",
		}
	case rest.OnlySenders():
		return Finding{State: Warning, Found: daemon.WithoutSenders,
			Advice: fmt.Sprintf("once no worker of an older version is left: %s streams apply",
				x.program)}
	case !rest.Pending():
		return Finding{
			State:  Warning,
			Found:  "a provider's renewals are slowed down",
			Advice: "see its state below; it is put right when the provider recovers",
		}
	}
	found := plain.Counted(differ, "stream or consumer differs", "streams and consumers differ")
	return Finding{
		State: Broken,
		Found: found + " from the settings",
		Advice: fmt.Sprintf("%s streams plan shows how, %s streams apply puts it right",
			x.program, x.program),
	}
}

func (x *examination) clock(ctx context.Context) Finding {
	if err := x.on.Engine.SyncClock(ctx); err != nil {
		return failed(err, "the streams must be there: see above")
	}
	if err := x.on.Engine.Ready(); err != nil {
		return failed(err,
			"set both clocks by NTP; renewd is not ready meanwhile, "+
				"since timers fire by the server's clock")
	}
	switch skew := x.on.Engine.Skew().Round(time.Millisecond); {
	case skew > 0:
		return Finding{
			State: Fine,
			Found: fmt.Sprintf("the NATS server's is %v ahead of this machine's", skew),
		}
	case skew < 0:
		return Finding{
			State: Fine,
			Found: fmt.Sprintf("the NATS server's is %v behind this machine's", -skew),
		}
	}
	return Finding{State: Fine, Found: "the NATS server's and this machine's agree"}
}

func (x *examination) publicKey(ctx context.Context) Finding {
	published, err := x.on.Engine.Keys(ctx)
	switch {
	case err != nil:
		return failed(err, "the bucket of public keys must be there: see the streams above")
	case published != nil && !x.on.Keys.TakesLogins():
		return Finding{
			State: Fine,
			Found: "published; this renewd takes no logins, and cannot tell whose it is",
		}
	case published == nil:
		return Finding{
			State:  Broken,
			Found:  "no public key is published, so no service can seal a login",
			Advice: "start renewd, which publishes it",
		}
	case bytes.Equal(published, x.on.Keys.JWKS()):
		if f := x.signature(ctx); f.Found != "" {
			return f
		}
		return Finding{State: Fine, Found: "published, and of this keyring"}
	case x.on.Keys.Published(published):
		return Finding{
			State: Fine,
			Found: "published, and of this keyring: workers publish the key that this file seals " +
				"with once they read it",
		}
	}
	return Finding{State: Broken, Found: "the published public key is another keyring's: " +
		"logins are sealed so that this one cannot open them",
		Advice: fmt.Sprintf("give every renewd the same keyring; "+
			"if this is the right one: %s keys publish", x.program)}
}

// backlog is how many messages may wait before the doctor warns.
const backlog = 1000

func (x *examination) queues(ctx context.Context) Finding {
	d, err := x.on.Engine.Depths(ctx)
	if err != nil {
		return failed(err, "the streams must be there: see above")
	}
	f := Finding{
		State: Fine,
		Found: fmt.Sprintf("%s; %d outcomes",
			plain.Counted(int(d.Timers), "timer", "timers"), d.Outcomes),
	}
	for _, q := range d.Queues {
		f.Found += fmt.Sprintf("; %s %d waiting, %d under way", q.Consumer, q.Waiting, q.InHand)
		if q.Waiting > backlog && f.State == Fine {
			f.State, f.Advice = Warning, "is renewd running, and is it keeping up? Add workers, "+
				"or raise the provider's concurrency"
		}
		if !q.Paused {
			x.waiting += q.Waiting
		} else {
			f.Found += ", paused"
			f.State, f.Advice = Warning, "a provider is left alone for a while: see its state below"
		}
	}
	return f
}

// workers looks whether a worker runs to take the waiting messages.
func (x *examination) workers(ctx context.Context) Finding {
	all, err := x.on.Engine.Workers(ctx)
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
		return Finding{
			State: Fine,
			Found: plain.Counted(len(all), "runs", "run") +
				plain.InBrackets(strings.Join(hosts, ", ")),
		}
	}
	x.idle = true
	f := Finding{
		State:  Warning,
		Found:  "none was heard of in the last two minutes",
		Advice: "start one: " + x.program + " serve. Timers fire meanwhile and wait for it",
	}
	if x.waiting > 0 {
		f.State, f.Found = Broken, f.Found+", and "+plain.Counted(int(x.waiting), "message waits",
			"messages wait")
	}
	return f
}

// room looks at how full the streams are, and which subscribers would miss outcomes if the oldest
// went.
func (x *examination) room(ctx context.Context) Finding {
	d, err := x.on.Engine.Depths(ctx)
	if err != nil {
		return failed(err, "the streams must be there: see above")
	}
	f := Finding{State: Fine}
	var found []string
	for _, s := range d.Sizes {
		if s.Limit == 0 {
			found = append(found, fmt.Sprintf("%s %s", s.Stream, megabytes(s.Bytes)))
			continue
		}
		of := settings.ByteSize(s.Limit)
		found = append(found, fmt.Sprintf("%s %.0f %% of %s", s.Stream, 100*s.Full(), of))
		if s.Crowded() && f.State == Fine {
			f.State, f.Advice = Warning, s.Hint()
		}
		if s.Crowded() && s.Stream == topology.Outcomes {
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
	s, err := x.on.JS.Stream(ctx, x.on.Conf.Subjects().Name(topology.Outcomes))
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

// subscribers names the durables that read more than the setting senders lets their names read.
func (x *examination) subscribers(ctx context.Context) Finding {
	conf := x.on.Conf
	if !conf.SenderRights().LimitsReading() {
		return Finding{
			State: Fine,
			Found: "senders says of none what it may read: each may read all",
		}
	}
	s, err := x.on.JS.Stream(ctx, conf.Subjects().Name(topology.Outcomes))
	if err != nil {
		return failed(err, "the streams must be there: see above")
	}
	var beyond []string
	list := s.ListConsumers(ctx)
	for c := range list.Info() {
		if c.Config.Durable != "" && Exceeds(conf, SubscriberOf(c)) {
			beyond = append(beyond, c.Name)
		}
	}
	if err := list.Err(); err != nil {
		return failed(err, "")
	}
	if len(beyond) == 0 {
		return Finding{State: Fine, Found: "none reads more than senders allows"}
	}
	slices.Sort(beyond)
	return Finding{
		State: Warning,
		Found: "more than senders.NAME.read allows is read by " + strings.Join(beyond, ", "),
		Advice: "name the providers in the setting, or, as operator, " +
			"`renewd subscribers add NAME --update-filter`",
	}
}

func megabytes(n uint64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func (x *examination) parked(ctx context.Context) Finding {
	name := x.on.Conf.Subjects().Name(topology.Parked)
	s, err := x.on.JS.Stream(ctx, name)
	if err != nil {
		return failed(err, "the streams must be there: see above")
	}
	state := s.CachedInfo().State
	if state.Msgs == 0 {
		return Finding{State: Fine, Found: "none"}
	}
	waiting := plain.Counted(int(state.Msgs), "pair waits", "pairs wait")
	return Finding{
		State: Warning,
		Found: fmt.Sprintf("%s, the oldest since %s", waiting, plain.Clock(state.FirstTime)),
		Advice: "the store did not take them; they are applied once it does. " +
			"If it is back, and they stay for minutes: is renewd running?",
	}
}

// provider looks at what is known of a provider's health, and whether the provider answers. No
// token is shown to the provider.
func (x *examination) provider(ctx context.Context, s settings.Provider, connected bool) Finding {
	client, err := x.on.Client(s)
	if err != nil {
		return failed(err, "correct the provider's settings")
	}
	defer client.Close()
	if connected {
		pins := x.on.Pins(s)
		pins.Look = true
		client.Remember(pins)
	}
	if err := client.Reach(ctx); err != nil {
		return failed(err,
			"is its address right (auth_url), and can it be reached from here? "+
				"Nobody is signed out meanwhile")
	}
	if !connected {
		return Finding{State: Fine, Found: "it answers"}
	}
	bucket, err := x.on.JS.KeyValue(ctx, x.on.Conf.Subjects().Name(topology.BucketProviders))
	if err != nil {
		return failed(err, "the buckets must be there: see the streams above")
	}
	known, _, err := health.Load(ctx, bucket, s.ID)
	if errors.Is(err, health.ErrRecord) {
		return failed(err, "until then its refusals sign no user out")
	} else if err != nil {
		return failed(err, "the buckets must be there: see the streams above")
	}
	return standingFound(known, client.Settings())
}

// standingFound is the state of an answering provider in a sentence, with these settings.
func standingFound(known health.State, settings string) Finding {
	switch {
	case known.Paused != nil:
		until := "until it is resumed"
		if !known.Paused.Until.IsZero() {
			until = "until " + plain.Clock(known.Paused.Until)
		}
		return Finding{
			State: Warning,
			Found: fmt.Sprintf("it answers, but %s paused it at %s, %s%s", known.Paused.By,
				plain.Clock(known.Paused.Since), until, plain.InBrackets(known.Paused.Note)),
			Advice: health.Hint(health.ReasonPaused),
		}
	case known.Outage != nil:
		o := known.Outage
		return Finding{
			State: Warning,
			Found: fmt.Sprintf("it answers, but its renewals pause: %s since %s, next try %s",
				o.Reason, plain.Clock(o.Since), plain.Clock(o.Until)),
			Advice: health.Hint(o.Reason),
		}
	case known.Doubt != nil:
		d := known.Doubt
		what := map[string]string{
			health.ReasonConfig:  "refuses this client",
			health.ReasonUnknown: "refuses all users in words that renewd does not know",
		}[d.Reason]
		return Finding{
			State: Warning,
			Found: "it answers, but " + cmp.Or(what, "refuses most users") + " since " +
				plain.Clock(d.Since) + ": no user is signed out" + waiting(*d),
			Advice: health.Hint(d.Reason),
		}
	case known.Settings != settings || known.ProvenAt.IsZero():
		return Finding{
			State:  Warning,
			Found:  "it answers; no user was renewed with these settings yet",
			Advice: "until one is, a refusal is held back and signs no user out",
		}
	}
	return Finding{
		State: Fine,
		Found: "it answers; the settings have worked since " + plain.Clock(known.ProvenAt),
	}
}

// waiting says whether a doubt makes renewals wait.
func waiting(d health.Doubt) string {
	if d.Until.IsZero() {
		return ", the others are renewed"
	}
	return ", and no user is renewed, next try " + plain.Clock(d.Until)
}

func (x *examination) store(ctx context.Context) Finding {
	what := "grants in NATS KV"
	if !x.on.Conf.DatabaseURL.IsZero() {
		what = "PostgreSQL at " + settings.DatabaseHost(x.on.Conf.DatabaseURL)
	}
	if err := x.on.OpenStore(ctx); err != nil {
		return failed(err,
			"start it, or correct RENEWD_DATABASE_URL; "+
				"renewd waits for it and goes on where it stopped")
	}
	return Finding{State: Fine, Found: what}
}

// links looks for links in clear text.
func (x *examination) links(context.Context) Finding {
	clear := x.on.Conf.LinksInClear()
	if len(clear) == 0 {
		return Finding{State: Fine, Found: "no password or token crosses a network in clear text"}
	}
	var found []string
	for _, key := range slices.Sorted(maps.Keys(clear)) {
		what, _, _ := strings.Cut(clear[key], ": ")
		found = append(found, key+": "+what)
	}
	return Finding{
		State: Warning, Found: strings.Join(found, "; "),
		Advice: "allow_plaintext is set: is that network encrypted, " +
			"or this machine's own? Else use TLS",
	}
}
