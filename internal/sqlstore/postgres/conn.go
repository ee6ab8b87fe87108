package postgres

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"io/fs"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Name returns "postgres".
func (Dialect) Name() string { return "postgres" }

// Migrations returns the goose migrations.
func (Dialect) Migrations() fs.FS {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the folder is embedded above
	}
	return sub
}

const (
	begin = `select now(), set_config('jit', 'off', true) || set_config('enable_seqscan', 'off', true) ||
		set_config('enable_bitmapscan', 'off', true)`
	beginRelaxed = begin + ` || set_config('synchronous_commit', 'off', true)`
	beginCombine = begin + ` || set_config('lock_timeout', '25ms', true)`
)

// Begin starts a transaction and reads its time. In it no plan can flip to a sequential scan, or to
// a sort of a bitmap of everything that is due.
func (Dialect) Begin(
	ctx context.Context, db sqlstore.DB, access sqlstore.Access,
) (_ sqlstore.Transaction, now time.Time, err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return nil, now, err
	}
	query := begin
	switch access {
	case sqlstore.Relaxed:
		query = beginRelaxed
	case sqlstore.Combining:
		query = beginCombine
	case sqlstore.Reading, sqlstore.Writing:
	}
	err = sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error {
		var settings string
		return rows.Scan(sqlstore.Time{T: &now}, &settings)
	}, query)
	if err != nil {
		return nil, now, errors.Join(err, tx.Rollback())
	}
	return tx, now, nil
}

// SingleWriter is false.
func (Dialect) SingleWriter() bool { return false }

// Retryable recognizes serialization failures and deadlocks.
func (Dialect) Retryable(err error) bool {
	state := sqlState(err)
	return state == "40001" || state == "40P01"
}

// MissingTable recognizes undefined tables and columns.
func (Dialect) MissingTable(err error) bool {
	state := sqlState(err)
	return state == "42P01" || state == "42703"
}

// sqlState returns the SQLSTATE of an error of lib/pq or pgx, "" if it has none.
func sqlState(err error) string {
	var e interface{ SQLState() string }
	if errors.As(err, &e) {
		return e.SQLState()
	}
	return ""
}

// Snapshot sees other users' sessions only with the role pg_read_all_stats.
func (Dialect) Snapshot(ctx context.Context, tx sqlstore.Execer) (time.Duration, error) {
	var seconds float64
	err := sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error { return rows.Scan(&seconds) }, `
		select greatest(0, extract(epoch from now() - least(
		  (select min(xact_start) from pg_stat_activity where backend_xmin is not null and pid <> pg_backend_pid()),
		  (select min(prepared) from pg_prepared_xacts where database = current_database()))))::float8`)
	return time.Duration(seconds * float64(time.Second)), err
}
