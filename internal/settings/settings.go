// Package settings carries what a host configures to the code that runs. A [Builder] collects what
// the root's options set; [Settings] is what the engine and everything beside it read.
//
// Settings have two halves. [Fixed] holds for the life of the service and is read without a lock.
// [Policy] may be replaced while the service runs: a reader takes it once per claim, attempt or
// call with [Settings.Policy] and passes it down, so that one decision never mixes two policies.
package settings

import (
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/internal/netguard"
	"github.com/deliverykit/delivery/internal/observe"
	"github.com/deliverykit/delivery/internal/seal"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/retry"
)

// ErrCrash is how the handler of package deliverytest plays a process that dies during an attempt:
// the engine forgets the attempt, records nothing, and its lease runs out. No other handler can
// return it.
var ErrCrash = errors.New("the process died in the middle of the attempt")

// Fixed is what holds for the life of a service.
type Fixed struct {
	Dialect       sqlstore.Dialect
	Types         map[string]*Type
	Keys          *seal.Keyring // nil: none
	Sources       map[string]payload.Source
	Payloads      payload.Store // nil: chunks in the database
	Workers       int
	Lease         time.Duration
	SlowLook      time.Duration // a look for ready items that takes longer counts as slow
	Authorizer    access.Authorizer
	ActorRequired bool
	Logger        *slog.Logger
	Observer      observe.Observer // nil: none
	Network       netguard.Policy
	DetailsURL    func(organization, delivery string) string // nil: none

	Clock func() time.Time     // replaces the database's clock; only tests set it
	Local func() time.Time     // replaces the system's clock; only tests set it
	Skew  func() time.Duration // how far the database's clock is known to be ahead of Local; nil: 0
}

// Policy is what may change while the service runs. A Policy in use is never written to.
type Policy struct {
	Retry                   retry.Policy
	Breaker                 retry.Breaker
	Limits                  destination.Limits
	OrganizationConcurrency int // attempts at once for one organization; 0: no limit
	Quotas                  Quotas
	Retention               Retention
	Checks                  Checks
	PollInterval            time.Duration
	ShutdownTimeout         time.Duration
}

// Retention is how long rows are kept after their delivery ended.
type Retention struct {
	Deliveries, DeadLetters, Statistics time.Duration // the first two: 0 keeps them for ever
}

// Checks is how often connections are tested.
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

// DefaultPolicy is the policy of a host that sets nothing.
func DefaultPolicy() Policy {
	return Policy{
		Retry:   retry.Default(),
		Breaker: retry.DefaultBreaker(),
		Limits:  destination.Limits{Timeout: destination.Duration(30 * time.Second)},
		Quotas: Quotas{
			Inline:       64 << 10,
			InMemory:     10 << 20,
			Payload:      1 << 40,
			Destinations: 50,
			Batch:        10_000,
		},
		Retention:       Retention{Statistics: 32 * 24 * time.Hour},
		Checks:          Checks{Every: 6 * time.Hour, Failing: 5 * time.Minute, InUse: 24 * time.Hour},
		PollInterval:    time.Second,
		ShutdownTimeout: 20 * time.Second,
	}
}

// Timeout bounds one attempt at a destination with these limits.
func (p *Policy) Timeout(l destination.Limits) time.Duration {
	return time.Duration(l.Or(p.Limits).Timeout)
}

// Settings are the settings of a running service. They may be read by many goroutines at once.
type Settings struct {
	Fixed
	defaults Policy
	policy   atomic.Pointer[Policy]
}

// Policy returns the policy in force. Read it once per claim, attempt or call.
func (s *Settings) Policy() *Policy { return s.policy.Load() }

// Reconfigure returns a Builder that starts from the policy in force and refuses options that set
// what is fixed.
func (s *Settings) Reconfigure() *Builder {
	return &Builder{Policy: *s.Policy(), Defaults: s.defaults, running: true, given: map[string]bool{}}
}

// Apply puts the policy of b in force.
func (s *Settings) Apply(b *Builder) {
	p := b.Policy
	s.policy.Store(&p)
}

// TypeNames lists the registered types in alphabetical order.
func (f *Fixed) TypeNames() []string {
	names := make([]string, 0, len(f.Types))
	for name := range f.Types {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Now is the time as this process knows it: its own clock, corrected by what the database last
// said.
func (f *Fixed) Now() time.Time {
	switch {
	case f.Clock != nil:
		return f.Clock()
	case f.Skew != nil:
		return f.local().Add(f.Skew())
	}
	return f.local()
}

func (f *Fixed) local() time.Time {
	if f.Local != nil {
		return f.Local()
	}
	return time.Now()
}
