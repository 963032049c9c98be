package main

import "fmt"

type configCommand struct {
	Check configCheck `cmd:"" help:"Check the settings and say what is wrong with each that is."`
	Print configPrint `cmd:"" help:"Show every setting, where its value comes from, and no secret."`
}

type configCheck struct{}

// Run checks the settings; load has done the work.
func (configCheck) Run(a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "the settings are fine: %s, %s, %s\n", conf.natsText(), conf.storeText(), plural(len(conf.Providers), "provider"))
	if len(conf.Providers) == 0 {
		fmt.Fprintln(a.stdout, "no provider yet: renewd serve needs one, RENEWD_AUTH_URL and RENEWD_CLIENT_ID at least")
	}
	return nil
}

type configPrint struct {
	Docs bool `help:"Print the reference of all settings as a Markdown table instead."`
}

// Run shows the settings.
func (p configPrint) Run(a *app, c *cli) error {
	if p.Docs {
		settingsTable(a.stdout)
		return nil
	}
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	conf.print(a.stdout)
	return nil
}

func (c *configuration) natsText() string {
	switch {
	case c.NATSContext != "":
		return "NATS context " + c.NATSContext
	case c.NATSURL != "":
		return "NATS at " + hostOf(c.NATSURL)
	default:
		return "embedded NATS in " + c.DataDir
	}
}

func (c *configuration) storeText() string {
	if c.DatabaseURL.IsZero() {
		return "grants in NATS KV"
	}
	return "grants in PostgreSQL at " + databaseHost(c.DatabaseURL)
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
