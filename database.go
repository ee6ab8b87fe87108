package delivery

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"

	"github.com/deliverykit/delivery/internal/queuestore"
	postgresqueue "github.com/deliverykit/delivery/internal/queuestore/postgres"
	sqlitequeue "github.com/deliverykit/delivery/internal/queuestore/sqlite"
	"github.com/deliverykit/delivery/internal/sqlstore"
	"github.com/deliverykit/delivery/internal/sqlstore/postgres"
	"github.com/deliverykit/delivery/internal/sqlstore/sqlite"
)

// DB is the host's connection pool: a *sql.DB or a *sqlx.DB. The service never closes it, and uses
// at most one connection per goroutine at a time.
type DB interface {
	BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error)
	Conn(ctx context.Context) (*sql.Conn, error)
	Driver() driver.Driver // shows the dialect
	PingContext(ctx context.Context) error
}

// Tx is the host's transaction: a *sql.Tx or a *sqlx.Tx. *sql.DB and *sql.Conn do not fit, on
// purpose.
type Tx interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	Commit() error   // never called: the host commits
	Rollback() error // never called
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

// native returns the statements of the queue for a dialect.
func native(d sqlstore.Dialect) queuestore.Native {
	if _, ok := d.(sqlite.Dialect); ok {
		return sqlitequeue.Native{}
	}
	return postgresqueue.Native{}
}

// Migrations returns the migrations of a dialect, as files in the format of pressly/goose. It is
// for hosts that do not use [DeliveryService.Migrate]. It returns nil for an unknown dialect.
func Migrations(d Dialect) fs.FS {
	impl, err := d.implementation()
	if err != nil {
		return nil
	}
	return impl.Migrations()
}

// detect finds the dialect by the driver's package.
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
	return nil, fmt.Errorf("delivery: the dialect of the driver %T is unknown; name it with delivery.WithDialect", d)
}

// migrationsTable holds the versions. A host that uses goose has a table of its own.
const migrationsTable = "delivery_migrations"

// Migrate brings the tables to this version of the library. All their names begin with delivery_.
// Any number of processes may call it at once, and again at every start.
func (s *DeliveryService) Migrate(ctx context.Context) error {
	db, err := sqlDB(s.store.DB)
	if err != nil {
		return err
	}
	opts := []goose.ProviderOption{goose.WithTableName(migrationsTable), goose.WithDisableGlobalRegistry(true)}
	dialect := database.DialectSQLite3
	if _, ok := s.settings.Dialect.(postgres.Dialect); ok {
		dialect = database.DialectPostgres
		// A lock in a table works through PgBouncer, which session locks do not.
		locker, err := lock.NewPostgresTableLocker(lock.WithTableName("delivery_migrations_lock"),
			lock.WithTableLockTimeout(time.Second, 300))
		if err != nil {
			return err
		}
		opts = append(opts, goose.WithLocker(locker))
	}
	for pause := 20 * time.Millisecond; ; pause *= 2 {
		p, err := goose.NewProvider(dialect, db, s.settings.Dialect.Migrations(), opts...)
		if err != nil {
			return fmt.Errorf("delivery: migrations: %w", err)
		}
		if _, err = p.Up(ctx); err == nil {
			return nil
		}
		// Without a lock, the second process fails on what the first has done, and then finds it
		// done.
		if dialect == database.DialectPostgres || pause > 2*time.Second {
			return fmt.Errorf("delivery: migrating: %w", err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

// sqlDB returns the *sql.DB that db is or embeds, as *sqlx.DB does.
func sqlDB(db DB) (*sql.DB, error) {
	if db, ok := db.(*sql.DB); ok {
		return db, nil
	}
	if v := reflect.Indirect(reflect.ValueOf(db)); v.Kind() == reflect.Struct {
		if f := v.FieldByName("DB"); f.IsValid() && f.CanInterface() {
			if db, ok := f.Interface().(*sql.DB); ok && db != nil {
				return db, nil
			}
		}
	}
	return nil, fmt.Errorf(
		"delivery: a %T holds no *sql.DB to migrate; apply delivery.Migrations with a migration tool",
		db,
	)
}
