// Package sqlite is the database SQLite 3.38 and later: its syntax, its connection and the
// migrations. There is one writer at a time, so no row needs a lock. Every transaction that writes
// begins with a write: one that reads first cannot wait for another writer, and fails.
package sqlite

import "github.com/deliverykit/delivery/internal/sqlstore"

// Dialect implements [sqlstore.Dialect].
type Dialect struct{}

var _ sqlstore.Dialect = Dialect{}
