package netguard

import (
	"fmt"
	"net/netip"
)

type class uint8

const (
	public    class = iota
	loopback        // opened by Policy.Loopback
	private         // opened by Policy.Private
	linkLocal       // opened by Policy.LinkLocal
	metadata        // opened by an Allow prefix of exactly that address
	special         // opened by any Allow prefix
)

type block struct {
	prefix netip.Prefix
	class  class
	name   string // completes "address x is ..."
}

var (
	globalUnicast = netip.MustParsePrefix("2000::/3")
	nat64         = netip.MustParsePrefix("64:ff9b::/96")
	sixToFour     = netip.MustParsePrefix("2002::/16")
	teredo        = netip.MustParsePrefix("2001::/32")
)

// The first match wins, so that exceptions come before what contains them.
//
// The blocks that IANA lists as special but globally reachable, such as AS112
// and AMT, are not here, except for those inside 192.0.0.0/24 and 2001::/23:
// these are anycast services of the network itself, and nobody's destination.
var blocks = [...]block{
	// Cloud services that trust whoever can reach them. None is in the IANA
	// registries by itself, the last one is even inside public space.
	{
		netip.MustParsePrefix("169.254.169.254/32"), metadata,
		"a cloud metadata service (AWS, Azure, Google Cloud and others)",
	},
	{netip.MustParsePrefix("169.254.170.2/32"), metadata, "a cloud metadata service (Amazon ECS task credentials)"},
	{netip.MustParsePrefix("169.254.170.23/32"), metadata, "a cloud metadata service (Amazon EKS Pod Identity)"},
	{netip.MustParsePrefix("169.254.42.42/32"), metadata, "a cloud metadata service (Scaleway)"},
	{netip.MustParsePrefix("fd00:ec2::/32"), metadata, "a cloud metadata service (AWS)"},
	{netip.MustParsePrefix("fd20:ce::254/128"), metadata, "a cloud metadata service (Google Cloud)"},
	{netip.MustParsePrefix("fd00:42::42/128"), metadata, "a cloud metadata service (Scaleway)"},
	{netip.MustParsePrefix("100.100.100.200/32"), metadata, "a cloud metadata service (Alibaba Cloud)"},
	{netip.MustParsePrefix("192.0.0.192/32"), metadata, "a cloud metadata service (Oracle Cloud)"},
	{netip.MustParsePrefix("168.63.129.16/32"), metadata, "a cloud platform service (Azure WireServer)"},

	{netip.MustParsePrefix("0.0.0.0/32"), special, "unspecified (RFC 1122, section 3.2.1.3)"},
	{netip.MustParsePrefix("0.0.0.0/8"), special, `in "this network" (RFC 791, section 3.2)`},
	{netip.MustParsePrefix("10.0.0.0/8"), private, "private (RFC 1918)"},
	{netip.MustParsePrefix("100.64.0.0/10"), private, "in the shared space of carrier-grade NAT (RFC 6598)"},
	{netip.MustParsePrefix("127.0.0.0/8"), loopback, "loopback (RFC 1122, section 3.2.1.3)"},
	{netip.MustParsePrefix("169.254.0.0/16"), linkLocal, "link-local (RFC 3927)"},
	{netip.MustParsePrefix("172.16.0.0/12"), private, "private (RFC 1918)"},
	{netip.MustParsePrefix("192.0.0.0/24"), special, "reserved for IETF protocols (RFC 6890, section 2.1)"},
	{netip.MustParsePrefix("192.0.2.0/24"), special, "for documentation (RFC 5737)"},
	{netip.MustParsePrefix("192.88.99.0/24"), special, "a deprecated 6to4 relay (RFC 7526)"},
	{netip.MustParsePrefix("192.168.0.0/16"), private, "private (RFC 1918)"},
	{netip.MustParsePrefix("198.18.0.0/15"), special, "for benchmarking (RFC 2544)"},
	{netip.MustParsePrefix("198.51.100.0/24"), special, "for documentation (RFC 5737)"},
	{netip.MustParsePrefix("203.0.113.0/24"), special, "for documentation (RFC 5737)"},
	{netip.MustParsePrefix("224.0.0.0/4"), special, "multicast (RFC 5771)"},
	{netip.MustParsePrefix("255.255.255.255/32"), special, "broadcast (RFC 8190)"},
	{netip.MustParsePrefix("240.0.0.0/4"), special, "reserved (RFC 1112, section 4)"},

	{netip.MustParsePrefix("::/128"), special, "unspecified (RFC 4291)"},
	{netip.MustParsePrefix("::1/128"), loopback, "loopback (RFC 4291)"},
	// The IPv4 address inside a NAT64 address decides where it leads.
	{nat64, public, "translated to IPv4 (RFC 6052)"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), special, "for local translation to IPv4 (RFC 8215)"},
	{netip.MustParsePrefix("100::/64"), special, "discard-only (RFC 6666)"},
	{teredo, special, "a Teredo tunnel (RFC 4380)"},
	{netip.MustParsePrefix("2001:2::/48"), special, "for benchmarking (RFC 5180)"},
	{netip.MustParsePrefix("2001::/23"), special, "reserved for IETF protocols (RFC 2928)"},
	{netip.MustParsePrefix("2001:db8::/32"), special, "for documentation (RFC 3849)"},
	{sixToFour, special, "a 6to4 tunnel (RFC 3056)"},
	{netip.MustParsePrefix("3fff::/20"), special, "for documentation (RFC 9637)"},
	{netip.MustParsePrefix("5f00::/16"), special, "for segment routing (RFC 9602)"},
	{netip.MustParsePrefix("fc00::/7"), private, "private (unique local, RFC 4193)"},
	{netip.MustParsePrefix("fe80::/10"), linkLocal, "link-local (RFC 4291)"},
	{netip.MustParsePrefix("fec0::/10"), private, "private (site-local, RFC 3879)"},
	{netip.MustParsePrefix("ff00::/8"), special, "multicast (RFC 4291)"},
}

// classify needs an address without a zone that is not IPv4-mapped.
func classify(addr netip.Addr) block {
	for _, b := range blocks {
		if b.prefix.Contains(addr) {
			return b
		}
	}
	// Of IPv6, IANA has assigned 2000::/3 and no more to global unicast
	// (RFC 4291, section 2.4, and the IPv6 address space registry). It also
	// takes in the deprecated forms that embed an IPv4 address below ::/8.
	if addr.Is6() && !globalUnicast.Contains(addr) {
		return block{class: special, name: "outside of the global unicast range 2000::/3 (RFC 4291)"}
	}
	return block{class: public}
}

// embedded returns the IPv4 addresses that packets to an IPv6 address may be
// delivered to: RFC 6052 section 2.2 for NAT64, RFC 3056 section 2 for 6to4,
// RFC 4380 section 4 for Teredo, which holds the server's address, and the
// client's with all bits inverted.
func embedded(addr netip.Addr) []netip.Addr {
	if !addr.Is6() {
		return nil
	}
	b := addr.As16()
	switch {
	case nat64.Contains(addr):
		return []netip.Addr{netip.AddrFrom4([4]byte(b[12:16]))}
	case sixToFour.Contains(addr):
		return []netip.Addr{netip.AddrFrom4([4]byte(b[2:6]))}
	case teredo.Contains(addr):
		return []netip.Addr{
			netip.AddrFrom4([4]byte(b[4:8])),
			netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]}),
		}
	}
	return nil
}

// check refuses an address unless the policy opens it and every IPv4 address
// it stands for. A zone names an interface of this machine and does not change
// the kind of the address. It is removed first, because [netip.Prefix.Contains]
// matches no address with a zone.
func (g *Guard) check(addr netip.Addr) error {
	plain := addr.WithZone("").Unmap()
	if reason, hint := g.verdict(plain); reason != "" {
		return &BlockedError{Address: addr.String(), Reason: "is " + reason, Hint: hint}
	}
	for _, inner := range embedded(plain) {
		if reason, hint := g.verdict(inner); reason != "" {
			return &BlockedError{
				Address: addr.String(),
				Reason:  fmt.Sprintf("leads to %s, which is %s", inner, reason),
				Hint:    hint,
			}
		}
	}
	return nil
}

// verdict returns why an address is closed, "" if it is open.
func (g *Guard) verdict(addr netip.Addr) (reason, hint string) {
	for _, p := range g.policy.Deny {
		if p.Contains(addr) {
			return fmt.Sprintf("in the denied network %s", p), "take it out of delivery.Network.Deny"
		}
	}
	b := classify(addr)
	for _, p := range g.policy.Allow {
		if p.Contains(addr) && (b.class != metadata || p.IsSingleIP()) {
			return "", ""
		}
	}
	switch b.class {
	case public:
		return "", ""
	case loopback:
		if g.policy.Loopback {
			return "", ""
		}
		return b.name, "allow it with delivery.WithNetwork(delivery.Network{Loopback: true})"
	case private:
		if g.policy.Private {
			return "", ""
		}
		return b.name, "allow it with delivery.WithNetwork(delivery.Network{Private: true})"
	case linkLocal:
		if g.policy.LinkLocal {
			return "", ""
		}
		return b.name, "allow it with delivery.WithNetwork(delivery.Network{LinkLocal: true})"
	case metadata:
		return b.name, fmt.Sprintf(
			"only %s itself in delivery.Network.Allow opens it",
			netip.PrefixFrom(addr, addr.BitLen()),
		)
	default:
		return b.name, "add it to delivery.Network.Allow if you must"
	}
}
