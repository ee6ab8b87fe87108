// Package wiring carries what a host configures from the root's options to what runs. The root makes Settings, the engine
// reads them.
package wiring

import (
	"errors"
	"log/slog"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/netguard"
	"github.com/deliverykit/delivery/internal/seal"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/retry"
)

// ErrCrash is how the handler of package deliverytest plays a process that dies in the middle of an attempt: the engine
// forgets the attempt, so that nothing of it is recorded and its lease runs out. No other handler can return it.
var ErrCrash = errors.New("the process died in the middle of the attempt")

// Settings are what the options set, after New has filled in the defaults.
type Settings struct {
	Dialect                 sqlstore.Dialect
	Types                   map[string]*Type
	Keys                    *seal.Keyring // nil: none
	Sources                 map[string]payload.Source
	Payloads                payload.Store // nil: chunks in the database
	Retry                   retry.Policy
	Breaker                 retry.Breaker
	Limits                  destination.Limits
	OrganizationConcurrency int // attempts at once of one organization; 0: no limit
	Quotas                  Quotas
	Retention               Retention
	Checks                  Checks
	Workers                 int
	PollInterval            time.Duration
	ShutdownTimeout         time.Duration
	Lease                   time.Duration
	SlowLook                time.Duration // from which a look for ready items counts as slow
	Authorizer              access.Authorizer
	ActorRequired           bool
	Logger                  *slog.Logger
	Network                 netguard.Policy
	DetailsURL              func(organization, delivery string) string

	Local func() time.Time     // nil: the system's, which may be wrong; only tests set one
	Skew  func() time.Duration // how far the database's clock is ahead of Local, if it is known to be by much

	Clock func() time.Time // nil: the database's, or the system's where that has none; only tests set one

	Given map[string]bool // the options given so far
}

// Now is the time as far as this process knows it: by its own clock, put right by what the database last said.
func (s *Settings) Now() time.Time {
	switch {
	case s.Clock != nil:
		return s.Clock()
	case s.Skew != nil:
		return s.local().Add(s.Skew())
	}
	return s.local()
}

func (s *Settings) local() time.Time {
	if s.Local != nil {
		return s.Local()
	}
	return time.Now()
}

// Retention is how long what has ended is kept.
type Retention struct {
	Deliveries, DeadLetters, Statistics time.Duration // the first two 0 for ever
}

// Checks says how often connections are tested.
type Checks struct {
	Every, Failing, InUse time.Duration
}

// Quotas bound what is accepted.
type Quotas struct {
	Inline       int64 // bytes of a payload kept in the delivery's row
	InMemory     int64 // bytes of a payload.JSON or payload.Bytes
	Payload      int64 // bytes of any payload
	Destinations int   // of one request
	Batch        int   // requests of one DeliverMany
}

// Type is a registered handler and its optional interfaces, each looked for once; nil where it has none.
type Type struct {
	Name      string
	Handler   handler.Handler
	Parser    handler.ConfigParser
	Completer handler.Completer
	Params    handler.ParamsParser
	Tester    handler.Tester
	Signer    handler.Signer
	Describer handler.Describer
	Rotator   handler.Rotator
	Warner    handler.Warner
	Opener    handler.Opener
	Forgetter handler.Forgetter
	Upkeep    handler.Maintainer
	Remover   handler.Remover
}

// NewType looks for the optional interfaces of h.
func NewType(name string, h handler.Handler) *Type {
	t := &Type{Name: name, Handler: h}
	t.Parser, _ = h.(handler.ConfigParser)
	t.Completer, _ = h.(handler.Completer)
	t.Params, _ = h.(handler.ParamsParser)
	t.Tester, _ = h.(handler.Tester)
	t.Signer, _ = h.(handler.Signer)
	t.Rotator, _ = h.(handler.Rotator)
	t.Warner, _ = h.(handler.Warner)
	t.Describer, _ = h.(handler.Describer)
	t.Opener, _ = h.(handler.Opener)
	t.Forgetter, _ = h.(handler.Forgetter)
	t.Upkeep, _ = h.(handler.Maintainer)
	t.Remover, _ = h.(handler.Remover)
	return t
}
