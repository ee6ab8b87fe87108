package delivery

import (
	"net/http"
	"net/netip"
	"net/url"
	"time"
)

// Network says which addresses handlers may connect to besides public ones. Deny goes before Allow,
// and Allow before the three switches. Cloud metadata services are reached only if Allow has
// exactly their address.
type Network struct {
	Loopback  bool // 127.0.0.0/8 and ::1: tests, and services on the same machine
	Private   bool // RFC 1918, carrier-grade NAT, unique local IPv6
	LinkLocal bool
	Allow     []netip.Prefix
	Deny      []netip.Prefix
	Proxy     func(*http.Request) (*url.URL, error) // nil: none, whatever the environment says
}

// Retention is the age at which deliveries that have ended are removed. A delivery that waits is
// kept, however old it is.
type Retention struct {
	Deliveries  time.Duration // since they were accepted, with attempts and payload. Default: for ever
	DeadLetters time.Duration // since they died, with their delivery. Default: Deliveries, and never shorter
	Statistics  time.Duration // per destination and minute. Default: 32 days
}

// HealthChecks says how often Maintain tests the connections of destinations.
type HealthChecks struct {
	Every   time.Duration // of idle destinations; negative: no test at all. Default: 6 h
	Failing time.Duration // of destinations that are not healthy or failed their last test. Default: 5 min
	InUse   time.Duration // of healthy destinations in use, for what is about to expire; negative: never. Default: 24 h
}

// Quotas bound what is accepted.
type Quotas struct {
	Inline       int64 // bytes of a payload kept in the delivery's row; larger ones go to chunks. Default: 64 KiB
	InMemory     int64 // bytes of payload.JSON and payload.Bytes; larger ones should be streamed. Default: 10 MiB
	Payload      int64 // bytes of any payload. Default: 1 TiB
	Destinations int   // of one request. Default: 50
	Batch        int   // requests of one DeliverMany. Default: 10,000
}
