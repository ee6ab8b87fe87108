package delivery

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/deliverykit/delivery/access"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/engine"
	"github.com/deliverykit/delivery/internal/netguard"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/sqlstore/postgres"
	"github.com/deliverykit/delivery/internal/sqlstore/sqlite"
	"github.com/deliverykit/delivery/internal/wiring"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/retry"
)

// DB is the host's connection pool: *sql.DB and *sqlx.DB are. The service never closes it, and needs no more than one
// connection of it at a time per goroutine.
type DB interface {
	BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error)
	Conn(ctx context.Context) (*sql.Conn, error)
	Driver() driver.Driver // tells the dialect
	PingContext(ctx context.Context) error
}

// Tx is the host's transaction: *sql.Tx and *sqlx.Tx are. *sql.DB and *sql.Conn are not, on purpose.
type Tx interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	Commit() error   // never called: it stays the host's
	Rollback() error // likewise
}

// Dialect names a kind of database.
type Dialect string

// The dialects.
const (
	Postgres Dialect = "postgres" // PostgreSQL 13 and later
	SQLite   Dialect = "sqlite"   // SQLite 3.38 and later
)

func (d Dialect) implementation() (sqlstore.Dialect, error) {
	switch d {
	case Postgres:
		return postgres.Dialect{}, nil
	case SQLite:
		return sqlite.Dialect{}, nil
	}
	return nil, fmt.Errorf("delivery: unknown dialect %q; it is delivery.Postgres or delivery.SQLite", string(d))
}

// Migrations returns the migrations of a dialect, as files in the format of pressly/goose, for hosts that migrate by
// other means than DeliveryService.Migrate. It is nil for an unknown dialect.
func Migrations(d Dialect) fs.FS {
	impl, err := d.implementation()
	if err != nil {
		return nil
	}
	return impl.Migrations()
}

// DeliveryService accepts deliveries and makes them. It may be used by many goroutines at once, and any number of
// processes can have one on the same database.
type DeliveryService struct {
	settings *wiring.Settings
	store    *sqlstore.Store
	engine   *engine.Engine
	guard    *netguard.Guard
	combiner combiner

	mu      sync.Mutex
	running bool
	cancel  map[int]context.CancelFunc // ends the Run and ProcessDue calls under way
	calls   sync.WaitGroup
	next    int
	closed  bool

	subscribers map[int]func() // each ends a Subscribe
	security    security
}

// New checks all it is given and returns every problem joined, and no service if there is one. It connects nowhere and
// starts no goroutine.
func New(db DB, opts ...Option) (*DeliveryService, error) {
	s := &wiring.Settings{
		Types: map[string]*wiring.Type{}, Sources: map[string]payload.Source{}, Given: map[string]bool{},
		Retry: retry.Default(), Breaker: retry.DefaultBreaker(), Limits: destination.Limits{Timeout: destination.Duration(30 * time.Second)},
		Quotas:    wiring.Quotas{Inline: 64 << 10, InMemory: 10 << 20, Payload: 1 << 40, Destinations: 50, Batch: 10_000},
		Checks:    wiring.Checks{Every: 6 * time.Hour, Failing: 5 * time.Minute, InUse: 24 * time.Hour},
		Retention: wiring.Retention{Statistics: 32 * 24 * time.Hour},
		Workers:   64, PollInterval: time.Second, ShutdownTimeout: 20 * time.Second, Lease: 30 * time.Second, SlowLook: 5 * time.Millisecond,
		Authorizer: access.ByRole(),
		Logger:     slog.Default(), //nolint:forbidigo // until WithLogger names another
	}
	var errs []error
	for i, opt := range opts {
		if opt == nil {
			errs = append(errs, fmt.Errorf("delivery: option %d is nil", i+1))
			continue
		}
		errs = append(errs, opt(s))
	}
	if isNil(db) {
		errs = append(errs, errors.New("delivery: the database is nil"))
	} else if s.Dialect == nil {
		var err error
		s.Dialect, err = detect(db)
		errs = append(errs, err)
	}
	svc := &DeliveryService{settings: s, guard: netguard.New(s.Network), cancel: map[int]context.CancelFunc{}, subscribers: map[int]func(){},
		security: security{looking: make(chan struct{}, 1)}}
	for _, name := range svc.typeNames() {
		t := s.Types[name]
		if t.Opener == nil {
			continue
		}
		env := handler.Env{
			Logger: s.Logger.With("type", name), Now: s.Now,
			Dial: svc.guard.DialContext, Client: svc.guard.Client(), CheckHost: svc.guard.CheckHost,
		}
		if err := t.Opener.Open(env); err != nil {
			errs = append(errs, fmt.Errorf("delivery: handler %q: %w", name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	svc.store = sqlstore.New(db, s.Dialect, s.Clock)
	if s.Local != nil {
		svc.store.Local = s.Local
	}
	s.Skew = svc.store.Skew
	svc.engine = engine.New(s, svc.store)
	return svc, nil
}

// detect tells the dialect by the package that the driver is of.
func detect(db DB) (sqlstore.Dialect, error) {
	d := db.Driver()
	path := fmt.Sprintf("%T", d)
	if t := reflect.TypeOf(d); t != nil {
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		path = t.PkgPath()
	}
	switch {
	case strings.HasSuffix(path, "lib/pq"), strings.Contains(path, "jackc/pgx"):
		return postgres.Dialect{}, nil
	case strings.Contains(path, "sqlite"):
		return sqlite.Dialect{}, nil
	}
	return nil, fmt.Errorf("delivery: the dialect of the driver %T is not known; name it with delivery.WithDialect", d)
}

func isNil(v any) bool {
	if v == nil {
		return true
	}
	r := reflect.ValueOf(v)
	switch r.Kind() {
	case reflect.Pointer, reflect.Map, reflect.Func, reflect.Interface, reflect.Slice, reflect.Chan:
		return r.IsNil()
	}
	return false
}

func (s *DeliveryService) typeNames() []string {
	names := make([]string, 0, len(s.settings.Types))
	for name := range s.settings.Types {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Types describes the registered handlers, by name.
func (s *DeliveryService) Types() []destination.TypeInfo {
	names := s.typeNames()
	infos := make([]destination.TypeInfo, len(names))
	for i, name := range names {
		if d := s.settings.Types[name].Describer; d != nil {
			infos[i] = d.Describe()
		}
		infos[i].Type = name
	}
	return infos
}

// Close ends what Run and ProcessDue are doing, as the end of their context does, waits for it and closes the handlers.
// The database stays open: it is the host's. Later calls of the service return ErrClosed.
func (s *DeliveryService) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for _, cancel := range s.cancel {
		cancel()
	}
	subscribers := s.subscribers
	s.subscribers = map[int]func(){}
	s.mu.Unlock()
	for _, end := range subscribers {
		end()
	}
	s.calls.Wait()
	var errs []error
	for _, name := range s.typeNames() {
		if c, ok := s.settings.Types[name].Handler.(io.Closer); ok {
			if err := c.Close(); err != nil {
				errs = append(errs, fmt.Errorf("delivery: closing handler %q: %w", name, err))
			}
		}
	}
	s.guard.CloseIdle()
	return errors.Join(errs...)
}

// Org is the service as one organization sees it: all that it owns, and nothing else. It costs nothing and does not fail;
// each call of an Org with an unusable name returns ErrOrganization.
func (s *DeliveryService) Org(organization string) *Org { return &Org{s: s, name: organization} }

// Org is one organization's view of the service. An id of another organization is ErrNotFound.
type Org struct {
	s    *DeliveryService
	name string
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

// check is the part of authorize that asks nobody.
func (o *Org) check() error {
	if err := o.s.open(); err != nil {
		return err
	}
	if o.name == "" {
		return fmt.Errorf("%w: it is empty", ErrOrganization)
	}
	if len(o.name) > 200 {
		return fmt.Errorf("%w: it has %d bytes, at most 200 are allowed", ErrOrganization, len(o.name))
	}
	if problem := badText(o.name); problem != "" {
		return fmt.Errorf("%w: it %s", ErrOrganization, problem)
	}
	return nil
}
