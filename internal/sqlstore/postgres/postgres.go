// Package postgres is the native SQL of the queue on PostgreSQL 13 and later. Its statements hold what the measurements
// in docs/design/queue.md forbid to lose: updates and deletes go by ctid = any(array(...)) from a LATERAL with a LIMIT,
// which no statistics turn into a sequential scan; index bounds are parameters, never volatile functions; and rows are
// locked in a statement before the one that counts them.
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

// Dialect implements sqlstore.Dialect.
type Dialect struct{}

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

// Rebind returns query: $1 is PostgreSQL's own.
func (Dialect) Rebind(query string) string { return query }

// Time returns t in UTC.
func (Dialect) Time(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC()
}

// At casts to timestamptz.
func (Dialect) At(parameter string) string { return "coalesce(" + parameter + "::timestamptz, now())" }

// JSON returns raw as text: drivers take bytes for a bytea.
func (Dialect) JSON(raw []byte) any {
	if len(raw) == 0 {
		return nil
	}
	return string(raw)
}

const (
	begin = `select now(), set_config('jit', 'off', true) || set_config('enable_seqscan', 'off', true) ||
		set_config('enable_bitmapscan', 'off', true)`
	beginLease   = begin + ` || set_config('synchronous_commit', 'off', true)`
	beginCombine = begin + ` || set_config('lock_timeout', '25ms', true)`
)

// Begin starts a transaction in which plans cannot flip to a sequential scan, nor to a bitmap of all that is due and a
// sort of it, and reads its time.
func (Dialect) Begin(ctx context.Context, db sqlstore.DB, access sqlstore.Access) (_ sqlstore.Transaction, now time.Time, err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return nil, now, err
	}
	query := begin
	switch access {
	case sqlstore.Leasing:
		query = beginLease
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

// Retryable recognises serialization failures and deadlocks.
func (Dialect) Retryable(err error) bool {
	state := sqlState(err)
	return state == "40001" || state == "40P01"
}

// MissingTable recognises undefined tables and columns.
func (Dialect) MissingTable(err error) bool {
	state := sqlState(err)
	return state == "42P01" || state == "42703"
}

// sqlState returns the SQLSTATE that lib/pq and pgx both give their errors.
func sqlState(err error) string {
	var e interface{ SQLState() string }
	if errors.As(err, &e) {
		return e.SQLState()
	}
	return ""
}

// Snapshot implements sqlstore.Dialect. Of sessions of other users it is seen only with the role pg_read_all_stats.
func (Dialect) Snapshot(ctx context.Context, tx sqlstore.Execer) (time.Duration, error) {
	var seconds float64
	err := sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error { return rows.Scan(&seconds) }, `
		select greatest(0, extract(epoch from now() - least(
		  (select min(xact_start) from pg_stat_activity where backend_xmin is not null and pid <> pg_backend_pid()),
		  (select min(prepared) from pg_prepared_xacts where database = current_database()))))::float8`)
	return time.Duration(seconds * float64(time.Second)), err
}
