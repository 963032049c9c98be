package main

import (
	"fmt"

	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
)

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
	fmt.Fprintf(a.stdout, "the settings are fine: %s, %s, %s\n",
		conf.DescribeNATS(), conf.DescribeStore(), plain.Plural(len(conf.Providers), "provider"))
	if len(conf.Providers) == 0 {
		fmt.Fprintln(a.stdout,
			"no provider yet: renewd serve needs one, "+
				"RENEWD_AUTH_URL and RENEWD_CLIENT_ID at least")
	}
	return nil
}

type configPrint struct {
	Docs bool `help:"Print the reference of all settings as a Markdown table instead."`
}

// Run shows the settings.
func (p configPrint) Run(a *app, c *cli) error {
	if p.Docs {
		settings.Table(a.stdout)
		return nil
	}
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	conf.Print(a.stdout)
	return nil
}
