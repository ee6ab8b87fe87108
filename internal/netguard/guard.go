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

// Policy says which addresses are open in addition to public ones. The zero
// value opens public unicast addresses only.
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

	// Allow opens networks of any kind; 0.0.0.0/0 opens all of IPv4. A cloud
	// metadata service is opened only by a prefix of that single address,
	// such as 169.254.169.254/32, never by a wider one.
	Allow []netip.Prefix

	// Deny closes networks, public ones too.
	Deny []netip.Prefix

	// Proxy chooses a forward proxy for a request of [Guard.Client], as
	// [http.ProxyFromEnvironment] does. Default: none, regardless of the
	// environment. This policy must open the proxy's own address. The proxy
	// resolves and dials the target, so only [Guard.CheckHost] checks the
	// target here; the rest is up to the proxy. [Guard.DialContext] uses no
	// proxy.
	Proxy func(*http.Request) (*url.URL, error)
}

// Validate reports every misleading prefix, joined: an invalid one matches
// nothing, and an IPv4-mapped one of less than 96 bits matches no IPv4 address.
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

// Guard dials the addresses that its policy opens and refuses all others. It is
// safe for concurrent use. Its owner calls [Guard.CloseIdle] at the end.
type Guard struct {
	policy    Policy
	dialer    net.Dialer
	transport *http.Transport
}

// New returns a guard. It copies the policy, which must pass [Policy.Validate].
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

// normalize turns IPv4-mapped prefixes into plain IPv4 prefixes, because
// addresses are unmapped before they are compared.
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
// tcp4, tcp6), and for at most 10 s, name resolution included. If a name has
// several addresses, closed ones are passed over. If none can be reached, the
// error is the first address's; it wraps a [*BlockedError] if that address was
// refused.
func (g *Guard) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
		return g.dialer.DialContext(ctx, network, address)
	default:
		return nil, &BlockedError{
			Address: address,
			Reason:  fmt.Sprintf("cannot be dialled over %q", network),
			Hint:    "only tcp, tcp4 and tcp6 are open",
		}
	}
}

// control runs once for each tried address, between socket and connect.
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

// BlockedError says that the policy closes an address or a host. Trying again
// does not help, so callers treat it as a fault of the configuration.
type BlockedError struct {
	Address string // the address as dialled, or the host as given
	Reason  string // why it is closed; reads on from the address
	Hint    string // what the host program, not a tenant, can do about it
}

func (e *BlockedError) Error() string {
	if _, err := netip.ParseAddr(e.Address); err == nil {
		return fmt.Sprintf("netguard: address %s %s; %s", e.Address, e.Reason, e.Hint)
	}
	return fmt.Sprintf("netguard: host %q %s; %s", e.Address, e.Reason, e.Hint)
}

// Permanent reports that trying again does not help: package handler treats the
// error as a fault of the configuration.
func (e *BlockedError) Permanent() bool { return true }
