// Package sqlite is the native SQL of the queue on SQLite 3.38 and later: one writer at a time, so its batches are loops
// of prepared statements, and no row needs a lock. Every transaction that writes begins with a write: one that reads
// first cannot wait for another writer, and fails.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"io/fs"
	"strings"
	"time"

	"github.com/deliverykit/delivery/internal/sqlstore"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Dialect implements sqlstore.Dialect.
type Dialect struct{}

// Name returns "sqlite".
func (Dialect) Name() string { return "sqlite" }

// Migrations returns the goose migrations.
func (Dialect) Migrations() fs.FS {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the folder is embedded above
	}
	return sub
}

// Rebind turns $1 into ?1.
func (Dialect) Rebind(query string) string { return strings.ReplaceAll(query, "$", "?") }

// Time returns microseconds since 1970.
func (Dialect) Time(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMicro()
}

// At is the parameter: times are numbers, and the caller's.
func (Dialect) At(parameter string) string { return parameter }

// JSON returns raw as text.
func (Dialect) JSON(raw []byte) any {
	if len(raw) == 0 {
		return nil
	}
	return string(raw)
}

// Begin starts a transaction; one that will write begins by taking the lock. The time is the process's.
func (Dialect) Begin(ctx context.Context, db sqlstore.DB, access sqlstore.Access) (sqlstore.Transaction, time.Time, error) {
	begun, err := db.BeginTx(ctx, nil)
	if err != nil {
		return nil, time.Time{}, err
	}
	tx := &transaction{Tx: begun}
	if access != sqlstore.Reading {
		if _, err := next(ctx, tx, 0); err != nil {
			return nil, time.Time{}, errors.Join(err, tx.Rollback())
		}
	}
	return tx, time.Now().UTC(), nil
}

// transaction prepares each statement once: the statements of a batch are few and run many times, and SQLite takes longer to
// parse most of them than to run them. The statements end with the transaction. It is used by one goroutine.
type transaction struct {
	*sql.Tx
	prepared map[string]*sql.Stmt
}

func (tx *transaction) prepare(ctx context.Context, query string) (*sql.Stmt, error) {
	if s := tx.prepared[query]; s != nil {
		return s, nil
	}
	s, err := tx.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	if tx.prepared == nil {
		tx.prepared = map[string]*sql.Stmt{}
	}
	tx.prepared[query] = s
	return s, nil
}

func (tx *transaction) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	s, err := tx.prepare(ctx, query) //nolint:sqlclosecheck // ends with the transaction
	if err != nil {
		return nil, err
	}
	return s.ExecContext(ctx, args...)
}

func (tx *transaction) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	s, err := tx.prepare(ctx, query) //nolint:sqlclosecheck // ends with the transaction
	if err != nil {
		return nil, err
	}
	return s.QueryContext(ctx, args...)
}

// next takes n numbers of the sequence and returns the first; as an update it also takes the write lock.
func next(ctx context.Context, tx sqlstore.Execer, n int) (first int64, err error) {
	err = sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error { return rows.Scan(&first) },
		`update delivery_sequence set value = value + ?1 returning value - ?1 + 1`, n)
	return first, err
}

// SingleWriter is true.
func (Dialect) SingleWriter() bool { return true }

// The primary result codes that Retryable recognises, https://sqlite.org/rescode.html.
const (
	busy   = 5
	locked = 6
)

// Retryable recognises a database that is busy or locked, by the code that the drivers give their errors.
func (Dialect) Retryable(err error) bool {
	var e interface{ Code() int }
	if errors.As(err, &e) {
		code := e.Code() & 0xff
		return code == busy || code == locked
	}
	return err != nil && strings.Contains(err.Error(), "database is locked")
}

// MissingTable recognises a table of ours that does not exist; SQLite has no code for it.
func (Dialect) MissingTable(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "no such table: delivery_") || strings.Contains(err.Error(), "no such column: "))
}

// Snapshot implements sqlstore.Dialect: readers keep nothing from being removed for long.
func (Dialect) Snapshot(context.Context, sqlstore.Execer) (time.Duration, error) { return 0, nil }
