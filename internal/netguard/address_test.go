package netguard_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/deliverykit/delivery/internal/netguard"
	"pgregory.net/rapid"
)

var everything = netguard.Policy{
	Loopback: true, Private: true, LinkLocal: true,
	Allow: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
}

type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

func requireBlocked(t fataler, what string, err error) {
	t.Helper()
	_ = asBlocked(t, what, err)
}

func asBlocked(t fataler, what string, err error) *netguard.BlockedError {
	t.Helper()
	var blocked *netguard.BlockedError
	if !errors.As(err, &blocked) {
		t.Fatalf("%s: got error %v, want a *BlockedError", what, err)
	}
	if blocked.Reason == "" || blocked.Hint == "" {
		t.Fatalf("%s: refused without a reason and a hint: %#v", what, blocked)
	}
	return blocked
}

func TestAddresses(t *testing.T) {
	t.Parallel()

	zero := netguard.Policy{}
	loopback := netguard.Policy{Loopback: true}
	private := netguard.Policy{Private: true}
	linkLocal := netguard.Policy{LinkLocal: true}
	flags := netguard.Policy{Loopback: true, Private: true, LinkLocal: true}

	// Each address is closed by the zero policy and open by the one given; nil
	// stands for a public address.
	addresses := []struct {
		addr string
		open *netguard.Policy
	}{
		{"8.8.8.8", nil},
		{"1.1.1.1", nil},
		{"9.255.255.255", nil},
		{"11.0.0.0", nil},
		{"100.63.255.255", nil},
		{"100.128.0.0", nil},
		{"126.255.255.255", nil},
		{"128.0.0.0", nil},
		{"172.15.255.255", nil},
		{"172.32.0.0", nil},
		{"192.0.1.0", nil},
		{"192.167.255.255", nil},
		{"198.17.255.255", nil},
		{"198.20.0.0", nil},
		{"223.255.255.255", nil},
		{"2606:4700:4700::1111", nil},
		{"2001:4860:4860::8888", nil},
		{"2001:200::1", nil},
		{"2000::", nil},
		{"::ffff:8.8.8.8", nil},
		{"64:ff9b::8.8.8.8", nil},

		{"127.0.0.1", &loopback},
		{"127.255.255.254", &loopback},
		{"::1", &loopback},
		{"::ffff:127.0.0.1", &loopback},
		{"64:ff9b::127.0.0.1", &loopback},

		{"10.0.0.0", &private},
		{"10.255.255.255", &private},
		{"172.16.0.1", &private},
		{"172.31.255.255", &private},
		{"192.168.1.1", &private},
		{"100.64.0.1", &private},
		{"100.127.255.255", &private},
		{"fc00::1", &private},
		{"fdff:ffff::1", &private},
		{"fec0::1", &private},
		{"::ffff:10.0.0.5", &private},
		{"64:ff9b::10.0.0.5", &private},

		{"169.254.0.1", &linkLocal},
		{"fe80::1", &linkLocal},
		{"fe80::1%eth0", &linkLocal},
		{"febf::1", &linkLocal},
		{"::ffff:169.254.0.1", &linkLocal},

		{"169.254.169.254", &everythingButMetadata},
		{"::ffff:169.254.169.254", &everythingButMetadata},
		{"64:ff9b::169.254.169.254", &everythingButMetadata},
		{"169.254.170.2", &everythingButMetadata},
		{"169.254.170.23", &everythingButMetadata},
		{"169.254.42.42", &everythingButMetadata},
		{"fd00:42::42", &everythingButMetadata},
		{"fd00:ec2::254", &everythingButMetadata},
		{"fd00:ec2::23", &everythingButMetadata},
		{"fd20:ce::254", &everythingButMetadata},
		{"100.100.100.200", &everythingButMetadata},
		{"192.0.0.192", &everythingButMetadata},
		{"168.63.129.16", &everythingButMetadata},

		{"0.0.0.0", &everything},
		{"0.1.2.3", &everything},
		{"192.0.0.8", &everything},
		{"192.0.2.1", &everything},
		{"192.88.99.1", &everything},
		{"198.18.0.1", &everything},
		{"198.19.255.255", &everything},
		{"198.51.100.1", &everything},
		{"203.0.113.1", &everything},
		{"224.0.0.1", &everything},
		{"239.255.255.255", &everything},
		{"240.0.0.1", &everything},
		{"255.255.255.255", &everything},
		{"::", &everything},
		{"::ffff:0.0.0.0", &everything},
		{"::127.0.0.1", &everything},          // IPv4-compatible
		{"::ffff:0:127.0.0.1", &everything},   // IPv4-translated
		{"64:ff9b:1::127.0.0.1", &everything}, // local NAT64
		{"100::1", &everything},
		{"2001::1", &everything},
		{"2001:2::1", &everything},
		{"2001:10::1", &everything},
		{"2001:1ff:ffff::1", &everything},
		{"2001:db8::1", &everything},
		{"2002:808:808::1", &everything},
		{"2002:7f00:1::1", &everything},
		{"3fff::1", &everything},
		{"5f00::1", &everything},
		{"1000::1", &everything},
		{"4000::1", &everything},
		{"ff02::1", &everything},
		{"ff0e::1", &everything},
	}
	for _, tt := range addresses {
		t.Run(tt.addr, func(t *testing.T) {
			t.Parallel()
			check := func(p netguard.Policy) error {
				g := netguard.New(p)
				early, late := g.CheckHost(tt.addr), g.Control(net.JoinHostPort(tt.addr, "443"))
				if (early == nil) != (late == nil) {
					t.Errorf("CheckHost says %v, the dialer %v", early, late)
				}
				return late
			}
			if tt.open == nil {
				if err := check(zero); err != nil {
					t.Errorf("a public address is refused: %v", err)
				}
				return
			}
			requireBlocked(t, tt.addr, check(zero))
			switch tt.open {
			case &everythingButMetadata:
				requireBlocked(t, "by the flags: "+tt.addr, check(flags))
				requireBlocked(t, "by wide prefixes: "+tt.addr, check(everything))
				exact := everything
				addr := netip.MustParseAddr(tt.addr).Unmap()
				if i := strings.LastIndex(tt.addr, ":"); i >= 0 && strings.Contains(tt.addr, ".") {
					addr = netip.MustParseAddr(tt.addr[i+1:])
				}
				exact.Allow = append([]netip.Prefix{netip.PrefixFrom(addr, addr.BitLen())}, exact.Allow...)
				if err := check(exact); err != nil {
					t.Errorf("refused although the address itself is allowed: %v", err)
				}
			case &everything:
				requireBlocked(t, "by the flags: "+tt.addr, check(flags))
				if err := check(everything); err != nil {
					t.Errorf("refused although allowed: %v", err)
				}
			default:
				for _, p := range []*netguard.Policy{&loopback, &private, &linkLocal} {
					if err := check(*p); (err == nil) != (p == tt.open) {
						t.Errorf("with %+v: got error %v", *p, err)
					}
				}
			}
		})
	}
}

// Stands in TestAddresses for what only a prefix of one address opens.
var everythingButMetadata = everything

func TestDenyAndAllow(t *testing.T) {
	t.Parallel()
	prefixes := func(s ...string) []netip.Prefix {
		var ps []netip.Prefix
		for _, s := range s {
			ps = append(ps, netip.MustParsePrefix(s))
		}
		return ps
	}
	tests := []struct {
		name   string
		policy netguard.Policy
		addr   string
		open   bool
	}{
		{"allow opens a private network", netguard.Policy{Allow: prefixes("10.1.0.0/16")}, "10.1.2.3", true},
		{"allow opens no other", netguard.Policy{Allow: prefixes("10.1.0.0/16")}, "10.2.2.3", false},
		{"allow holds for the mapped form", netguard.Policy{Allow: prefixes("10.1.0.0/16")}, "::ffff:10.1.2.3", true},
		{
			"allow holds for what NAT64 leads to", netguard.Policy{Allow: prefixes("10.1.0.0/16")},
			"64:ff9b::10.1.2.3", true,
		},
		{"allow takes a mapped prefix", netguard.Policy{Allow: prefixes("::ffff:10.1.0.0/112")}, "10.1.2.3", true},
		{"allow of a prefix with host bits", netguard.Policy{Allow: prefixes("10.1.2.3/16")}, "10.1.9.9", true},
		{"allow of a zoned address", netguard.Policy{Allow: prefixes("fe80::/10")}, "fe80::1%eth0", true},
		{"allow of IPv6 is none of IPv4", netguard.Policy{Allow: prefixes("::/0")}, "10.0.0.1", false},
		{
			"allow of 6to4 does not open what is inside", netguard.Policy{Allow: prefixes("2002::/16")},
			"2002:a00:5::1", false,
		},
		{
			"allow of 6to4 with a public address inside", netguard.Policy{Allow: prefixes("2002::/16")},
			"2002:808:808::1", true,
		},
		{
			"allow of Teredo, private server", netguard.Policy{Allow: prefixes("2001::/32")},
			"2001:0:a00:5::f7f7:f7f7", false,
		},
		{
			"allow of Teredo, private client", netguard.Policy{Allow: prefixes("2001::/32")},
			"2001:0:808:808::f5ff:fffa", false,
		},
		{
			"allow of Teredo, both public", netguard.Policy{Allow: prefixes("2001::/32")},
			"2001:0:808:808::f7f7:f7f7", true,
		},
		{"deny closes a public network", netguard.Policy{Deny: prefixes("8.8.8.0/24")}, "8.8.8.8", false},
		{"deny closes the mapped form", netguard.Policy{Deny: prefixes("8.8.8.0/24")}, "::ffff:8.8.8.8", false},
		{"deny closes what NAT64 leads to", netguard.Policy{Deny: prefixes("8.8.8.0/24")}, "64:ff9b::8.8.8.8", false},
		{"deny takes a mapped prefix", netguard.Policy{Deny: prefixes("::ffff:8.8.8.0/120")}, "8.8.8.8", false},
		{"deny of NAT64", netguard.Policy{Deny: prefixes("64:ff9b::/96")}, "64:ff9b::8.8.8.8", false},
		{
			"deny of a zoned address", netguard.Policy{LinkLocal: true, Deny: prefixes("fe80::/10")},
			"fe80::1%eth0", false,
		},
		{
			"deny comes before allow",
			netguard.Policy{Allow: prefixes("10.0.0.0/8"), Deny: prefixes("10.1.0.0/16")}, "10.1.2.3", false,
		},
		{
			"deny comes before the flags", netguard.Policy{Private: true, Deny: prefixes("10.1.0.0/16")},
			"10.1.2.3", false,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := netguard.New(tt.policy).Control(net.JoinHostPort(tt.addr, "443"))
			if !tt.open {
				requireBlocked(t, tt.addr, err)
			} else if err != nil {
				t.Errorf("refused: %v", err)
			}
		})
	}
}

func TestPolicyIsCopied(t *testing.T) {
	t.Parallel()
	p := netguard.Policy{Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	g := netguard.New(p)
	p.Allow[0] = netip.MustParsePrefix("192.168.0.0/16")
	requireBlocked(t, "192.168.0.1", g.CheckHost("192.168.0.1"))
}

func TestPolicyValidate(t *testing.T) {
	t.Parallel()
	if err := everything.Validate(); err != nil {
		t.Errorf("a valid policy: %v", err)
	}
	err := netguard.Policy{
		Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), {}},
		Deny: []netip.Prefix{
			netip.PrefixFrom(netip.MustParseAddr("10.0.0.1"), 33),
			netip.MustParsePrefix("::ffff:10.0.0.0/90"),
		},
	}.Validate()
	for _, want := range []string{"allow[1]", "deny[0]", "deny[1]"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to name %s", err, want)
		}
	}
}

func TestErrorTellsWhatToDo(t *testing.T) {
	t.Parallel()
	g := netguard.New(netguard.Policy{})
	for host, want := range map[string]string{
		"10.0.0.5":          "netguard: address 10.0.0.5 is private (RFC 1918); allow it with delivery.WithNetwork(delivery.Network{Private: true})",
		"64:ff9b::10.0.0.5": "netguard: address 64:ff9b::a00:5 leads to 10.0.0.5, which is private (RFC 1918); allow it with delivery.WithNetwork(delivery.Network{Private: true})",
		"localhost":         `netguard: host "localhost" is a name for loopback (RFC 6761); allow it with delivery.WithNetwork(delivery.Network{Loopback: true})`,
	} {
		if got := asBlocked(t, host, g.CheckHost(host)).Error(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// inside draws an address of a prefix.
func inside(t *rapid.T, p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	noise := rapid.SliceOfN(rapid.Byte(), len(b), len(b)).Draw(t, "noise")
	for i := range b {
		keep := max(0, min(8, p.Bits()-8*i))
		b[i] |= noise[i] & byte(0xff>>keep)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

func TestBlockedPrefixesHoldThroughout(t *testing.T) {
	t.Parallel()
	g := netguard.New(netguard.Policy{})
	for _, prefix := range netguard.Prefixes() {
		t.Run(prefix.String(), func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				addr := inside(t, prefix)
				if !prefix.Contains(addr) {
					t.Fatalf("the test drew %s outside of %s", addr, prefix)
				}
				requireBlocked(t, addr.String(), g.CheckHost(addr.String()))
			})
		})
	}
}

// All ways to write an IPv4 address agree with the plain one, under any policy.
func TestFormsAgree(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], rapid.Uint32().Draw(t, "address"))
		plain := netip.AddrFrom4(b)
		if rapid.Bool().Draw(t, "special") {
			plain = inside(t, rapid.SampledFrom(netguard.Prefixes()).
				Filter(func(p netip.Prefix) bool { return p.Addr().Is4() }).Draw(t, "prefix"))
			b = plain.As4()
		}
		prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
			around := rapid.SampledFrom([]netip.Addr{plain, netip.MustParseAddr("10.0.0.0")}).Draw(t, "around")
			return netip.PrefixFrom(around, rapid.IntRange(0, 32).Draw(t, "bits"))
		})
		g := netguard.New(netguard.Policy{
			Loopback:  rapid.Bool().Draw(t, "loopback"),
			Private:   rapid.Bool().Draw(t, "private"),
			LinkLocal: rapid.Bool().Draw(t, "link-local"),
			Allow:     rapid.SliceOfN(prefix, 0, 2).Draw(t, "allow"),
			Deny:      rapid.SliceOfN(prefix, 0, 2).Draw(t, "deny"),
		})
		want := g.CheckHost(plain.String())

		mapped := netip.AddrFrom16(plain.As16())
		nat64 := netip.AddrFrom16([16]byte{0, 0x64, 0xff, 0x9b, 12: b[0], 13: b[1], 14: b[2], 15: b[3]})
		for _, form := range []netip.Addr{mapped, nat64} {
			if got := g.CheckHost(form.String()); (got == nil) != (want == nil) {
				t.Fatalf("%s: %v, but %s: %v", plain, want, form, got)
			}
			if got := g.Control(netip.AddrPortFrom(form, 443).String()); (got == nil) != (want == nil) {
				t.Fatalf("%s: %v, but dialled as %s: %v", plain, want, form, got)
			}
		}
	})
}
