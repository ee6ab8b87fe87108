package delivery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/audit"
	"github.com/deliverykit/delivery/internal/combine"
	"github.com/deliverykit/delivery/internal/configs"
	"github.com/deliverykit/delivery/internal/engine"
	"github.com/deliverykit/delivery/internal/events"
	"github.com/deliverykit/delivery/internal/maintenance"
	"github.com/deliverykit/delivery/internal/netguard"
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/internal/spool"
	"github.com/deliverykit/delivery/internal/sqlstore"
)

// DeliveryService accepts deliveries and makes them. It may be used by many goroutines at once, and
// any number of processes can have one on the same database.
type DeliveryService struct {
	settings *settings.Settings
	store    *queuestore.Store
	guard    *netguard.Guard
	bus      *events.Bus
	configs  *configs.Configs
	spool    *spool.Spool
	audit    *audit.Recorder
	engine   *engine.Engine
	chores   *maintenance.Runner
	group    combine.Group[acceptance, *Receipt] // of Deliver calls

	changing sync.Mutex // held by Reconfigure

	mu      sync.Mutex
	running bool
	closed  bool
	ends    map[int]context.CancelFunc // of the Run, ProcessDue and Maintain calls under way
	next    int                        // the key of the next one
	calls   sync.WaitGroup
}

// New checks everything it is given and returns all problems joined, and no service if there is
// one. It connects nowhere and starts no goroutine.
func New(db DB, opts ...Option) (*DeliveryService, error) {
	b := settings.NewBuilder()
	errs := []error{apply(b, opts)}
	if isNil(db) {
		errs = append(errs, errors.New("delivery: the database is nil"))
	} else if b.Dialect == nil {
		var err error
		b.Dialect, err = detect(db)
		errs = append(errs, err)
	}
	s := &DeliveryService{settings: b.Build(), guard: netguard.New(b.Network), ends: map[int]context.CancelFunc{}}
	errs = append(errs, s.openHandlers())
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	s.assemble(db)
	return s, nil
}

// assemble makes the parts of the service from its settings.
func (s *DeliveryService) assemble(db DB) {
	set := s.settings
	base := sqlstore.New(db, set.Dialect, set.Clock)
	if set.Local != nil {
		base.Local = set.Local
	}
	set.Skew = base.Skew
	s.store = queuestore.New(base, native(set.Dialect))
	s.bus = events.NewBus(set.Now)
	s.configs = configs.New(&set.Fixed)
	s.spool = spool.New(base, set.Payloads)
	s.audit = audit.NewRecorder(base, s.bus, set.Logger, set.Now)
	s.engine = engine.New(set, s.store, s.bus)
	s.chores = maintenance.NewRunner(base, set.Logger, set.Observer)
	s.chores.Add(maintenance.Standard{
		Settings: set, Configs: s.configs, Spool: s.spool, Audit: s.audit, Bus: s.bus,
	}.Chores()...)
	s.shareTransactions()
}

// openHandlers gives the handlers that ask for it their surroundings.
func (s *DeliveryService) openHandlers() error {
	var errs []error
	for _, name := range s.settings.TypeNames() {
		t := s.settings.Types[name]
		if t.Opener == nil {
			continue
		}
		env := handler.Env{
			Logger: s.settings.Logger.With("type", name), Now: s.settings.Now,
			Dial: s.guard.DialContext, Client: s.guard.Client(), CheckHost: s.guard.CheckHost,
		}
		if err := t.Opener.Open(env); err != nil {
			errs = append(errs, fmt.Errorf("delivery: handler %q: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// Reconfigure changes settings while the service runs: all of them, or with an error none. Claims,
// attempts and calls that begin afterwards go by the new ones. An option that is not given leaves
// its setting as it is; a zero field of one that is given stands for its default, as in New.
// Options that are fixed for the life of a service (handlers, keys, database, network, workers and
// the like) are refused by name.
func (s *DeliveryService) Reconfigure(opts ...Option) error {
	if err := s.open(); err != nil {
		return err
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	b := s.settings.Reconfigure()
	if err := apply(b, opts); err != nil {
		return err
	}
	s.settings.Apply(b)
	s.engine.Wake()
	return nil
}

// Types describes the registered handlers, by name.
func (s *DeliveryService) Types() []destination.TypeInfo {
	names := s.settings.TypeNames()
	infos := make([]destination.TypeInfo, len(names))
	for i, name := range names {
		if d := s.settings.Types[name].Describer; d != nil {
			infos[i] = d.Describe()
		}
		infos[i].Type = name
	}
	return infos
}

// Close ends what Run, ProcessDue and Maintain are doing, as the end of their context does, waits
// for them and closes the handlers. The database stays open: it is the host's. Later calls of the
// service return ErrClosed.
func (s *DeliveryService) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for _, end := range s.ends {
		end()
	}
	s.mu.Unlock()
	s.bus.Close()
	s.calls.Wait()
	var errs []error
	for _, name := range s.settings.TypeNames() {
		if c, ok := handler.As[io.Closer](s.settings.Types[name].Handler); ok {
			if err := c.Close(); err != nil {
				errs = append(errs, fmt.Errorf("delivery: closing handler %q: %w", name, err))
			}
		}
	}
	s.guard.CloseIdle()
	return errors.Join(errs...)
}

// open is ErrClosed once the service is closed.
func (s *DeliveryService) open() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	return nil
}

// begin registers a call that Close is to end.
func (s *DeliveryService) begin(ctx context.Context, exclusive bool) (context.Context, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, nil, ErrClosed
	case exclusive && s.running:
		return nil, nil, ErrRunning
	}
	ctx, cancel := context.WithCancel(ctx)
	s.next++
	id := s.next
	s.ends[id] = cancel
	s.calls.Add(1)
	s.running = s.running || exclusive
	return ctx, func() {
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.ends, id)
		if exclusive {
			s.running = false
		}
		s.calls.Done()
	}, nil
}
