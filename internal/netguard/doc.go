// Package netguard is the one way out of this library: the dialer and the HTTP
// client that every handler and every connection test uses.
//
// Destinations are entered by tenants, so their addresses are foreign input: a
// URL that leads to a loopback service, into the host's network or to a
// cloud's metadata service would turn the library into a proxy for the tenant
// (server-side request forgery). A [Guard] refuses such addresses at the only
// moment that counts, after name resolution and immediately before connect, on
// the address actually dialled. A name that resolves differently the second
// time (DNS rebinding) therefore gains nothing. [Guard.CheckHost] is an early
// courtesy for the time a configuration is saved; it replaces nothing.
//
// Which addresses are special comes from the IANA IPv4 and IPv6
// Special-Purpose Address Registries (RFC 6890, RFC 8190). The zero [Policy]
// opens public unicast addresses only.
//
// What the guard cannot see: translation prefixes that are private to a
// network (RFC 6052, section 3.2) look like public addresses and belong in
// Policy.Deny where they exist, and behind a forward proxy it is the proxy
// that resolves and dials.
//
// The root package makes the guard and hands its methods to handlers. This
// package imports the standard library only.
package netguard
