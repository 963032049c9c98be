package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"
)

type healthcheckCommand struct{}

const healthcheckLimit = 4 * time.Second

// Run asks /readyz.
func (healthcheckCommand) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, healthcheckLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+reachable(conf.HTTPAddr)+"/readyz", nil)
	if err != nil {
		return fmt.Errorf("ask renewd at %s: %w", conf.HTTPAddr, err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask renewd at %s: %w: is it running with this RENEWD_HTTP_ADDR?", conf.HTTPAddr, err)
	}
	defer res.Body.Close()
	var state readiness
	if err := json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&state); err != nil {
		return fmt.Errorf("ask renewd at %s: status %d, and the answer is not renewd's", conf.HTTPAddr, res.StatusCode)
	}
	names := make([]string, 0, len(state.Checks))
	for name := range state.Checks {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(a.stdout, "%s: %s\n", name, state.Checks[name])
	}
	if res.StatusCode != http.StatusOK {
		return errSilent
	}
	return nil
}

// reachable turns the address of a listener on every interface into one to connect to.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}
