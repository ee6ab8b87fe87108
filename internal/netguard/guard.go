package netguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"syscall"
	"time"
)

const dialTimeout = 10 * time.Second

// Policy says which addresses are open beside the public ones. The zero value
// opens public unicast addresses only.
//
// Deny comes before everything, Allow before the three flags. An IPv4-mapped
// IPv6 address is the IPv4 address, in prefixes too, and otherwise IPv6
// prefixes say nothing about IPv4: 0.0.0.0/0 and ::/0 together are everything.
// An IPv6 address that embeds an IPv4 address (NAT64, 6to4, Teredo) is open
// only if both are.
type Policy struct {
	// Loopback opens 127.0.0.0/8 and ::1, for tests and for services on the
	// same machine.
	Loopback bool

	// Private opens RFC 1918, carrier-grade NAT (100.64.0.0/10), unique local
	// (fc00::/7) and site-local addresses. Cloud metadata services among them
	// stay closed.
	Private bool

	// LinkLocal opens 169.254.0.0/16 and fe80::/10. Cloud metadata services
	// among them stay closed.
	LinkLocal bool

	// Allow opens networks whatever they are, and 0.0.0.0/0 all of IPv4. A
	// cloud metadata service is opened only by a prefix of that single
	// address, as 169.254.169.254/32, never by a wider one.
	Allow []netip.Prefix

	// Deny closes networks, public ones too.
	Deny []netip.Prefix

	// Proxy chooses a forward proxy for a request of [Guard.Client], as
	// [http.ProxyFromEnvironment] does; nil, the default, means none, whatever
	// the environment says. The proxy's own address must be open by this
	// policy. The proxy resolves and dials the target, so of the target only
	// what [Guard.CheckHost] sees is refused here: the rest is up to the
	// proxy. [Guard.DialContext] uses no proxy.
	Proxy func(*http.Request) (*url.URL, error)
}

// Validate reports, joined, every prefix that is not what it looks like: one
// that is not valid matches nothing, and one that is IPv4-mapped but shorter
// than 96 bits matches no IPv4 address.
func (p Policy) Validate() error {
	return errors.Join(validate("allow", p.Allow), validate("deny", p.Deny))
}

func validate(list string, prefixes []netip.Prefix) error {
	var errs []error
	for i, p := range prefixes {
		switch {
		case !p.IsValid():
			errs = append(errs, fmt.Errorf("netguard: %s[%d] is not a valid network prefix", list, i))
		case p.Addr().Is4In6() && p.Bits() < 96:
			errs = append(errs, fmt.Errorf("netguard: %s[%d] mixes IPv4 with IPv6: %s", list, i, p))
		}
	}
	return errors.Join(errs...)
}

// Guard dials what its policy opens and refuses everything else. It is safe
// for concurrent use. Whoever made it calls [Guard.CloseIdle] at the end.
type Guard struct {
	policy    Policy
	dialer    net.Dialer
	transport *http.Transport
}

// New makes a guard. It copies the policy, and takes one that [Policy.Validate]
// accepts.
func New(p Policy) *Guard {
	p.Allow = normalize(p.Allow)
	p.Deny = normalize(p.Deny)
	g := &Guard{policy: p}
	g.dialer = net.Dialer{Timeout: dialTimeout, ControlContext: g.control}
	g.transport = newTransport(g.DialContext)
	if p.Proxy != nil {
		g.transport.Proxy = g.proxy
	}
	return g
}

// normalize makes plain IPv4 prefixes of IPv4-mapped ones, as addresses are
// unmapped before they are compared.
func normalize(prefixes []netip.Prefix) []netip.Prefix {
	prefixes = slices.Clone(prefixes)
	for i, p := range prefixes {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			prefixes[i] = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
	}
	return prefixes
}

// DialContext connects like [net.Dialer.DialContext], over TCP only (tcp,
// tcp4, tcp6), and for at most 10 s, name resolution included. Of a name with
// several addresses the closed ones are passed over; where none could be
// reached, the error is that of the first tried. [errors.As] finds a
// [*BlockedError] in it if that one was refused.
func (g *Guard) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
		return g.dialer.DialContext(ctx, network, address)
	default:
		return nil, &BlockedError{
			Address: address,
			Reason:  fmt.Sprintf("is to be dialled over %q", network),
			Hint:    "only tcp, tcp4 and tcp6 are open",
		}
	}
}

// control runs once per address that is tried, between socket and connect.
func (g *Guard) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return &BlockedError{
			Address: address,
			Reason:  "does not name an address to dial",
			Hint:    "give a host and a port",
		}
	}
	return g.check(ap.Addr())
}

// BlockedError says that policy closes an address or a host. Trying again does
// not help, so callers take it as a fault of the configuration.
type BlockedError struct {
	Address string // as it was to be dialled, or the host as it was given
	Reason  string // what is wrong with it, to be read after the address
	Hint    string // what the host program, not a tenant, can do about it
}

func (e *BlockedError) Error() string {
	if _, err := netip.ParseAddr(e.Address); err == nil {
		return fmt.Sprintf("netguard: address %s %s; %s", e.Address, e.Reason, e.Hint)
	}
	return fmt.Sprintf("netguard: host %q %s; %s", e.Address, e.Reason, e.Hint)
}

// Permanent says that trying again is no use: package handler takes it for a
// fault of the configuration.
func (e *BlockedError) Permanent() bool { return true }
