package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// Execer runs statements: it is a transaction of ours or of the host's.
type Execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// Transaction is a transaction that this package begins and ends.
type Transaction interface {
	Execer
	Commit() error
	Rollback() error
}

// Tx is a transaction with its time and the syntax of its database. A statement of a package needs
// nothing else: it is a function on a context and a Tx. One goroutine uses a Tx.
type Tx struct {
	Execer
	Syntax
	// Now is the time of everything that the transaction does. It is zero in a host's transaction
	// whose time is the database's.
	Now time.Time
}

// In returns the host's transaction as a Tx of this store.
func (s *Store) In(tx Execer) *Tx {
	t := &Tx{Execer: tx, Syntax: s.Dialect}
	if s.clock != nil {
		t.Now = s.clock()
	}
	return t
}

// Exec runs a statement with $1 placeholders and returns the number of rows that it changed.
func (tx *Tx) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	r, err := tx.ExecContext(ctx, tx.Rebind(query), args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// Query runs a query with $1 placeholders and calls scan for each row.
func (tx *Tx) Query(ctx context.Context, scan func(rows *sql.Rows) error, query string, args ...any) error {
	return Scan(ctx, tx, scan, tx.Rebind(query), args...)
}

// Scan runs a query with the database's own placeholders and calls scan for each row.
func Scan(
	ctx context.Context, tx Execer, scan func(rows *sql.Rows) error, query string, args ...any,
) (err error) {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
