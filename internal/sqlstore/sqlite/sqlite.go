// Package sqlite is the native SQL of the queue on SQLite 3.38 and later. There is one writer at a
// time, so batches are loops of prepared statements, and no row needs a lock. Every transaction
// that writes begins with a write: one that reads first cannot wait for another writer, and fails.
package sqlite

import "github.com/deliverykit/delivery/internal/sqlstore"

// Dialect implements [sqlstore.Dialect].
type Dialect struct{}

var _ sqlstore.Dialect = Dialect{}
