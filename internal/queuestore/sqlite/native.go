// Package sqlite is the native SQL of the queue on SQLite 3.38 and later. There is one writer at a
// time, so batches are loops of prepared statements, and no row needs a lock.
package sqlite

import (
	"github.com/deliverykit/delivery/internal/queuestore"
	"github.com/deliverykit/delivery/internal/sqlstore/sqlite"
)

// Native implements [queuestore.Native]. It writes parameters as [sqlite.Dialect] does.
type Native struct{ sqlite.Dialect }

var _ queuestore.Native = Native{}
