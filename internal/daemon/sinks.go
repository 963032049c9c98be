package daemon

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/internal/sink/mail"
	"github.com/renewd/renewd/internal/sink/redis"
	"github.com/renewd/renewd/internal/sink/sql"
	"github.com/renewd/renewd/internal/sink/webhook"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// sinks are the sinks of the settings. No sink ends by itself, whatever its target does.
func (p *Resources) sinks() (parts []Service, err error) {
	want := Topology(p.Conf)
	host, err := os.Hostname()
	if err != nil {
		host = "" // for people only
	}
	for _, name := range p.Conf.SinkNames() {
		to, err := p.sinkTarget(p.Conf.Sinks[name])
		if err != nil {
			return nil, settings.Mistake(fmt.Errorf("sinks.%s.%w", name, err))
		}
		s, err := sink.New(sink.Config{
			Name: name, Target: to, JetStream: p.JS, Subjects: p.Conf.Subjects(),
			Stream: p.Conf.Subjects().Name(topology.Outcomes), Durable: durable(want,
				topology.ConsumerSink(name)),
			Read: p.Engine.OutcomeAt, Concurrency: p.Conf.Sinks[name].InFlight(),
			Drain: p.Conf.DrainTimeout,
			Acted: func(ctx context.Context, act string) error { return p.acted(ctx, act, name) },
			Now:   p.Engine.Now, Host: host, Rand: draw, Logger: p.log, Tracer: p.tel.tracer,
			Meter: p.tel.meter,
		})
		if err != nil {
			return nil, err
		}
		parts = append(parts, s.Run)
	}
	return parts, nil
}

// durable is a durable that the topology wants.
func durable(want topology.Topology, name string) jetstream.ConsumerConfig {
	for _, c := range want.Consumers() {
		if c.Config.Durable == name {
			return c.Config
		}
	}
	panic("daemon: no durable " + name) // the settings name it
}

// sinkTarget makes the target of a sink. Its error begins with the name of the setting.
func (p *Resources) sinkTarget(s settings.Sink) (sink.Target, error) {
	roots, err := authorities(s.CAFile)
	if err != nil {
		return nil, err
	}
	switch s.Kind {
	case settings.KindSQL:
		return sql.New(s.SQLConfig(), p.Store.Load)
	case settings.KindRedis:
		c := s.RedisConfig()
		c.RootCAs = roots
		return redis.New(c, p.Store.Load)
	case settings.KindMail:
		c, err := s.MailConfig(p.Conf.AllowPlaintext)
		if err != nil {
			return nil, err
		}
		c.RootCAs = roots
		return mail.New(c, p.Store.Load)
	}
	c := s.WebhookConfig()
	c.Version, c.RootCAs = p.version, roots
	if c.SET != nil {
		c.SET.Subjects = map[string]string{}
		for _, of := range p.Conf.Providers {
			c.SET.Subjects[of.ID] = of.AuthURL
		}
	}
	return webhook.New(c)
}

// authorities reads the CA certificates of a sink; nil: the system's certificates.
func authorities(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca_file: %s holds no certificate in PEM form", file)
	}
	return roots, nil
}

// acted publishes an act of renewd's own that is not about one user.
func (p *Resources) acted(ctx context.Context, act string, about ...string) error {
	data, err := json.Marshal(schema.Acted{Act: act, By: "renewd", About: about})
	if err != nil {
		return err
	}
	return p.Engine.Publish(ctx, schema.Event{
		ID: nuid.Next(), Source: Source, Type: schema.OperatorActed, Time: p.Engine.Now().UTC(),
		Data: data,
	})
}
