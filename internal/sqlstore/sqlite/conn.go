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

// Begin starts a transaction. Unless it only reads, it takes the write lock at once. now is the
// time of this process.
func (Dialect) Begin(
	ctx context.Context, db sqlstore.DB, access sqlstore.Access,
) (sqlstore.Transaction, time.Time, error) {
	begun, err := db.BeginTx(ctx, nil)
	if err != nil {
		return nil, time.Time{}, err
	}
	tx := &transaction{Tx: begun}
	if access != sqlstore.Reading {
		if _, err := Next(ctx, tx, 0); err != nil {
			return nil, time.Time{}, errors.Join(err, tx.Rollback())
		}
	}
	return tx, time.Now().UTC(), nil
}

// transaction prepares each statement once. The statements of a batch are few and run many times,
// and SQLite takes longer to parse most of them than to run them. They are closed with the
// transaction. One goroutine uses it.
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

// Next takes n numbers of the sequence and returns the first. As an update it also takes the write
// lock.
func Next(ctx context.Context, tx sqlstore.Execer, n int) (first int64, err error) {
	err = sqlstore.Scan(ctx, tx, func(rows *sql.Rows) error { return rows.Scan(&first) },
		`update delivery_sequence set value = value + ?1 returning value - ?1 + 1`, n)
	return first, err
}

// SingleWriter is true.
func (Dialect) SingleWriter() bool { return true }

// The primary result codes that Retryable recognizes (https://sqlite.org/rescode.html).
const (
	busy   = 5
	locked = 6
)

// Retryable recognizes a database that is busy or locked, by the code in the drivers' errors.
func (Dialect) Retryable(err error) bool {
	var e interface{ Code() int }
	if errors.As(err, &e) {
		code := e.Code() & 0xff
		return code == busy || code == locked
	}
	return err != nil && strings.Contains(err.Error(), "database is locked")
}

// MissingTable recognizes a missing table or column by the message: SQLite has no code for it.
func (Dialect) MissingTable(err error) bool {
	if err == nil {
		return false
	}
	text := err.Error()
	return strings.Contains(text, "no such table: delivery_") || strings.Contains(text, "no such column: ")
}

// Snapshot is always 0: a reader does not keep dead rows from being removed for long.
func (Dialect) Snapshot(context.Context, sqlstore.Execer) (time.Duration, error) { return 0, nil }
