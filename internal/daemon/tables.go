package daemon

import (
	"fmt"
	"os"

	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/source/sql"
	"github.com/renewd/renewd/publishers"
)

// tables are the live app tables of the settings. No part ends by itself, whatever its table does.
func (p *Resources) tables() (parts []Service, err error) {
	host, err := os.Hostname()
	if err != nil {
		host = "" // for people only
	}
	for _, name := range p.Conf.AppTables() {
		if p.Conf.Sources[name].Mode != settings.ModeLive {
			continue
		}
		config := p.Conf.AppTable(name)
		to, err := publishers.New(p.NC, publishers.WithPrefix(p.Conf.NATSPrefix),
			publishers.WithSource(config.EventSource()), publishers.WithClock(p.Engine.Now))
		if err != nil {
			return nil, settings.Mistake(fmt.Errorf("sources.%s: %w", name, err))
		}
		parts = append(parts, sql.Watch{
			Config: config, JetStream: p.JS, Subjects: p.Conf.Subjects(), Publisher: to,
			Host: host, Now: p.Engine.Now, Rand: draw, Log: p.log,
			Meter: p.tel.meter,
		}.Run)
	}
	return parts, nil
}
