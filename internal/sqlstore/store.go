// Package sqlstore is the host's database: transactions, syntax and scanning, and the rows that
// more than one package needs. The packages postgres and sqlite hold what differs between
// databases, behind [Dialect]. It links no driver.
//
// A subject with statements of its own has them in its own package, as functions on a context and a
// [Tx]: the queue is in queuestore, security events are in audit, payloads in spool, the work of
// chores is in maintenance.
//
// Three rules hold for every statement, wherever it stands:
//
//   - It runs inside a transaction. Otherwise lib/pq behind PgBouncer breaks, and database/sql
//     silently repeats writes.
//   - It names the organization, unless it is a system statement: one of the queue, or of
//     maintenance, for all organizations.
//   - No transaction is held while another connection is asked for, so that a pool of one is
//     enough.
//
// Tables are hot, cold or small: hot ones have a row for what is under way, cold ones grow until a
// retention removes rows, small ones have a row for what somebody has set up. A statement that
// mixes hot and cold tables is listed in a test, with its reason.
package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"sync/atomic"
	"time"
)

// DB is the part of the host's connection pool that is used.
type DB interface {
	BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error)
	Conn(ctx context.Context) (*sql.Conn, error)
	Driver() driver.Driver
	PingContext(ctx context.Context) error
}

// Store runs transactions on the host's database. It is safe for concurrent use.
type Store struct {
	DB
	Dialect
	// Local is the clock of this process, which may be wrong. Default: [time.Now].
	Local func() time.Time

	clock  func() time.Time // nil: the database's
	skew   atomic.Int64
	writer chan struct{} // room for the one writer, where the database has one
}

// New returns a Store. Unless clock is nil it replaces the database's clock.
func New(db DB, d Dialect, clock func() time.Time) *Store {
	s := &Store{DB: db, Dialect: d, clock: clock, Local: time.Now}
	if d.SingleWriter() {
		s.writer = make(chan struct{}, 1)
	}
	return s
}

// Clocked reports whether a clock replaces the database's.
func (s *Store) Clocked() bool { return s.clock != nil }

// Skew returns how far the database's clock was ahead of the process's when the last transaction
// began. It is 0 where they agreed within a second, since that may be the time that it took to ask.
func (s *Store) Skew() time.Duration {
	skew := time.Duration(s.skew.Load())
	if skew.Abs() < time.Second {
		return 0
	}
	return skew
}

// ErrNotMigrated reports that some or all tables are missing.
var ErrNotMigrated = errors.New(
	"delivery: the database is not migrated; call DeliveryService.Migrate, or apply delivery.Migrations")
