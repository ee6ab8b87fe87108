package delivery

import (
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/netguard"
	"github.com/deliverykit/delivery/internal/seal"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/retry"
)

// Option configures a service. A nil option, one given twice and one with a bad value are errors of
// [New]. The options that say so may also be given to [DeliveryService.Reconfigure].
type Option func(*settings.Builder) error

// fixed makes an option that holds for the life of the service.
func fixed(name string, set func(f *settings.Fixed) error) Option {
	return func(b *settings.Builder) error { return b.Fix(name, set) }
}

// policy makes an option that may be changed while the service runs. A zero field of its value
// stands for the one in defaults.
func policy(name string, set func(p, defaults *settings.Policy) error) Option {
	return func(b *settings.Builder) error { return b.Change(name, set) }
}

func apply(b *settings.Builder, opts []Option) error {
	errs := make([]error, len(opts))
	for i, opt := range opts {
		if opt == nil {
			errs[i] = fmt.Errorf("delivery: option %d is nil", i+1)
			continue
		}
		errs[i] = opt(b)
	}
	return errors.Join(errs...)
}

var typeName = regexp.MustCompile(`^[a-z][a-z0-9_.-]{0,49}$`)

// WithHandler registers the handler for destinations of a type. A process attempts only items of
// the types it has; one that merely accepts deliveries needs none.
func WithHandler(typ string, h handler.Handler) Option {
	return fixed(fmt.Sprintf("WithHandler(%q)", typ), func(f *settings.Fixed) error {
		if !typeName.MatchString(typ) {
			return fmt.Errorf("the type must match %s", typeName)
		}
		if isNil(h) {
			return errors.New("the handler is nil")
		}
		f.Types[typ] = settings.NewType(typ, h)
		return nil
	})
}

// WithKeys seals the credentials of destinations with primary, and opens them with any of the keys.
// Without it, a destination that has credentials is refused with [ErrNoKeys].
func WithKeys(primary KeyWrapper, older ...KeyWrapper) Option {
	return fixed("WithKeys", func(f *settings.Fixed) error {
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
		f.Keys, err = seal.NewKeyring(all[0], all[1:]...)
		return err
	})
}

// WithRetry sets the retry policy for destinations and requests that set none. Zero fields are
// those of retry.Default. It may be given to Reconfigure.
func WithRetry(p retry.Policy) Option {
	return policy("WithRetry", func(s, defaults *settings.Policy) error {
		s.Retry = p.Or(defaults.Retry)
		return p.Validate()
	})
}

// WithBreaker sets the circuit breaker, and when a destination is disabled, for destinations that
// set none. Zero fields are those of retry.DefaultBreaker. It may be given to Reconfigure.
func WithBreaker(b retry.Breaker) Option {
	return policy("WithBreaker", func(s, defaults *settings.Policy) error {
		s.Breaker = b.Or(defaults.Breaker)
		return b.Validate()
	})
}

// WithOrganizationConcurrency sets how many attempts may be under way for one organization, over
// all processes. Default: no limit but the workers. It costs throughput, because all claims then
// count what is in flight. It may be given to Reconfigure.
func WithOrganizationConcurrency(n int) Option {
	return policy("WithOrganizationConcurrency", func(s, _ *settings.Policy) error {
		s.OrganizationConcurrency = n
		return between("concurrency", n, 1, 1_000_000)
	})
}

// WithLimits sets the limits for destinations that set none. Zero fields keep their defaults: a
// timeout of 30 s, and no other limit. It may be given to Reconfigure.
func WithLimits(l destination.Limits) Option {
	return policy("WithLimits", func(s, defaults *settings.Policy) error {
		s.Limits = l.Or(defaults.Limits)
		return l.Validate()
	})
}

// WithWorkers sets how many attempts this process makes at once. Up to twice as many items are
// leased. Default: 64.
func WithWorkers(n int) Option {
	return fixed("WithWorkers", func(f *settings.Fixed) error {
		f.Workers = n
		return between("workers", n, 1, 100_000)
	})
}

// WithPollInterval sets how long Run waits, at most, before it looks for items that another process
// accepted. While there is work it looks every 100 ms, and at once after a Deliver or Wake in this
// process. Default: 1 s. It may be given to Reconfigure.
func WithPollInterval(d time.Duration) Option {
	return policy("WithPollInterval", func(s, _ *settings.Policy) error {
		s.PollInterval = d
		return between("interval", d, 10*time.Millisecond, time.Hour)
	})
}

// WithShutdownTimeout sets how long attempts in flight may go on after the context of Run or
// ProcessDue has ended. What is not done by then is attempted again, without being charged.
// Default: 20 s, less than the 30 s after which a process is usually killed. It may be given to
// Reconfigure.
func WithShutdownTimeout(d time.Duration) Option {
	return policy("WithShutdownTimeout", func(s, _ *settings.Policy) error {
		s.ShutdownTimeout = d
		return between("timeout", d, 0, time.Hour)
	})
}

func between[T int | int64 | time.Duration](what string, v, least, limit T) error {
	if v < least || v > limit {
		return fmt.Errorf("%s %v is not between %v and %v", what, v, least, limit)
	}
	return nil
}

// WithAuthorizer sets who decides about calls whose context carries an access.Actor. Default:
// access.ByRole().
func WithAuthorizer(a access.Authorizer) Option {
	return fixed("WithAuthorizer", func(f *settings.Fixed) error {
		if isNil(a) {
			return errors.New("the authorizer is nil")
		}
		f.Authorizer = a
		return nil
	})
}

// WithActorRequired rejects calls on Org and its managers whose context carries no access.Actor.
// Without this option such calls are the host's own and are trusted.
func WithActorRequired() Option {
	return fixed("WithActorRequired", func(f *settings.Fixed) error {
		f.ActorRequired = true
		return nil
	})
}

// WithLogger sets where the service logs. Default: slog.Default().
func WithLogger(l *slog.Logger) Option {
	return fixed("WithLogger", func(f *settings.Fixed) error {
		if l == nil {
			return errors.New("the logger is nil")
		}
		f.Logger = l
		return nil
	})
}

// WithSource registers where payload.Ref payloads of that name are opened.
func WithSource(name string, source payload.Source) Option {
	return fixed(fmt.Sprintf("WithSource(%q)", name), func(f *settings.Fixed) error {
		if !typeName.MatchString(name) || name == payload.StagedSource {
			return fmt.Errorf("the name must match %s and not be %q", typeName, payload.StagedSource)
		}
		if isNil(source) {
			return errors.New("the source is nil")
		}
		f.Sources[name] = source
		return nil
	})
}

// WithPayloadStore keeps streamed payloads in s rather than in the database: a directory
// (local.PayloadStore), a bucket (storage.PayloadStore), or a host's own. Payloads that are in the
// database stay readable. All processes on one database need the same store; a process without it
// attempts no item whose payload is there.
func WithPayloadStore(s payload.Store) Option {
	return fixed("WithPayloadStore", func(f *settings.Fixed) error {
		if isNil(s) {
			return errors.New("the store is nil")
		}
		f.Payloads = s
		return nil
	})
}

// WithNetwork opens addresses for handlers. Without it they reach public addresses only.
func WithNetwork(n Network) Option {
	return fixed("WithNetwork", func(f *settings.Fixed) error {
		f.Network = netguard.Policy(n)
		return f.Network.Validate()
	})
}

// WithRetention has Maintain remove what has ended and is older, in small batches once an hour.
// Without it deliveries are kept for ever. It may be given to Reconfigure.
func WithRetention(r Retention) Option {
	return policy("WithRetention", func(s, defaults *settings.Policy) error {
		k := defaults.Retention
		set(&k.Deliveries, r.Deliveries)
		set(&k.Statistics, r.Statistics)
		k.DeadLetters = k.Deliveries
		set(&k.DeadLetters, r.DeadLetters)
		s.Retention = k
		var dead error
		if k.DeadLetters < k.Deliveries || k.DeadLetters > 0 && k.Deliveries == 0 {
			dead = fmt.Errorf(
				"dead letters are kept for %v, their deliveries for %v (0 is for ever)", k.DeadLetters,
				k.Deliveries,
			)
		}
		return errors.Join(dead, between("deliveries", k.Deliveries, 0, 100*365*24*time.Hour),
			between("statistics", k.Statistics, time.Hour, 10*365*24*time.Hour))
	})
}

// WithHealthChecks sets how often connections are tested. Tests are those of Destinations.Test. It
// may be given to Reconfigure.
func WithHealthChecks(h HealthChecks) Option {
	return policy("WithHealthChecks", func(s, defaults *settings.Policy) error {
		c := defaults.Checks
		set(&c.Every, h.Every)
		set(&c.Failing, h.Failing)
		set(&c.InUse, h.InUse)
		s.Checks = c
		if c.Every < 0 {
			return nil
		}
		const longest = 365 * 24 * time.Hour
		errs := []error{
			between("every", c.Every, time.Minute, longest),
			between("failing", c.Failing, time.Minute, c.Every),
		}
		if c.InUse > 0 {
			errs = append(errs, between("in use", c.InUse, time.Minute, longest))
		}
		return errors.Join(errs...)
	})
}

// WithQuotas sets bounds on what is accepted. It may be given to Reconfigure.
func WithQuotas(q Quotas) Option {
	return policy("WithQuotas", func(s, defaults *settings.Policy) error {
		k := defaults.Quotas
		set(&k.Inline, q.Inline)
		set(&k.InMemory, q.InMemory)
		set(&k.Payload, q.Payload)
		set(&k.Destinations, q.Destinations)
		set(&k.Batch, q.Batch)
		s.Quotas = k
		return errors.Join(
			between("inline", k.Inline, 0, 1<<20), between("in memory", k.InMemory, 0, 1<<30),
			between("payload", k.Payload, 0, 1<<50), between("destinations", k.Destinations, 1, 10_000),
			between("batch", k.Batch, 1, 100_000))
	})
}

func set[T int | int64 | time.Duration](v *T, to T) {
	if to != 0 {
		*v = to
	}
}

// WithDetailsURL sets the links to a delivery's details in receipts and statuses.
func WithDetailsURL(link func(organization, delivery string) string) Option {
	return fixed("WithDetailsURL", func(f *settings.Fixed) error {
		if link == nil {
			return errors.New("the function is nil")
		}
		f.DetailsURL = link
		return nil
	})
}

// WithDialect names the database's dialect. It is needed where the driver does not show it, because
// it is wrapped.
func WithDialect(d Dialect) Option {
	return fixed("WithDialect", func(f *settings.Fixed) error {
		var err error
		f.Dialect, err = d.implementation()
		return err
	})
}
