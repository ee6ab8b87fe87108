package netguard_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/deliverykit/delivery/internal/netguard"
)

func TestCheckHost(t *testing.T) {
	t.Parallel()

	zero := netguard.New(netguard.Policy{})
	loopback := netguard.New(netguard.Policy{Loopback: true})
	private := netguard.New(netguard.Policy{Private: true})
	allowed := netguard.New(netguard.Policy{Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	allowedLoopback := netguard.New(netguard.Policy{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}})
	all := netguard.New(everything)

	groups := []struct {
		name         string
		open, closed []*netguard.Guard
		hosts        []string
	}{
		{"public", []*netguard.Guard{zero, loopback, private, allowed, all}, nil, []string{
			"example.com", "EXAMPLE.com", "example.com.", "a.b.example.co.uk", "my_bucket.s3.amazonaws.com",
			"xn--bcher-kva.example", "1.example.com", "0x7f.example", "localhost.example.com", "internal.example.com",
			"notlocalhost.com", "mylocal.com", "8.8.8.8", "2606:4700:4700::1111", "[2606:4700:4700::1111]",
		}},
		{
			"loopback",
			[]*netguard.Guard{loopback, allowedLoopback, all},
			[]*netguard.Guard{zero, private, allowed},
			[]string{
				"localhost", "LOCALHOST", "localhost.", "Foo.LocalHost", "a.b.localhost.",
				"localhost.localdomain", "ip6-localhost",
			},
		},
		{"private", []*netguard.Guard{private, allowed, all}, []*netguard.Guard{zero, loopback}, []string{
			"db", "postgres", "printer.local", "PRINTER.LOCAL.", "vault.internal", "metadata.google.internal",
			"host.docker.internal", "svc.ns.svc.cluster.local", "nas.home.arpa", "home.arpa", "router.lan", "ad.corp",
		}},
		{
			"odd notations of IPv4",
			nil,
			[]*netguard.Guard{zero, loopback, private, allowed, all},
			[]string{
				"0x7f.1", "2130706433", "0177.0.0.1", "127.1", "127.0.1", "0x7f000001", "0X7F.0.0.1", "0x",
				"017700000001", "127.0.0.1.", "127.0.0.0x1", "1.2.3.4.5", "256.256.256.256", "8.8.8.8.",
				"08.8.8.8", "example.123", "foo.0x1f",
			},
		},
		{
			"no hosts",
			nil,
			[]*netguard.Guard{zero, loopback, private, allowed, all},
			[]string{
				"",
				".",
				"..",
				"a..b",
				".a",
				"example.com:443",
				"http://example.com",
				"user@example.com",
				"a/b",
				"a b",
				"a\x00b",
				"a%2eb",
				"-a.com",
				"a-.com",
				"*.example.com",
				strings.Repeat("a", 64) + ".com",
				strings.Repeat("a.", 127) + "com",
				"bücher.example",
				"１２７.０.０.１",
				"127。0。0。1",
				"ⓛocalhost",
				"\xff.com",
				"loo\u212aup.com",
				"[",
				"[]",
				"[::1",
				"::1]",
				"[127.0.0.1]",
				"[example.com]",
				"[::1]:80",
				"::1%lo",
				"2606:4700:4700::1111%x",
				"fe80::1%",
				"fe80::1%../x",
				"fe80::1%a b",
			},
		},
	}
	for _, group := range groups {
		t.Run(group.name, func(t *testing.T) {
			t.Parallel()
			for _, host := range group.hosts {
				for i, g := range group.open {
					if err := g.CheckHost(host); err != nil {
						t.Errorf("open guard %d: %v", i, err)
					}
				}
				for i, g := range group.closed {
					var blocked *netguard.BlockedError
					if err := g.CheckHost(host); !errors.As(err, &blocked) {
						t.Errorf("closed guard %d: %q: got error %v, want a *BlockedError", i, host, err)
					}
				}
			}
		})
	}
}

func TestErrorIsBounded(t *testing.T) {
	t.Parallel()
	g := netguard.New(netguard.Policy{})
	for _, host := range []string{strings.Repeat("a", 1<<20), strings.Repeat("é", 1<<20), "[" + strings.Repeat("\x00", 1<<20)} {
		if n := len(asBlocked(t, "a long host", g.CheckHost(host)).Error()); n > 2048 {
			t.Errorf("an error of %d bytes", n)
		}
	}
}

func FuzzCheckHost(f *testing.F) {
	for _, host := range []string{
		"example.com", "localhost", "127.0.0.1", "0x7f.1", "2130706433", "0177.0.0.1", "[::1]", "::ffff:10.0.0.1",
		"fe80::1%eth0", "64:ff9b::7f00:1", "2002:7f00:1::", "a.internal", "１２７.0.0.1", "\u212a", "", "a.",
	} {
		f.Add(host)
	}
	zero, all := netguard.New(netguard.Policy{}), netguard.New(everything)
	f.Fuzz(func(t *testing.T, host string) {
		err := zero.CheckHost(host)
		var blocked *netguard.BlockedError
		if err != nil && !errors.As(err, &blocked) {
			t.Fatalf("%q: got %v, want a *BlockedError", host, err)
		}
		if err != nil && len(err.Error()) > 4*253+200 {
			t.Fatalf("%q: an error of %d bytes", host, len(err.Error()))
		}
		if err == nil {
			if err := all.CheckHost(host); err != nil {
				t.Fatalf("%q: open by the zero policy, closed by a wider one: %v", host, err)
			}
		}
		if again := zero.CheckHost(
			strings.ToUpper(host),
		); strings.ToLower(strings.ToUpper(host)) == host &&
			(again == nil) != (err == nil) {
			t.Fatalf("%q: %v, in upper case %v", host, err, again)
		}

		addr, parseErr := netip.ParseAddr(strings.Trim(host, "[]"))
		if parseErr == nil {
			// What the early check lets through, the dialer must know as public.
			late := zero.Control(netip.AddrPortFrom(addr, 443).String())
			if err == nil && late != nil {
				t.Fatalf("%q: passes, but the dialer says %v", host, late)
			}
			return
		}
		if err == nil {
			for _, c := range host {
				if c > 0x7e || c <= ' ' || strings.ContainsRune("/:@%[]?#\\", c) {
					t.Fatalf("%q: passes with %q in it", host, c)
				}
			}
			if !strings.Contains(strings.TrimSuffix(host, "."), ".") {
				t.Fatalf("%q: a single label passes", host)
			}
		}
	})
}
