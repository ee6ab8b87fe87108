package delivery

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"

	"github.com/deliverykit/delivery/internal/sqlstore/postgres"
)

// migrationsTable holds the versions, apart from those of a host that uses goose itself.
const migrationsTable = "delivery_migrations"

// Migrate brings the tables, whose names all begin with delivery_, to this version of the library. Any number of
// processes may call it at once, and again at every start.
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
		// Where there is no lock, the process that came second fails on what the first has done, and then finds it done.
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

// sqlDB returns the *sql.DB that db is or, as *sqlx.DB does, embeds.
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
	return nil, fmt.Errorf("delivery: a %T holds no *sql.DB to migrate; apply delivery.Migrations by other means", db)
}
