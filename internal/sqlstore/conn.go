package sqlstore

import (
	"context"
	"io/fs"
	"time"
)

// Conn is how a database is connected to: its transactions, its errors, and its tables.
type Conn interface {
	// Name is the name of the database, as the host selects it.
	Name() string
	// Migrations returns the goose migrations that make our tables.
	Migrations() fs.FS
	// Begin starts a transaction. If it will write and the database has a single writer, Begin
	// waits for the other writers. now is the database's clock.
	Begin(ctx context.Context, db DB, access Access) (tx Transaction, now time.Time, err error)
	// SingleWriter reports whether writers exclude each other, so that they had better queue in
	// this process than in the database.
	SingleWriter() bool
	// Retryable reports whether err means that the transaction lost against another one and can
	// be run again.
	Retryable(err error) bool
	// MissingTable reports whether err means that one of our tables or columns does not exist.
	MissingTable(err error) bool
	// Snapshot returns the age of the oldest transaction that keeps dead rows from being removed,
	// as far as the database shows it. It is 0 where there is none.
	Snapshot(ctx context.Context, tx Execer) (time.Duration, error)
}

// Access is the purpose of a transaction.
type Access int

// The accesses.
const (
	// Reading is for a transaction that is rolled back.
	Reading Access = iota
	// Writing is for one that is committed.
	Writing
	// Relaxed is for writes that a crash of the database may lose: COMMIT does not wait for the
	// disk.
	Relaxed
	// Combining is for the writes of several callers, one of whom may hold a lock that another one
	// needs: waiting for a lock for more than a moment is an error.
	Combining
)
