package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/netguard"
	"github.com/deliverykit/delivery/internal/seal"
	"github.com/deliverykit/delivery/internal/wiring"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/retry"
)

// Option configures a service. A nil option, one given twice and one with a bad value are errors of New.
type Option func(*wiring.Settings) error

// once makes an option that can be given once.
func once(name string, set func(s *wiring.Settings) error) Option {
	return func(s *wiring.Settings) error {
		if s.Given[name] {
			return fmt.Errorf("delivery: %s is given twice", name)
		}
		s.Given[name] = true
		if err := set(s); err != nil {
			return fmt.Errorf("delivery: %s: %w", name, err)
		}
		return nil
	}
}

var typeName = regexp.MustCompile(`^[a-z][a-z0-9_.-]{0,49}$`)

// WithHandler registers what delivers to destinations of a type. A process attempts only items of the types it has; one
// that merely accepts deliveries needs none.
func WithHandler(typ string, h handler.Handler) Option {
	return once(fmt.Sprintf("WithHandler(%q)", typ), func(s *wiring.Settings) error {
		if !typeName.MatchString(typ) {
			return fmt.Errorf("the type must match %s", typeName)
		}
		if isNil(h) {
			return errors.New("the handler is nil")
		}
		s.Types[typ] = wiring.NewType(typ, h)
		return nil
	})
}

// KeyWrapper seals and opens the keys that destinations' credentials are sealed with: LocalKey, or a host's key
// management service. It may be called by many goroutines at once.
type KeyWrapper interface {
	ID() string
	Wrap(ctx context.Context, dek, associatedData []byte) ([]byte, error)
	Unwrap(ctx context.Context, wrapped, associatedData []byte) ([]byte, error)
}

// LocalKey is a KeyWrapper of a key of 32 random bytes, given in base64 or hex. The id is stored with what the key seals,
// and must not be used for another key later. A bad key is an error of New.
func LocalKey(id, key string) KeyWrapper {
	k, err := seal.Local(id, key)
	if err != nil {
		return badKey{id, err}
	}
	return k
}

// badKey keeps the error of LocalKey for New.
type badKey struct {
	id  string
	err error
}

func (k badKey) ID() string                                             { return k.id }
func (k badKey) Wrap(context.Context, []byte, []byte) ([]byte, error)   { return nil, k.err }
func (k badKey) Unwrap(context.Context, []byte, []byte) ([]byte, error) { return nil, k.err }

// WithKeys seals the credentials of destinations with primary, and opens them with any of the keys. Without it, a
// destination that has credentials is refused with ErrNoKeys.
func WithKeys(primary KeyWrapper, older ...KeyWrapper) Option {
	return once("WithKeys", func(s *wiring.Settings) error {
		all := make([]seal.KeyWrapper, 0, 1+len(older))
		var errs []error
		for _, k := range append([]KeyWrapper{primary}, older...) {
			if bad, ok := k.(badKey); ok {
				errs = append(errs, bad.err)
			}
			all = append(all, k)
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
		var err error
		s.Keys, err = seal.NewKeyring(all[0], all[1:]...)
		return err
	})
}

// WithRetry sets the retry policy of destinations and requests that set none; its zero fields are retry.Default's.
func WithRetry(p retry.Policy) Option {
	return once("WithRetry", func(s *wiring.Settings) error {
		s.Retry = p.Or(s.Retry)
		return p.Validate()
	})
}

// WithBreaker sets the circuit breaker, and when a destination is disabled, for destinations that set none; its zero fields
// are retry.DefaultBreaker's.
func WithBreaker(b retry.Breaker) Option {
	return once("WithBreaker", func(s *wiring.Settings) error {
		s.Breaker = b.Or(s.Breaker)
		return b.Validate()
	})
}

// WithOrganizationConcurrency sets how many attempts may be under way for one organization, over all processes: without
// it, as many as there are workers. It costs throughput, because all claims then count what is in flight.
func WithOrganizationConcurrency(n int) Option {
	return once("WithOrganizationConcurrency", func(s *wiring.Settings) error {
		s.OrganizationConcurrency = n
		return between("concurrency", n, 1, 1_000_000)
	})
}

// WithLimits sets the limits of destinations that set none; its zero fields stay at their defaults: a timeout of 30 s and
// no limit of size.
func WithLimits(l destination.Limits) Option {
	return once("WithLimits", func(s *wiring.Settings) error {
		s.Limits = l.Or(s.Limits)
		return l.Validate()
	})
}

// WithWorkers sets how many attempts this process makes at once: 64 by default. Up to twice as many items are leased.
func WithWorkers(n int) Option {
	return once("WithWorkers", func(s *wiring.Settings) error {
		s.Workers = n
		return between("workers", n, 1, 100_000)
	})
}

// WithPollInterval sets how long Run waits, at most, before it looks for items that another process accepted: 1 s by
// default. While there is work it looks every 100 ms, and at once after a Deliver or Wake in this process.
func WithPollInterval(d time.Duration) Option {
	return once("WithPollInterval", func(s *wiring.Settings) error {
		s.PollInterval = d
		return between("interval", d, 10*time.Millisecond, time.Hour)
	})
}

// WithShutdownTimeout sets how long attempts in flight may go on after the context of Run or ProcessDue has ended: 20 s
// by default, less than the 30 s after which a process is usually killed. What is not done by then is attempted again,
// without being charged.
func WithShutdownTimeout(d time.Duration) Option {
	return once("WithShutdownTimeout", func(s *wiring.Settings) error {
		s.ShutdownTimeout = d
		return between("timeout", d, 0, time.Hour)
	})
}

func between[T int | int64 | time.Duration](what string, v, least, most T) error {
	if v < least || v > most {
		return fmt.Errorf("%s %v is not between %v and %v", what, v, least, most)
	}
	return nil
}

// WithAuthorizer has calls with an access.Actor in their context decided by a: by access.ByRole() if it is not given.
func WithAuthorizer(a access.Authorizer) Option {
	return once("WithAuthorizer", func(s *wiring.Settings) error {
		if isNil(a) {
			return errors.New("the authorizer is nil")
		}
		s.Authorizer = a
		return nil
	})
}

// WithActorRequired refuses calls of Org and below without an access.Actor in their context, which else are the host's own
// and trusted.
func WithActorRequired() Option {
	return once("WithActorRequired", func(s *wiring.Settings) error {
		s.ActorRequired = true
		return nil
	})
}

// WithLogger sets where the service logs: slog.Default() if not given.
func WithLogger(l *slog.Logger) Option {
	return once("WithLogger", func(s *wiring.Settings) error {
		if l == nil {
			return errors.New("the logger is nil")
		}
		s.Logger = l
		return nil
	})
}

// WithSource registers where payload.Ref payloads of that name are opened.
func WithSource(name string, source payload.Source) Option {
	return once(fmt.Sprintf("WithSource(%q)", name), func(s *wiring.Settings) error {
		if !typeName.MatchString(name) || name == payload.StagedSource {
			return fmt.Errorf("the name must match %s and not be %q", typeName, payload.StagedSource)
		}
		if isNil(source) {
			return errors.New("the source is nil")
		}
		s.Sources[name] = source
		return nil
	})
}

// WithPayloadStore keeps what is streamed in s rather than in the database: a directory (local.PayloadStore), a bucket
// (storage.PayloadStore), or a host's own. Payloads that are in the database stay readable. All processes on one database
// need the same store; one without it attempts no item whose payload is there.
func WithPayloadStore(s payload.Store) Option {
	return once("WithPayloadStore", func(settings *wiring.Settings) error {
		if isNil(s) {
			return errors.New("the store is nil")
		}
		settings.Payloads = s
		return nil
	})
}

// Network says which addresses handlers may connect to beside public ones. Deny goes before Allow, and Allow before the
// three switches. Cloud metadata services are reached only by an Allow of exactly their address.
type Network struct {
	Loopback  bool // 127.0.0.0/8 and ::1: tests, and services on the same machine
	Private   bool // RFC 1918, carrier-grade NAT, unique local IPv6
	LinkLocal bool
	Allow     []netip.Prefix
	Deny      []netip.Prefix
	Proxy     func(*http.Request) (*url.URL, error) // nil: none, whatever the environment says
}

// WithNetwork opens addresses for handlers: without it they reach public ones only.
func WithNetwork(n Network) Option {
	return once("WithNetwork", func(s *wiring.Settings) error {
		s.Network = netguard.Policy(n)
		return s.Network.Validate()
	})
}

// Retention says how long what has ended is kept. What waits is kept however old it is.
type Retention struct {
	Deliveries  time.Duration // since they were accepted, with their attempts and payload: for ever
	DeadLetters time.Duration // since they died, and their delivery with them: as Deliveries, which it must not be below
	Statistics  time.Duration // per destination and minute: 32 days
}

// WithRetention has Maintain remove what is older, in small batches once an hour. Without it deliveries are kept for ever.
func WithRetention(r Retention) Option {
	return once("WithRetention", func(s *wiring.Settings) error {
		k := &s.Retention
		set(&k.Deliveries, r.Deliveries)
		set(&k.Statistics, r.Statistics)
		k.DeadLetters = k.Deliveries
		set(&k.DeadLetters, r.DeadLetters)
		var dead error
		if k.DeadLetters < k.Deliveries || k.DeadLetters > 0 && k.Deliveries == 0 {
			dead = fmt.Errorf("dead letters are kept for %v, their deliveries for %v (0 is for ever)", k.DeadLetters, k.Deliveries)
		}
		return errors.Join(dead, between("deliveries", k.Deliveries, 0, 100*365*24*time.Hour),
			between("statistics", k.Statistics, time.Hour, 10*365*24*time.Hour))
	})
}

// HealthChecks says how often Maintain tests the connections of destinations. A zero field is the default in its comment.
type HealthChecks struct {
	Every   time.Duration // of destinations that have had no attempt for so long: 6 h; negative: no test at all, of any
	Failing time.Duration // of those whose last test failed, or which are not healthy: 5 min
	InUse   time.Duration // of those that are in use and well, for what is about to expire: 24 h; negative: never
}

// WithHealthChecks sets how often connections are tested. Tests are those of Destinations.Test.
func WithHealthChecks(h HealthChecks) Option {
	return once("WithHealthChecks", func(s *wiring.Settings) error {
		set(&s.Checks.Every, h.Every)
		set(&s.Checks.Failing, h.Failing)
		set(&s.Checks.InUse, h.InUse)
		if s.Checks.Every < 0 {
			return nil
		}
		const longest = 365 * 24 * time.Hour
		errs := []error{between("every", s.Checks.Every, time.Minute, longest), between("failing", s.Checks.Failing, time.Minute, s.Checks.Every)}
		if s.Checks.InUse > 0 {
			errs = append(errs, between("in use", s.Checks.InUse, time.Minute, longest))
		}
		return errors.Join(errs...)
	})
}

// Quotas bound what is accepted. A zero field is the default in its comment.
type Quotas struct {
	Inline       int64 // bytes of a payload that is kept in the delivery's row: 64 KiB; larger ones go to chunks
	InMemory     int64 // bytes of payload.JSON and payload.Bytes: 10 MiB; larger ones should be streamed
	Payload      int64 // bytes of any payload: 1 TiB
	Destinations int   // of one request: 50
	Batch        int   // requests of one DeliverMany: 10,000
}

// WithQuotas sets bounds on what is accepted.
func WithQuotas(q Quotas) Option {
	return once("WithQuotas", func(s *wiring.Settings) error {
		set(&s.Quotas.Inline, q.Inline)
		set(&s.Quotas.InMemory, q.InMemory)
		set(&s.Quotas.Payload, q.Payload)
		set(&s.Quotas.Destinations, q.Destinations)
		set(&s.Quotas.Batch, q.Batch)
		return errors.Join(
			between("inline", s.Quotas.Inline, 0, 1<<20), between("in memory", s.Quotas.InMemory, 0, 1<<30),
			between("payload", s.Quotas.Payload, 0, 1<<50), between("destinations", s.Quotas.Destinations, 1, 10_000),
			between("batch", s.Quotas.Batch, 1, 100_000))
	})
}

func set[T int | int64 | time.Duration](v *T, to T) {
	if to != 0 {
		*v = to
	}
}

// WithDetailsURL makes the links to a delivery's details that receipts and statuses carry.
func WithDetailsURL(f func(organization, delivery string) string) Option {
	return once("WithDetailsURL", func(s *wiring.Settings) error {
		if f == nil {
			return errors.New("the function is nil")
		}
		s.DetailsURL = f
		return nil
	})
}

// WithDialect names the database's dialect where the driver does not tell it, because it is wrapped.
func WithDialect(d Dialect) Option {
	return once("WithDialect", func(s *wiring.Settings) error {
		var err error
		s.Dialect, err = d.implementation()
		return err
	})
}
