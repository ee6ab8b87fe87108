// Package sqlstore keeps everything in the host's database. Store holds what is the same for all databases; its
// sub-packages postgres and sqlite hold the native SQL of the queue behind Dialect. It links no driver.
//
// Rules for every statement here: it runs inside a transaction (lib/pq behind PgBouncer, and database/sql's silent
// retries of autocommitted writes, both break otherwise); it names the organization, unless it belongs to the queue's own
// system statements; and no transaction is held while another connection is asked for, so that a pool of one is enough.
package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
)

// DB is what is used of the host's connection pool.
type DB interface {
	BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error)
	Conn(ctx context.Context) (*sql.Conn, error)
	Driver() driver.Driver
	PingContext(ctx context.Context) error
}

// Execer is what statements run on: a transaction of ours or of the host's.
type Execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// Transaction is one that this package begins and ends.
type Transaction interface {
	Execer
	Commit() error
	Rollback() error
}

// ErrNotMigrated says that the tables are not there, or not all of them.
var ErrNotMigrated = errors.New("delivery: the database is not migrated; call DeliveryService.Migrate, or apply delivery.Migrations")

// Store runs transactions on the host's database. It may be used by many goroutines at once.
type Store struct {
	DB
	Dialect
	clock func() time.Time // nil: the database's

	Local func() time.Time // the process's clock, which may be wrong
	skew  atomic.Int64

	writer chan struct{} // a place for the one writer, where the database has one
}

// New returns a Store; clock replaces the database's own where it is not nil.
func New(db DB, d Dialect, clock func() time.Time) *Store {
	s := &Store{DB: db, Dialect: d, clock: clock, Local: time.Now}
	if d.SingleWriter() {
		s.writer = make(chan struct{}, 1)
	}
	return s
}

// Skew is how far the database's clock was ahead of the process's when the last transaction began, 0 where they agreed within
// a second: less may be the time that it took to ask.
func (s *Store) Skew() time.Duration {
	skew := time.Duration(s.skew.Load())
	if skew.Abs() < time.Second {
		return 0
	}
	return skew
}

// Tx is a transaction and the time it happens at.
type Tx struct {
	Execer
	Now time.Time
	s   *Store
}

// Exec runs a statement with $1 placeholders.
func (tx *Tx) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	r, err := tx.ExecContext(ctx, tx.s.Rebind(query), args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// Query runs a query with $1 placeholders and calls scan for each row.
func (tx *Tx) Query(ctx context.Context, scan func(rows *sql.Rows) error, query string, args ...any) error {
	return Scan(ctx, tx, scan, tx.s.Rebind(query), args...)
}

// Scan runs a query and calls scan for each row.
func Scan(ctx context.Context, tx Execer, scan func(rows *sql.Rows) error, query string, args ...any) (err error) {
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

// In returns the host's transaction as a Tx of this store. Its time is the clock's, zero for the database's.
func (s *Store) In(tx Execer) *Tx {
	t := &Tx{Execer: tx, s: s}
	if s.clock != nil {
		t.Now = s.clock()
	}
	return t
}

// Read runs fn in a transaction that is rolled back.
func (s *Store) Read(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	return s.run(ctx, Reading, fn, nil)
}

// Write runs fn in a transaction and commits it; fn may run several times. Where the outcome of COMMIT is unknown,
// because the connection broke on it, settled looks in a new transaction whether it took effect; if that is nil, or
// cannot tell either, the error is returned.
func (s *Store) Write(ctx context.Context, fn func(ctx context.Context, tx *Tx) error, settled func(ctx context.Context, tx *Tx) (bool, error)) error {
	return s.run(ctx, Writing, fn, settled)
}

// Lease is Write for leases: one that a crash of the database forgets leaves its item ready, with the fence that the
// worker knows.
func (s *Store) Lease(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	return s.run(ctx, Leasing, fn, nil)
}

// Combine is Write for several callers at once, none of whom shall wait for a lock that only another needs: a wait of more
// than a moment is an error.
func (s *Store) Combine(ctx context.Context, fn func(ctx context.Context, tx *Tx) error, settled func(ctx context.Context, tx *Tx) (bool, error)) error {
	return s.run(ctx, Combining, fn, settled)
}

// ErrConcurrent says that a row was changed between two looks of one statement: the transaction is run again.
var ErrConcurrent = errors.New("sqlstore: changed by another transaction")

// ErrOutcomeUnknown says that the connection broke on a COMMIT, and that it could not be found out whether it took effect.
var ErrOutcomeUnknown = errors.New("sqlstore: whether the transaction was committed is not known")

// Again settles an unknown outcome of writes that do no harm the second time: by running them again.
func Again(context.Context, *Tx) (bool, error) { return false, nil }

const (
	retries    = 10
	firstPause = 2 * time.Millisecond
)

func (s *Store) run(ctx context.Context, access Access, fn func(context.Context, *Tx) error, settled func(context.Context, *Tx) (bool, error)) error {
	pause := firstPause
	for i := 0; ; i++ {
		committing, err := s.once(ctx, access, fn)
		switch {
		case err == nil:
			return nil
		case s.MissingTable(err):
			return fmt.Errorf("%w (%w)", ErrNotMigrated, err)
		case !committing && (s.Retryable(err) || errors.Is(err, ErrConcurrent)) && i < retries:
			select {
			case <-ctx.Done():
				return err
			case <-time.After(pause):
			}
			pause *= 2
			continue
		case committing && settled != nil:
			var done bool
			settleErr := s.Read(context.WithoutCancel(ctx), func(ctx context.Context, tx *Tx) (err error) {
				done, err = settled(ctx, tx)
				return err
			})
			if settleErr == nil && done {
				return nil
			}
			if settleErr == nil && i < retries && ctx.Err() == nil {
				continue // it did not take effect: run it again
			}
			if settleErr != nil {
				return fmt.Errorf("%w: %w", ErrOutcomeUnknown, errors.Join(err, settleErr))
			}
		}
		return err
	}
}

func (s *Store) once(ctx context.Context, access Access, fn func(context.Context, *Tx) error) (committing bool, err error) {
	if access != Reading && s.writer != nil {
		select {
		case s.writer <- struct{}{}:
			defer func() { <-s.writer }()
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	tx, now, err := s.Begin(ctx, s.DB, access)
	if err != nil {
		return false, err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it has nothing to do, and after an error nothing to add
	if s.clock != nil {
		now = s.clock()
	} else {
		s.skew.Store(int64(now.Sub(s.Local())))
	}
	now = now.UTC().Truncate(time.Microsecond) // as it will be read back
	if err := fn(ctx, &Tx{Execer: tx, Now: now, s: s}); err != nil {
		return false, err
	}
	if access == Reading {
		return false, nil
	}
	return true, tx.Commit()
}

// Time scans a time of either database; a null is the zero time.
type Time struct{ T *time.Time }

// Scan implements sql.Scanner.
func (t Time) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		*t.T = time.Time{}
	case time.Time:
		*t.T = v.UTC()
	case int64:
		*t.T = time.UnixMicro(v).UTC()
	default:
		return fmt.Errorf("sqlstore: a %T is no time", v)
	}
	return nil
}

// Text scans a nullable text; a null is "".
type Text struct{ S *string }

// Scan implements sql.Scanner.
func (t Text) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		*t.S = ""
	case string:
		*t.S = v
	case []byte:
		*t.S = string(v)
	default:
		return fmt.Errorf("sqlstore: a %T is no text", v)
	}
	return nil
}

// Null is s as a parameter, nil for "".
func Null(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// Storable is text as every database takes it: what is no UTF-8, and a NUL, becomes U+FFFD.
func Storable(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
