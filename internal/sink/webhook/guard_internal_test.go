package webhook

import (
	"net/netip"
	"testing"
)

// Only hosts of the public internet are connected to unless the settings say otherwise.
func TestGuard(t *testing.T) {
	check := func(addr string, want bool) {
		t.Helper()
		if got := public(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: public is %v", addr, got)
		}
		at := netip.AddrPortFrom(netip.MustParseAddr(addr), 443).String()
		if err := guard(false)("tcp", at, nil); (err == nil) != want {
			t.Errorf("%s: %v", addr, err)
		}
		if err := guard(true)("tcp", at, nil); err != nil {
			t.Errorf("allowed: %v", err)
		}
	}
	for _, addr := range []string{
		"93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34",
		"172.32.0.1",
	} {
		check(addr, true)
	}
	for _, addr := range []string{
		"127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::", "10.1.2.3", "172.16.0.1",
		"172.31.255.255", "192.168.1.1", "169.254.169.254", "fe80::1", "fe80::1%eth0", "fd00::1",
		"fec0::1", "100.64.1.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1",
		"::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
		"::127.0.0.1", "2001:db8::1", "192.0.0.192",
	} {
		check(addr, false)
	}
}
