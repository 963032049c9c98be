package idp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A discovery document says where tokens are sent. An attacker who can change the document once, or
// answers in the provider's place, must neither lead the tokens away nor use renewd to reach hosts
// behind a firewall. So each host in the document must be named by the settings or the preset. If
// neither lists hosts, each host must be in the first document read, by this process or, with
// Remember, by any process. A host named only by the document is not called at an internal address,
// unless the issuer is at an internal address too.

// movedError refuses a document that leads to unknown hosts.
type movedError struct{ text string }

func (e movedError) Error() string { return e.text }

// Pins keep the hosts in a provider's document beyond this process. Safe for concurrent use.
type Pins interface {
	// Pinned returns the kept hosts, as host:port; nil: no hosts are kept.
	Pinned(ctx context.Context) ([]string, error)
	// Pin keeps hosts, unless some are kept already, and returns the hosts kept then.
	Pin(ctx context.Context, hosts []string) ([]string, error)
}

// Remember has the hosts of a document compared with pins. While pins cannot be read no document is
// believed, and no token is sent. Remember must come before the first call.
func (p *Provider) Remember(pins Pins) { p.pins = pins }

// Hosts returns the hosts in the discovery document, as host:port, once the document is believed.
// Hosts returns nil if the settings or the preset name each host that may be called.
func (p *Provider) Hosts(ctx context.Context) ([]string, error) {
	if _, err := p.discover(ctx); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pinned, nil
}

// hostOf is the host:port of an address, for comparing hosts.
func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "http":
		port = "80"
	default:
		port = "443"
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// shown lists hosts for people to read, without the port 443.
func shown(hosts ...string) string {
	var all []string
	for _, host := range hosts {
		all = append(all, strings.TrimSuffix(host, ":443"))
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), ", ")
}

// checkHosts returns an error for an entry of EndpointHosts that is no host.
func (c Config) checkHosts() error {
	for _, host := range c.EndpointHosts {
		u, err := url.Parse("https://" + host)
		if err != nil || u.Host != host || u.Hostname() == "" {
			return fmt.Errorf("endpoint_hosts: %q: want a host, or host:port", host)
		}
	}
	return nil
}

// Issuer is the address below which the discovery document is.
func (c Config) Issuer() string {
	c, _ = c.withDefaults()
	return c.BaseURL
}

// named are the hosts believed without a document: the hosts of the settings and the preset. exact
// says that no other host may be named.
func (c Config) named(preset Preset, given endpoints) (hosts []string, exact bool) {
	for _, raw := range []string{c.BaseURL, given.Token, given.UserInfo, given.Revoke} {
		if raw != "" {
			hosts = append(hosts, hostOf(raw))
		}
	}
	more := c.EndpointHosts
	if len(more) == 0 && c.BaseURL == preset.BaseURL {
		more = preset.Hosts
	}
	for _, host := range more {
		hosts = append(hosts, hostOf("https://"+host))
	}
	return hosts, len(more) > 0
}

// admit checks the host of an endpoint in a document against the known hosts: the hosts of the
// settings, of the preset and pinned, the hosts of the document before. pinned is nil if there was
// no document before.
func (p *Provider) admit(raw string, pinned []string) error {
	host := hostOf(raw)
	if slices.Contains(p.named, host) {
		return nil
	}
	switch {
	case p.exact:
		return movedError{
			fmt.Sprintf("%s is none of the known hosts, %s: if the provider is there, "+
				"name it in endpoint_hosts", shown(host), shown(p.named...)),
		}
	case pinned != nil && !slices.Contains(pinned, host):
		return movedError{fmt.Sprintf("%s is not where it was, %s: if the provider is there now, "+
			"name it in endpoint_hosts, or accept it: renewd provider accept %s", shown(host),
			shown(pinned...), p.config.ID)}
	}
	return nil
}

// pinnedHosts are the hosts of the document before; nil: no such document, or its hosts do not
// count.
func (p *Provider) pinnedHosts(ctx context.Context) (pinned []string, err error) {
	if p.exact {
		return nil, nil
	}
	if p.pins != nil {
		pinned, err = p.pins.Pinned(ctx)
	}
	if pinned == nil && err == nil { // also where the record was lost
		p.mu.Lock()
		defer p.mu.Unlock()
		pinned = p.pinned
	}
	return pinned, err
}

// pin keeps the hosts of a document, unless hosts are pinned, and returns the pinned hosts.
func (p *Provider) pin(ctx context.Context, e endpoints, pinned []string) ([]string, error) {
	if p.exact {
		return nil, nil
	}
	if pinned == nil {
		for _, raw := range []string{e.Token, e.UserInfo, e.Revoke, e.Keys} {
			if raw != "" {
				pinned = append(pinned, hostOf(raw))
			}
		}
		slices.Sort(pinned)
		pinned = slices.Compact(pinned)
	}
	if p.pins == nil {
		return pinned, nil
	}
	return p.pins.Pin(ctx, pinned)
}

// shared is RFC 6598's network between a provider's NAT and its customers.
var shared = netip.MustParsePrefix("100.64.0.0/10")

// internal reports whether an address is this machine's, or of a network apart from the internet.
func internal(at netip.Addr) bool {
	at = at.Unmap()
	return !at.IsGlobalUnicast() || at.IsPrivate() || shared.Contains(at)
}

// dialer opens connections for p. The dialer notes whether the issuer is at an internal address,
// and refuses a connection to an internal address for a host that only a document names. The check
// is on the address itself, so a name that resolves to another address in between changes nothing.
// A proxy resolves names itself: behind a proxy there is no check.
func (p *Provider) dialer() func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		d := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
		host := strings.ToLower(address)
		if p.config.ProxyURL.IsZero() && !slices.Contains(p.named, host) {
			d.Control = p.refuseInternal
		}
		conn, err := d.DialContext(ctx, network, address)
		if err == nil && host == hostOf(p.config.BaseURL) {
			at, err := netip.ParseAddrPort(conn.RemoteAddr().String())
			p.inside.Store(err == nil && p.internal(at.Addr()))
		}
		return conn, err
	}
}

func (p *Provider) refuseInternal(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err == nil && p.internal(at.Addr()) && !p.inside.Load() {
		return errors.New("an internal address, which only the provider's discovery document " +
			"leads to: if that is meant, name the host in endpoint_hosts")
	}
	return err
}
