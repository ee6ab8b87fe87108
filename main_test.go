package delivery_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"
	_ "modernc.org/sqlite"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/dbtest"
	"github.com/deliverykit/delivery/internal/settings"
	"github.com/deliverykit/delivery/retry"
)

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		victim()
	}
	dbtest.Main(m)
}

// soak has tests run for long.
var soak = os.Getenv("DELIVERY_SOAK") == "1"

// databases are what every test of the service runs on.
var databases = []string{"sqlite", "lib/pq", "pgx"}

// each runs a test on every database, and through both drivers of PostgreSQL.
func each(t *testing.T, test func(t *testing.T, db *sql.DB)) {
	t.Helper()
	t.Parallel()
	for _, name := range databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t, name))
		})
	}
}

// open returns a migrated database of its own for the test.
func open(t *testing.T, name string) *sql.DB {
	t.Helper()
	db, _, _ := openNamed(t, name)
	return db
}

// openNamed also tells by which driver and data source another process opens it.
func openNamed(t *testing.T, name string) (db *sql.DB, driver, dsn string) {
	t.Helper()
	driver = map[string]string{"sqlite": "sqlite", "lib/pq": "postgres", "pgx": "pgx"}[name]
	if name == "sqlite" {
		dsn = dbtest.SQLite(t)
	} else {
		dsn = dbtest.PostgresFrom(t, "migrated", func(url string) error {
			db, err := sql.Open("postgres", url)
			if err != nil {
				return err
			}
			defer db.Close()
			return migrate(db)
		})
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if name == "sqlite" {
		if err := migrate(db); err != nil {
			t.Fatal(err)
		}
	}
	return db, driver, dsn
}

func migrate(db *sql.DB) error {
	svc, err := delivery.New(db)
	if err != nil {
		return err
	}
	return svc.Migrate(context.Background())
}

// script is the config of the fake destinations of these tests.
type script struct {
	Name  string             `json:"name"`
	Token destination.Secret `json:"token"`
}

func (script) DestinationType() string { return "fake" }

func (s script) Validate() error { return destination.Require("name", s.Name) }

// fake is a handler that does what a test tells it to, and remembers what it was asked.
type fake struct {
	handler.Parser[script]
	mu       sync.Mutex
	requests []handler.Request
	contents []string
	deliver  func(ctx context.Context, req *handler.Request) (*handler.Result, error)
}

func (f *fake) Deliver(ctx context.Context, req *handler.Request) (*handler.Result, error) {
	b, err := req.Payload.ReadAll(ctx, 100<<20)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.requests = append(f.requests, *req)
	f.contents = append(f.contents, string(b))
	deliver := f.deliver
	f.mu.Unlock()
	if deliver == nil {
		return nil, nil
	}
	return deliver(ctx, req)
}

func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.requests)
}

const testKey = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

// service returns a service without breakers: most tests have items fail without meaning to.
func service(t *testing.T, db delivery.DB, h handler.Handler, opts ...delivery.Option) *delivery.DeliveryService {
	t.Helper()
	opts = append([]delivery.Option{
		delivery.WithHandler("fake", h), delivery.WithKeys(delivery.LocalKey("k1", testKey)),
		delivery.WithLogger(slog.New(slog.NewTextHandler(t.Output(), nil))),
		breaker(retry.Breaker{Failures: math.MaxInt32, DisableFailures: -1}),
	}, opts...)
	svc, err := delivery.New(db, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
	})
	return svc
}

func create(t *testing.T, org *delivery.Org, spec destination.Spec) *destination.Destination {
	t.Helper()
	if spec.Label == "" {
		spec.Label = "fake"
	}
	if spec.Config == nil {
		spec.Config = script{Name: "n", Token: destination.NewSecret("s3cret")}
	}
	d, err := org.Destinations().Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func show(s *delivery.Status) string {
	text := string(s.State)
	for _, i := range s.Items {
		text += fmt.Sprintf(" [%s %s", i.State, i.Reason)
		for _, a := range i.Attempts {
			text += fmt.Sprintf(" (%d %s %s %v)", a.Number, a.State, a.Reason, a.Error)
		}
		text += "]"
	}
	return text
}

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func (c *clock) option() delivery.Option {
	return func(s *settings.Builder) error {
		s.Clock = c.now
		return nil
	}
}

// lease makes leases short, and with them the heartbeat.
func lease(d time.Duration) delivery.Option {
	return func(s *settings.Builder) error {
		s.Lease = d
		return nil
	}
}

// breaker is WithBreaker over the default, and can be given twice.
func breaker(b retry.Breaker) delivery.Option {
	return func(s *settings.Builder) error {
		s.Breaker = b.Or(retry.DefaultBreaker())
		return b.Validate()
	}
}

func logTo(w io.Writer) delivery.Option {
	return func(s *settings.Builder) error {
		s.Logger = slog.New(slog.NewTextHandler(w, nil))
		return nil
	}
}

// run has svc run until the test ends.
func run(t *testing.T, svc *delivery.DeliveryService) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := svc.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func execSQL(t *testing.T, db *sql.DB, query string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), query); err != nil {
		t.Fatal(err)
	}
}

// leaseItems leases items as a process does that dies right after its claim.
func leaseItems(t *testing.T, db *sql.DB, until time.Time, gated int, condition string) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `select lane, min(seq), max(seq) from delivery_queue where `+condition+` group by lane`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var spans []string
	for rows.Next() {
		var lane, first, last int64
		if err := rows.Scan(&lane, &first, &last); err != nil {
			t.Fatal(err)
		}
		spans = append(spans, fmt.Sprintf("[%d, %d, %d]", lane, first, last))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	id := 1 + rand.Int64N(math.MaxInt64)
	execSQL(t, db, fmt.Sprintf(`insert into delivery_leases (id, until, spans) values (%d, %s, '[%s]')`, id, timeLiteral(db, until), strings.Join(spans, ", ")))
	execSQL(t, db, fmt.Sprintf(`update delivery_queue set lease = %d, gated = %d where %s`, id, gated, condition))
}

func isSQLite(db *sql.DB) bool { return strings.Contains(fmt.Sprintf("%T", db.Driver()), "sqlite") }

func timeLiteral(db *sql.DB, at time.Time) string {
	if isSQLite(db) {
		return fmt.Sprint(at.UnixMicro())
	}
	return "'" + at.UTC().Format(time.RFC3339Nano) + "'"
}

func (f *fake) topics() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for _, r := range f.requests {
		all = append(all, r.Topic)
	}
	return all
}
