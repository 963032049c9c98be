package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/settings"
)

type healthcheckCommand struct {
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

const healthcheckLimit = 4 * time.Second

// Run asks /readyz.
func (h healthcheckCommand) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, healthcheckLimit)
	defer cancel()
	client, scheme, err := probing(conf)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet,
		scheme+reachable(conf.HTTPAddr)+"/readyz", nil)
	if err != nil {
		return fmt.Errorf("ask renewd at %s: %w", conf.HTTPAddr, err)
	}
	if !conf.HTTPToken.IsZero() {
		req.Header.Set("Authorization", "Bearer "+conf.HTTPToken.Reveal())
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask renewd at %s: %w: is it running with this RENEWD_HTTP_ADDR?",
			conf.HTTPAddr, err)
	}
	defer res.Body.Close()
	var state daemon.Readiness
	if err := json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&state); err != nil {
		return fmt.Errorf("ask renewd at %s: status %d, and the answer is not renewd's",
			conf.HTTPAddr, res.StatusCode)
	}
	if h.Output == "json" {
		if err := json.NewEncoder(a.stdout).Encode(state); err != nil {
			return err
		}
		return unready(res.StatusCode)
	}
	names := make([]string, 0, len(state.Checks))
	for name := range state.Checks {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(a.stdout, "%s: %s\n", name, state.Checks[name])
	}
	return unready(res.StatusCode)
}

func unready(status int) error {
	if status != http.StatusOK {
		return errSilent
	}
	return nil
}

// probing is the client for the HTTP server of these settings. A server with TLS must show the very
// certificate of the settings. The names in the certificate are not checked, because the server is
// asked at an address of this machine.
func probing(conf *settings.Settings) (*http.Client, string, error) {
	if conf.HTTPCert == "" {
		return &http.Client{}, "http://", nil
	}
	own, err := tls.LoadX509KeyPair(conf.HTTPCert, conf.HTTPKey)
	if err != nil {
		return nil, "", fmt.Errorf("http_cert: %w", err)
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, // verified below instead
		VerifyConnection: func(s tls.ConnectionState) error {
			if !bytes.Equal(s.PeerCertificates[0].Raw, own.Certificate[0]) {
				return errors.New("another certificate than http_cert is shown")
			}
			return nil
		},
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config}}, "https://", nil
}

// reachable turns the address of a listener on every interface into an address to connect to.
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
