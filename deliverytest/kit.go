package deliverytest

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/internal/netguard"
	"github.com/deliverykit/delivery/internal/seal"
	"github.com/deliverykit/delivery/internal/settings"
)

// Kit is a DeliveryService under a test's control. Process, Advance, Destination and the Require
// methods end a failing test, so they must be called from the goroutine that runs the test. All
// other methods may be called from any goroutine.
type Kit struct {
	*delivery.DeliveryService

	t       testing.TB
	clock   clock
	scripts *scripts

	mu         sync.Mutex
	maintained time.Time
	passes     int
	next       time.Time // when something falls due, as the last pass reported it
}

// start is the first time on a kit's clock.
var start = time.Date(2026, time.January, 1, 12, 0, 0, 0, time.UTC)

// clock has the current time of a kit.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// forward moves the clock to a later time; an earlier one changes nothing.
func (c *clock) forward(to time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if to.After(c.now) {
		c.now = to
	}
}

// New returns a service on a migrated SQLite database in memory that no other Kit sees. Both are
// closed when the test ends. Options are those of [delivery.New]. They override the kit's own
// settings, which are:
//
//   - a key that seals credentials,
//   - a logger to the test's output, on the kit's clock,
//   - a network that reaches loopback addresses, for servers of package httptest,
//   - a retry policy without jitter, so that a test can name the moment of a retry. WithRetry keeps
//     it without jitter unless it sets Jitter itself,
//   - no circuit breaker and no disabling for failures, so that a script of failures runs as it is
//     written. To test these, set them by WithBreaker or in a destination's Spec,
//   - one worker, so that attempts are made one after another in the order of the queue, and a
//     script has the same effect in every run.
//
// A bad option ends the test. The database has one connection, which the service uses. Code that
// needs a transaction or tables of its own needs [NewOn].
func New(t testing.TB, opts ...delivery.Option) *Kit {
	t.Helper()
	db, err := inMemory()
	if err != nil {
		t.Fatalf("deliverytest: the database: %v", err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("deliverytest: closing the database: %v", err)
		}
	})
	return build(t, db, opts)
}

// NewOn is [New] on the host's own test database, SQLite or PostgreSQL. It migrates the database
// and closes only the service. Other tests should not use the same database, because the kit's
// clock applies to everything in it.
func NewOn(t testing.TB, db delivery.DB, opts ...delivery.Option) *Kit {
	t.Helper()
	k := build(t, db, opts)
	if err := k.Migrate(context.Background()); err != nil {
		t.Fatalf("deliverytest: %v", err)
	}
	return k
}

func build(t testing.TB, db delivery.DB, opts []delivery.Option) *Kit {
	t.Helper()
	k := &Kit{t: t, clock: clock{now: start}, maintained: start}
	k.scripts = &scripts{kit: k}
	for i, opt := range opts {
		if opt == nil { // New would count the kit's own options too
			t.Fatalf("deliverytest: option %d is nil", i+1)
		}
	}
	all := append([]delivery.Option{k.defaults}, opts...)
	svc, err := delivery.New(db, append(all, k.own)...)
	if err != nil {
		t.Fatalf("deliverytest: %v", err)
	}
	k.DeliveryService = svc
	t.Cleanup(func() {
		if err := svc.Close(); err != nil {
			t.Errorf("deliverytest: closing the service: %v", err)
		}
	})
	return k
}

// key is not a secret: it seals values that tests make up.
const key = "ZGVsaXZlcnl0ZXN0IGtleSwgZm9yIHRlc3RzIG9ubHk="

// defaults is applied before the host's options, which may override it.
func (k *Kit) defaults(s *settings.Builder) error {
	wrapper, err := seal.Local("deliverytest", key)
	if err != nil {
		return err
	}
	if s.Keys, err = seal.NewKeyring(wrapper); err != nil {
		return err
	}
	s.Logger = slog.New(slog.NewTextHandler(k.t.Output(), &slog.HandlerOptions{
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				a.Value = slog.TimeValue(k.Now())
			}
			return a
		},
	}))
	s.Network = netguard.Policy{Loopback: true}
	s.Defaults.Retry.Jitter = -1
	s.Defaults.Breaker.Failures, s.Defaults.Breaker.DisableFailures = math.MaxInt32, -1
	s.Retry, s.Breaker = s.Defaults.Retry, s.Defaults.Breaker
	s.Workers = 1
	s.Clock = k.clock.Now
	return nil
}

// own is applied after the host's options, and sets what only the kit may set.
func (k *Kit) own(s *settings.Builder) error {
	if s.Types[typ] != nil {
		return fmt.Errorf(
			"deliverytest: the kit itself uses the type %q; register your handler under another name", typ,
		)
	}
	s.Types[typ] = settings.NewType(typ, k.scripts)
	return nil
}

// Now is the time on the kit's clock, in UTC. It is 2026-01-01 12:00:00 until Advance moves it. The
// service, its handlers and its log use this clock; only timeouts of attempts run in real time.
// Pass it to host code that computes NotBefore or Deadline, or verifies a webhook's signature.
func (k *Kit) Now() time.Time { return k.clock.Now() }

// Process makes all attempts that are due, until nothing is due at the current time. A later retry
// waits for [Kit.Advance].
func (k *Kit) Process() {
	k.t.Helper()
	k.pass("Process")
}

func (k *Kit) pass(caller string) (next time.Time) {
	k.t.Helper()
	pass, err := k.ProcessDue(context.Background())
	if err != nil {
		k.t.Fatalf("deliverytest: %s: %v", caller, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.passes++
	k.next = pass.Next
	return pass.Next
}

const (
	maintainEvery = 10 * time.Minute // no chore is due more often
	maxMaintained = 100              // calls of Maintain in one Advance, however long
	lookAgain     = time.Second
)

// Advance moves the clock forward by d. First it does everything due now, then everything that
// falls due on the way, each at its own moment: retries, NotBefore, deadlines, and the leases of
// crashed attempts. It also does what is due at the end. On the way it calls Maintain every 10
// minutes, or every hundredth of d if d is longer than 1000 minutes.
//
// A step of a script may call it, to simulate a long attempt.
func (k *Kit) Advance(d time.Duration) {
	k.t.Helper()
	if d < 0 {
		k.t.Fatalf("deliverytest: Advance(%v): the clock cannot go back", d)
	}
	end := k.Now().Add(d)
	every := max(maintainEvery, d/maxMaintained)
	for {
		maintenance := k.maintain(every)
		next := k.pass("Advance")
		now := k.Now()
		if !now.Before(end) {
			return
		}
		stop := end
		if maintenance.Before(stop) {
			stop = maintenance
		}
		if !next.IsZero() && !next.After(now) { // overdue, and the pass left it alone: it waits for a lease to end
			next = now.Add(lookAgain)
		}
		if !next.IsZero() && next.Before(stop) {
			stop = next
		}
		k.clock.forward(stop)
	}
}

// maintain calls Maintain if that is due, and returns when it is due next.
func (k *Kit) maintain(every time.Duration) time.Time {
	k.t.Helper()
	now := k.Now()
	k.mu.Lock()
	due := k.maintained.Add(every)
	if now.Before(due) {
		k.mu.Unlock()
		return due
	}
	k.maintained = now
	k.mu.Unlock()
	if _, err := k.Maintain(context.Background()); err != nil {
		k.t.Fatalf("deliverytest: Advance: Maintain: %v", err)
	}
	return now.Add(every)
}
