package netguard

import (
	"net/netip"
	"slices"
	"strings"
	"unicode"
)

const maxHostLength = 253 // RFC 1035, section 2.3.4, as text without the final dot

// The names that hosts files commonly give to loopback, and the names that
// RFC 6761 section 6.3 reserves.
var loopbackNames = []string{
	"localhost", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback",
	"localhost.localdomain", "localhost4.localdomain4", "localhost6.localdomain6",
}

// The suffixes that only private networks resolve: local is for mDNS
// (RFC 6762), ICANN reserved internal for private use, home.arpa is for homes
// (RFC 8375), and RFC 6762 appendix G found the others in use.
var privateSuffixes = []string{
	".local", ".internal", ".home.arpa",
	".intranet", ".private", ".corp", ".home", ".lan", ".localdomain",
}

// CheckHost checks a host without a port early, when a configuration is saved.
// It makes no DNS query. It accepts only host names, and IP addresses in their
// usual notation. It refuses the numeric forms of IPv4 that some resolvers
// accept (0x7f.1, 2130706433, 0177.0.0.1), whatever the policy is.
// Internationalized names must be in their ASCII form (xn--...), because
// mapping them could lead to another host than the one checked.
//
// It refuses addresses by the rules of [Guard.DialContext], loopback names
// (localhost, *.localhost), and names that only a local network resolves (a
// single label, *.internal, *.local and the like), unless the policy opens
// loopback or private addresses, or an Allow prefix might contain them.
//
// Every refusal is a [*BlockedError]. A host that passes may still be refused
// when it is dialled.
func (g *Guard) CheckHost(host string) error {
	// Before lower case: the Kelvin sign, for one, has k as its lower case.
	if strings.ContainsFunc(host, func(r rune) bool { return r > unicode.MaxASCII }) {
		return badHost(host, "is not in ASCII (internationalized names start with xn--)")
	}
	name := strings.ToLower(host)
	if inner, ok := strings.CutPrefix(name, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		if addr, err := netip.ParseAddr(inner); ok && err == nil && addr.Is6() {
			return g.checkLiteral(host, addr)
		}
		return badHost(host, "is not an IPv6 address in brackets")
	}
	if addr, err := netip.ParseAddr(name); err == nil {
		return g.checkLiteral(host, addr)
	}

	name = strings.TrimSuffix(name, ".")
	if reason := syntax(name); reason != "" {
		return badHost(host, reason)
	}
	if endsInNumber(name) {
		return badHost(host, "is an IPv4 address in an unusual notation, or not a host")
	}

	if slices.Contains(loopbackNames, name) || strings.HasSuffix(name, ".localhost") {
		if g.policy.Loopback || g.allowsLoopback() {
			return nil
		}
		return &BlockedError{
			Address: host,
			Reason:  "is a name for loopback (RFC 6761)",
			Hint:    "allow it with delivery.WithNetwork(delivery.Network{Loopback: true})",
		}
	}
	if isPrivateName(name) && !g.policy.Private && len(g.policy.Allow) == 0 {
		return &BlockedError{
			Address: host,
			Reason:  "is a name that only a local network resolves",
			Hint:    "allow it with delivery.WithNetwork(delivery.Network{Private: true})",
		}
	}
	return nil
}

// checkLiteral accepts a zone only where it has a meaning, because
// [netip.ParseAddr] accepts any text as a zone.
func (g *Guard) checkLiteral(host string, addr netip.Addr) error {
	if zone := addr.Zone(); zone != "" && (!addr.IsLinkLocalUnicast() || syntax(zone) != "") {
		return badHost(host, "has a zone, which only a link-local address has")
	}
	return g.check(addr)
}

func badHost(host, reason string) error {
	return &BlockedError{
		Address: host[:min(len(host), maxHostLength)],
		Reason:  reason,
		Hint:    "give a host name or an IP address, without port",
	}
}

// syntax follows RFC 1123 section 2.1, and also accepts underscores: they occur
// in names that resolve.
func syntax(name string) (reason string) {
	if name == "" {
		return "is empty"
	}
	if len(name) > maxHostLength {
		return "is longer than 253 characters"
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return "has a label that is empty or longer than 63 characters"
		}
		if label[0] == '-' || label[len(label)-1] == '-' {
			return "has a label that starts or ends with a hyphen"
		}
		for _, c := range label {
			switch {
			case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			default:
				return "has a character that no host name has"
			}
		}
	}
	return ""
}

// endsInNumber is the rule by which browsers distinguish IPv4 addresses from
// names: the last label is decimal, or hexadecimal after 0x (WHATWG URL, "ends
// in a number checker"). No top-level domain is numeric (RFC 3696, section 2).
func endsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	if strings.Trim(last, "0123456789") == "" {
		return true
	}
	digits, ok := strings.CutPrefix(last, "0x")
	return ok && strings.Trim(digits, "0123456789abcdef") == ""
}

func isPrivateName(name string) bool {
	if !strings.Contains(name, ".") {
		return true
	}
	return slices.ContainsFunc(privateSuffixes, func(suffix string) bool {
		return strings.HasSuffix("."+name, suffix)
	})
}

func (g *Guard) allowsLoopback() bool {
	return slices.ContainsFunc(g.policy.Allow, func(p netip.Prefix) bool {
		return slices.ContainsFunc(blocks[:], func(b block) bool {
			return b.class == loopback && b.prefix.Overlaps(p)
		})
	})
}
