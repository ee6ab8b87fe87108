package delivery_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io/fs"
	"strings"
	"sync"
	"testing"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"

	"github.com/deliverykit/delivery"
	"github.com/deliverykit/delivery/destination"
	"github.com/deliverykit/delivery/handler"
	"github.com/deliverykit/delivery/internal/dbtest"
	"github.com/deliverykit/delivery/internal/testkit"
	"github.com/deliverykit/delivery/payload"
	"github.com/deliverykit/delivery/retry"
)

func TestNewReportsEveryProblem(t *testing.T) {
	t.Parallel()
	var none *sql.DB
	_, err := delivery.New(none,
		nil,
		delivery.WithHandler("fake", nil),
		delivery.WithHandler("Bad Type", &testkit.Fake{}),
		delivery.WithHandler("twice", &testkit.Fake{}), delivery.WithHandler("twice", &testkit.Fake{}),
		delivery.WithHandler("unwilling", unwilling{}),
		delivery.WithKeys(delivery.LocalKey("k", "short")),
		delivery.WithWorkers(0), delivery.WithPollInterval(-1), delivery.WithLogger(nil), delivery.WithSource("x", nil),
		delivery.WithDialect("oracle"), delivery.WithRetry(retry.Policy{Multiplier: -1}),
		delivery.WithLimits(destination.Limits{Timeout: -1}), delivery.WithQuotas(delivery.Quotas{Destinations: -1}),
		delivery.WithDetailsURL(nil), delivery.WithShutdownTimeout(-1),
	)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"option 1 is nil", `WithHandler("fake"): the handler is nil`, `WithHandler("Bad Type"): the type must match`,
		`WithHandler("twice") is given twice`, `handler "unwilling": not today`, "WithKeys: ", "WithWorkers: ", "WithPollInterval: ",
		"WithLogger: ", `WithSource("x"): `, `unknown dialect "oracle"`, "WithRetry: ", "WithLimits: ", "WithQuotas: ", "WithDetailsURL: ",
		"WithShutdownTimeout: ", "the database is nil"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("missing %q in:\n%v", want, err)
		}
	}
	if _, err := delivery.New(nil); err == nil {
		t.Error("nil database: no error")
	}
	unknown := sql.OpenDB(strange{})
	t.Cleanup(func() { _ = unknown.Close() })
	if _, err := delivery.New(unknown); err == nil || !strings.Contains(err.Error(), "WithDialect") {
		t.Errorf("unknown driver: %v", err)
	}
	if _, err := delivery.New(unknown, delivery.WithDialect(delivery.SQLite)); err != nil {
		t.Errorf("unknown driver with a dialect: %v", err)
	}
}

type unwilling struct{ testkit.ParamsHandler }

func (unwilling) Open(handler.Env) error { return errors.New("not today") }

type strange struct{}

func (strange) Connect(context.Context) (driver.Conn, error) { return nil, errors.New("never") }
func (strange) Driver() driver.Driver                        { return strange{} }
func (strange) Open(string) (driver.Conn, error)             { return nil, errors.New("never") }

func TestMigrateManyAtOnce(t *testing.T) {
	t.Parallel()
	for _, name := range testkit.Databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var db *sql.DB
			if name == "sqlite" {
				db = testkit.Try(sql.Open("sqlite", dbtest.SQLite(t))).Must(t)
			} else {
				db = testkit.Try(sql.Open(map[string]string{"lib/pq": "postgres", "pgx": "pgx"}[name], dbtest.Postgres(t))).Must(t)
			}
			t.Cleanup(func() { _ = db.Close() })
			svc := testkit.Service(t, db, &testkit.Fake{})
			for call, err := range map[string]error{
				"ProcessDue": errOf(svc.ProcessDue(t.Context())), "Run": svc.Run(t.Context()), "Maintain": errOf(svc.Maintain(t.Context())),
				"Deliver": errOf(svc.Org("a").Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)})),
				"Status":  errOf(svc.Org("a").Status(t.Context(), "01890000-0000-7000-8000-000000000000")),
			} {
				if !errors.Is(err, delivery.ErrNotMigrated) {
					t.Errorf("%s before the migration: %v", call, err)
				}
			}
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					if err := svc.Migrate(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			testkit.Create(t, svc.Org("acme"), destination.Spec{})
			if n := testkit.Count(t, db, "delivery_migrations where version_id = 1"); n != 1 {
				t.Errorf("version 1 is recorded %d times", n)
			}
		})
	}
}

func errOf[T any](_ T, err error) error { return err }

// A host that migrates by other means has the files.
func TestExportedMigrations(t *testing.T) {
	t.Parallel()
	if delivery.Migrations("oracle") != nil {
		t.Error("an unknown dialect has migrations")
	}
	for dialect, name := range map[delivery.Dialect]string{delivery.SQLite: "sqlite", delivery.Postgres: "lib/pq"} {
		files, err := fs.Glob(delivery.Migrations(dialect), "*.sql")
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", dialect, files, err)
		}
		db := testkit.Open(t, name)
		p := testkit.Try(goose.NewProvider(map[delivery.Dialect]database.Dialect{
			delivery.SQLite: database.DialectSQLite3, delivery.Postgres: database.DialectPostgres,
		}[dialect], db, delivery.Migrations(dialect), goose.WithTableName("delivery_migrations"), goose.WithDisableGlobalRegistry(true))).Must(t)
		for range files {
			if _, err := p.Down(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := db.ExecContext(t.Context(), "select 1 from delivery_queue"); err == nil {
			t.Errorf("%s: the tables are still there after all went down", dialect)
		}
		if _, err := p.Up(t.Context()); err != nil {
			t.Error(err)
		}
		testkit.Create(t, testkit.Service(t, db, &testkit.Fake{}).Org("acme"), destination.Spec{})
	}
}

func TestClosedService(t *testing.T) {
	t.Parallel()
	db := testkit.Open(t, "sqlite")
	svc := testkit.Service(t, db, &testkit.Fake{})
	done := make(chan error)
	go func() { done <- svc.Run(context.Background()) }()
	if err := svc.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil && !errors.Is(err, delivery.ErrClosed) {
		t.Errorf("Run returned %v", err)
	}
	for call, err := range map[string]error{
		"Run": svc.Run(t.Context()), "ProcessDue": errOf(svc.ProcessDue(t.Context())),
		"Deliver": errOf(svc.Org("a").Deliver(t.Context(), delivery.Request{Payload: payload.JSON(1)})),
	} {
		if !errors.Is(err, delivery.ErrClosed) {
			t.Errorf("%s: %v", call, err)
		}
	}
	if err := db.PingContext(t.Context()); err != nil {
		t.Errorf("the database was closed: %v", err)
	}
}

func TestTypesAreDescribed(t *testing.T) {
	t.Parallel()
	svc := testkit.Service(t, testkit.Open(t, "sqlite"), &testkit.Fake{}, delivery.WithHandler("another", &testkit.Fake{}))
	infos := svc.Types()
	if len(infos) != 2 || infos[0].Type != "another" || infos[1].Type != "fake" {
		t.Errorf("types are %+v", infos)
	}
}
