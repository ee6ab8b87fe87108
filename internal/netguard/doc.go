// Package netguard is the one way out of this library: the dialer and the HTTP
// client that every handler and every connection test uses.
//
// Tenants enter destinations, so their addresses are foreign input: a URL that
// leads to a loopback service, into the host's network or to a cloud's metadata
// service would turn the library into a proxy for the tenant (server-side
// request forgery). A [Guard] refuses such addresses at the only moment that
// counts: after name resolution and immediately before connect, on the address
// actually dialled. A name that resolves differently the second time (DNS
// rebinding) therefore gains nothing. [Guard.CheckHost] reports bad addresses
// early, when a configuration is saved; it replaces nothing.
//
// The list of special addresses comes from the IANA IPv4 and IPv6
// Special-Purpose Address Registries (RFC 6890, RFC 8190). The zero [Policy]
// opens public unicast addresses only.
//
// The guard cannot see two things. Translation prefixes that are private to a
// network (RFC 6052, section 3.2) look like public addresses; where they exist,
// they belong in Policy.Deny. And a forward proxy resolves and dials by itself.
//
// The root package makes the guard and hands its methods to handlers. This
// package imports the standard library only.
package netguard
